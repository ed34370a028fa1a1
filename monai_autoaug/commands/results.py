# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What follows a training: Dice of the validation cases, pictures, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from monai_autoaug.engines import TrainOptions
    from monai_autoaug.engines.folder import Run
    from monai_autoaug.engines.progress import Listener
    from monai_autoaug.evaluation import Evaluation

__all__ = ["complete", "finish", "missing", "resume_command", "show"]


def complete(options: TrainOptions, *, listener: Listener | None = None) -> Evaluation:
    """Do all that ``monai-autoaug train`` does: train, evaluate the validation cases, draw the pictures.

    `engines.train` ends with the predictions of the validation cases; a run that was stopped goes on with
    `engines.resume`, and `finish` makes the rest.

    Args:
        options: of the training.
        listener: hears where the run is; None: progress bars on the terminal.

    Returns:
        The evaluation of the validation cases; everything else is in the folder ``options.output``.

    Raises:
        ConfigError: an option can't work, or the folder holds another run, is in use or can't be written.
        DataError: the data set can't be used.

    >>> import tempfile
    >>> from monai_autoaug.data import write_phantom
    >>> from monai_autoaug.engines import TrainOptions
    >>> folder = tempfile.mkdtemp()
    >>> small = {"epochs": 1, "iterations": 1, "network_options": {"channels": [4, 8]}, "device": "cpu"}
    >>> options = TrainOptions(write_phantom(f"{folder}/data", cases=3, size=16), f"{folder}/run", **small)
    >>> evaluation = complete(options, listener=lambda progress: None)
    >>> sorted(file.name for file in options.output.glob("*.png"))
    ['augmentations.png', 'predictions.png', 'training.png']
    """
    from monai_autoaug.commands.console import bars
    from monai_autoaug.engines import train

    if listener is not None:
        return finish(train(options, listener=listener), listener=listener)
    with bars() as drawn:
        return complete(options, listener=drawn)


def finish(run: Run, *, listener: Listener | None = None) -> Evaluation:
    """Evaluate the validation predictions of a run into ``validation.json``, and draw its pictures.

    Args:
        run: what `engines.train` or `engines.resume` returned.
        listener: hears where it is; None: nobody does.

    Returns:
        The evaluation.
    """
    from monai_autoaug.commands.console import counter
    from monai_autoaug.data import read_datalist
    from monai_autoaug.engines.folder import read_json
    from monai_autoaug.engines.progress import unheard
    from monai_autoaug.evaluation import evaluate
    from monai_autoaug.report import run_pictures

    listener = listener or unheard
    config = read_json(run.config)
    datalist = read_datalist(config["options"]["data"])
    held_out = set(config["split"]["validation"])
    judged = replace(datalist, training=tuple(c for c in datalist.training if c.name in held_out))
    evaluation = evaluate(run.validation, judged, progress=counter(listener, "evaluating"))
    evaluation.save(run.evaluation)
    if run.plain_validation.is_dir():
        evaluate(run.plain_validation, judged).save(run.plain_evaluation)
    run_pictures(run, datalist, evaluation, progress=counter(listener, "drawing"))
    return evaluation


def resume_command(run: Run) -> list[str] | None:
    """The command that resumes a run; None if it has not begun."""
    command = ["monai-autoaug", "train", "--resume", "--output", str(run.folder)]
    return command if run.config.exists() else None


def missing(run: Run) -> list[Path]:
    """The files of a run whose training has ended that `finish` has yet to write.

    Args:
        run: its training has ended.
    """
    from monai_autoaug.report import picture_files

    plain = [run.plain_evaluation] if run.plain_validation.is_dir() else []
    return [file for file in (run.evaluation, *plain, *picture_files(run)) if not file.exists()]


def show(run: Run, evaluation: Evaluation, console: Console) -> None:
    """Print what came out of a run.

    Args:
        run: complete.
        evaluation: of its validation cases.
        console: where to.
    """
    from monai_autoaug.commands.console import dice_table
    from monai_autoaug.commands.learned import show_policies
    from monai_autoaug.engines.folder import read_json
    from monai_autoaug.policies import load
    from monai_autoaug.report import picture_files

    summary = read_json(run.summary)
    console.print()
    console.print(dice_table(evaluation, f"{summary['method']}: {len(evaluation.cases)} validation cases"))
    during = summary["validation_on_preprocessed_grid"]["dice"]
    if during is not None:
        console.print(
            f"Dice on the voxels of the label files. The last one during training, {during:.3f}, is another figure: on"
            " volumes resampled for the network, with less overlap of the windows, and without the cases that lack a"
            " structure.", style="dim",
        )  # fmt: skip
    if run.policy.exists():
        show_policies(load(run.policy), summary.get("no_ops", ()), console)
    console.print(_line(summary), style="dim")
    doubts = read_json(run.audit)["counts"]["warn"]
    if doubts:
        times = "once" if doubts == 1 else f"{doubts} times"
        console.print(f"the audit of the data warns {times}; monai-autoaug check shows of what", style="yellow")
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    names = ", ".join(p.name for p in picture_files(run))
    console.print(f"everything is in {run.folder} (pictures: {names})", markup=False)


def _line(summary: dict[str, Any]) -> str:
    """What the run took."""
    cases = summary["cases"]
    apart = f" and {cases['meta']} for meta-validation" if "meta" in cases else ""
    return (
        f"{cases['train']} training cases{apart}, {summary['iterations']} iterations,"
        f" {summary['parameters'] / 1e6:.2f} M parameters, {summary['device']},"
        f" {summary['seconds'] / 60:.1f} min ({summary['cpu_seconds'] / 60:.1f} min of CPU)"
    )
