# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug demo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from monai_autoaug.commands.habits import METHODS, Command, amp_option, chosen_precision, device_option, offering

if TYPE_CHECKING:
    from monai_autoaug.engines.folder import Run
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.engines.progress import Listener
    from monai_autoaug.evaluation import Evaluation

__all__ = ["demo"]

_CASES, _TEST = 24, 2
_UNLABELLED = 8  # images of other subjects, for a method that learns from these, too
# patches smaller than the volumes: 18 cases are few, and cut out at random places they are more
_TRAINING: dict[str, Any] = {
    "epochs": 20,
    "iterations": 30,
    "patch_size": (32, 32, 24),
    "validation_cases": 0.25,
    "validation_interval": 4,
}
_EXAMPLES = (
    "monai-autoaug demo",
    "monai-autoaug demo --method joint_policy --output demo_policy",
    "monai-autoaug demo --epochs 4 --dry-run",
    "monai-autoaug demo --resume",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.option("--output", "-o", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--method", default="adversarial", show_default=True, shell_complete=offering(METHODS),
              help="none, random, adversarial, task_driven, general_adversarial, joint_policy or bilevel.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of data and training.")
@device_option
@amp_option
@click.option("--cases", default=_CASES, show_default=True, type=click.IntRange(min=8),
              help="Labelled volumes. A quarter of them validate, the others train; of those joint_policy"
              " sets a quarter apart.")  # fmt: skip
@click.option("--size", default=48, show_default=True, type=click.IntRange(min=16), help="Voxels a side.")
@click.option("--epochs", default=_TRAINING["epochs"], show_default=True, type=click.IntRange(min=1), help="Epochs.")
@click.option("--resume", is_flag=True, help="Finish the demo in --output, wherever it was stopped.")
@click.option("--dry-run", is_flag=True, help="Show the plan, with time and memory by a few real steps; keep nothing.")
@click.pass_context
def demo(
    ctx: click.Context, output: Path, method: str, seed: int, device: str, amp: bool | None, cases: int, size: int,
    epochs: int, resume: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Do everything on a synthetic data set: write it, train, predict, evaluate, draw.

    Takes less than five minutes on two CPU cores. Nothing is downloaded.
    """
    from monai_autoaug.commands.console import bars, console
    from monai_autoaug.commands.results import show
    from monai_autoaug.engines.folder import Run
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.engines.prediction import predict
    from monai_autoaug.errors import ConfigError, resumable

    run = Run(output / "run")
    if run.config.exists() and not resume:
        raise ConfigError(
            f"{output} holds a demo already: finish it with --resume, remove it, or choose another folder with --output"
        )
    if run.config.exists():
        options = _begun(ctx, run)
    else:
        options = TrainOptions(
            output / "data", run.folder, method=method, seed=seed, device=device,
            precision=chosen_precision(None, amp) or "auto", **_TRAINING | {"epochs": epochs},
        )  # fmt: skip
    if options.learns_from_unlabelled:
        options = replace(options, unlabelled=output / "unlabelled" / "imagesTs")
    if dry_run:
        _foresee(options, cases, size)
        return
    again = ["monai-autoaug", "demo", "--resume", "--output", str(output)]
    with resumable(lambda: again if run.config.exists() else None), bars() as listener:
        evaluation = _train(run, options, cases, size, listener)
        predictions = output / "predictions"
        predict(
            run.folder, options.data / "imagesTs", predictions, device=options.device, precision=options.precision,
            resume=resume, listener=listener,
        )  # fmt: skip
    show(run, evaluation, console)
    console.print(f"predictions of {_TEST} images without a label are in {predictions}", markup=False)


def _begun(ctx: click.Context, run: Run) -> TrainOptions:
    """The options that a demo was begun with; only where it runs may change."""
    from click.core import ParameterSource

    from monai_autoaug.engines.folder import read_json
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.errors import ConfigError

    given = {name for name in ctx.params if ctx.get_parameter_source(name) != ParameterSource.DEFAULT}
    extra = sorted(given - {"output", "resume", "device", "dry_run"})
    if extra:
        raise ConfigError(
            f"a resumed demo keeps the options it was begun with; leave out {', '.join(extra)} (only --device may"
            " change)"
        )
    options = TrainOptions.from_mapping(read_json(run.config)["options"] | {"output": run.folder})
    return replace(options, device=ctx.params["device"]) if "device" in given else options


def _train(run: Run, options: TrainOptions, cases: int, size: int, listener: Listener) -> Evaluation:
    """Data and training, or what is left of them: a run that has begun has its data and keeps its options."""
    from monai_autoaug.commands.results import finish, missing
    from monai_autoaug.engines.run import resume, train
    from monai_autoaug.evaluation import Evaluation

    if not run.config.exists():
        _write(options, cases, size, listener)
        return finish(train(options, listener=listener), listener=listener)
    if not run.summary.exists():
        resume(run.folder, device=options.device, listener=listener)
    return finish(run, listener=listener) if missing(run) else Evaluation.load(run.evaluation)


def _write(options: TrainOptions, cases: int, size: int, listener: Listener) -> None:
    """The data set; and images without labels, of other subjects, where the method learns from these."""
    from monai_autoaug.commands.console import counter
    from monai_autoaug.data import write_phantom

    seed, told = options.seed, counter(listener, "writing")
    write_phantom(options.data, cases=cases, size=size, seed=seed, test=_TEST, progress=told)
    if options.unlabelled is not None:
        write_phantom(options.unlabelled.parent, cases=1, size=size, seed=seed + 1, test=_UNLABELLED, progress=told)


def _foresee(options: TrainOptions, cases: int, size: int) -> None:
    """Show what would be trained, on data that is removed again."""
    from tempfile import TemporaryDirectory

    from monai_autoaug.commands.console import bars
    from monai_autoaug.commands.foresight import show_preview
    from monai_autoaug.engines.preview import preview

    with TemporaryDirectory(prefix="monai-autoaug-") as folder:
        there = replace(options, data=Path(folder) / "data")
        if options.unlabelled is not None:
            there = replace(there, unlabelled=Path(folder) / "unlabelled" / "imagesTs")
        with bars() as listener:
            _write(there, cases, size, listener)
            found = preview(there, listener=listener)
    show_preview(found)
