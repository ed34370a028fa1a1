# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The commands ``monai-autoaug nnunet ...``; nnU-Net is imported by the command that needs it."""

from __future__ import annotations

import click

from monai_autoaug.errors import resumable

__all__ = ["nnunet_commands"]

_PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.group("nnunet")
def nnunet_commands() -> None:
    """nnU-Net trainers with learned augmentation: paths, checks, training, prediction, export."""


@nnunet_commands.command("path")
def path() -> None:
    """Print the folder to name in nnUNet_extTrainer, by which plain nnU-Net finds the trainers."""
    from monai_autoaug.nnunet.launcher import ext_path

    click.echo(ext_path())


@nnunet_commands.command("doctor")
@click.pass_context
def doctor(context: click.Context) -> None:
    """Say what is wrong when nnU-Net can't find or run a trainer, and what to do; exits with 1 if something is.

    What is a warning only makes one of several ways impossible: without nnUNet_extTrainer, nnU-Net's own commands find
    no trainer of this package, but monai-autoaug nnunet train and predict do.
    """
    from monai_autoaug.nnunet.diagnosis import doctor as examine

    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    diagnoses = examine()
    width = max(len(severity) for severity in colours)
    for d in diagnoses:  # no table: it would cut paths short or break them
        click.echo(f"{click.style(f'{d.severity:<{width}}', fg=colours[d.severity])}  {d.check}: {d.found}")
        if d.remedy:
            click.echo(f"{'':<{width}}  to do: {d.remedy}")
    wrong = sum(d.severity != "ok" for d in diagnoses)
    errors = sum(d.severity == "error" for d in diagnoses)
    told = f"{wrong} of {len(diagnoses)} checks found something"
    told += "" if errors else ", which monai-autoaug nnunet train and predict can do without"
    click.echo(told if wrong else "all is well")
    context.exit(1 if errors else 0)


@nnunet_commands.command("train", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> None:
    """nnUNetv2_train with the trainers of this package; the arguments are nnU-Net's (-h shows them).

    -tr defaults to nnUNetTrainerAutoAugAdversarial; nnUNetTrainerAutoAug learns which operations to augment each class
    with, and which views to average at test time. -num_gpus 2 -device cpu trains on two CPU ranks.
    """
    from monai_autoaug.nnunet.launcher import to_continue
    from monai_autoaug.nnunet.launcher import train as run

    with resumable(lambda: ["monai-autoaug", "nnunet", "train", *to_continue(arguments)]):
        run(arguments)


@nnunet_commands.command("predict", context_settings=_PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def predict(arguments: tuple[str, ...]) -> None:
    """nnUNetv2_predict with the trainers of this package; the arguments are nnU-Net's (-h shows them).

    Of a model of nnUNetTrainerAutoAug the learned views are averaged; with --tea volume those of whole volumes.
    """
    from monai_autoaug.nnunet.launcher import predict as run

    more = [] if "--continue_prediction" in arguments else ["--continue_prediction"]
    with resumable(lambda: ["monai-autoaug", "nnunet", "predict", *arguments, *more]):
        run(arguments)


@nnunet_commands.command("preprocess-unlabelled")
@click.argument("dataset")
@click.argument("configuration")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("-p", "--plans", default="nnUNetPlans", show_default=True, help="Name of the plans.")
@click.option("--overwrite", is_flag=True, help="Replace unlabelled images that were preprocessed before.")
@click.option("-np", "--processes", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes that work side by side.")  # fmt: skip
def preprocess_unlabelled(
    dataset: str, configuration: str, folder: str, plans: str, overwrite: bool, processes: int
) -> None:
    """Preprocess the images in FOLDER, which have no labels, as DATASET was: for methods that learn from these, too.

    DATASET (number or name) has been through nnUNetv2_plan_and_preprocess; files are named as in its imagesTr. The
    trainers find what is written, beside the preprocessed data set, by themselves.
    """
    from monai_autoaug.nnunet.unlabelled import preprocess_unlabelled as run

    def progress(done: int, total: int) -> None:
        click.echo(f"preprocessed {done} of {total}", err=True)

    def warn(sentence: str) -> None:
        click.secho(f"warning: {sentence}", fg="yellow", err=True)

    target = run(
        dataset, configuration, folder, plans=plans, overwrite=overwrite, processes=processes, progress=progress,
        warn=warn,
    )  # fmt: skip
    click.echo(target)


@nnunet_commands.command("export-plain")
@click.argument("model_folder", type=click.Path(exists=True, file_okay=False))
@click.argument("out_folder", type=click.Path(file_okay=False))
def export_plain(model_folder: str, out_folder: str) -> None:
    """Make of MODEL_FOLDER a model in OUT_FOLDER that an nnU-Net without this package loads.

    MODEL_FOLDER is <nnUNet_results>/<dataset>/<trainer>__<plans>__<configuration>.
    """
    from monai_autoaug.nnunet.export import export_plain as run

    click.echo(run(model_folder, out_folder))
