# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a finished run shows: Dice of the validation cases, warnings, pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from monai_autoaug.engines.folder import Run
    from monai_autoaug.evaluation import Evaluation

__all__ = ["missing", "results"]


def missing(run: Run) -> list[Path]:
    """The files of a run whose training has ended that `results` has yet to write.

    Args:
        run: its training has ended.
    """
    from monai_autoaug.report import picture_files

    return [file for file in (run.evaluation, *picture_files(run)) if not file.exists()]


def results(run: Run, console: Console) -> Evaluation:
    """Evaluate the validation predictions of a run, draw its pictures and print a summary.

    Args:
        run: its training has ended.
        console: where to.

    Returns:
        The evaluation, also written to ``validation.json``.
    """
    from monai_autoaug.commands.console import bars, counter, dice_table
    from monai_autoaug.data import read_datalist
    from monai_autoaug.engines.folder import read_json
    from monai_autoaug.evaluation import evaluate
    from monai_autoaug.report import run_pictures

    config, summary = read_json(run.config), read_json(run.summary)
    datalist = read_datalist(config["options"]["data"])
    with bars() as listener:
        evaluation = evaluate(run.validation, datalist, progress=counter(listener, "evaluating"))
        evaluation.save(run.evaluation)
        pictures = run_pictures(run, datalist, evaluation, progress=counter(listener, "drawing"))
    console.print()
    console.print(dice_table(evaluation, f"{summary['method']}: {len(evaluation.cases)} validation cases"))
    console.print(_line(summary), style="dim")
    doubts = read_json(run.audit)["counts"]["warn"]
    if doubts:
        console.print(f"the audit of the data warns {doubts} times; monai-autoaug check tells of what", style="yellow")
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    names = ", ".join(p.name for p in pictures)
    console.print(f"everything is in {run.folder} (pictures: {names})", markup=False)
    return evaluation


def _line(summary: dict[str, Any]) -> str:
    """What the run took."""
    return (
        f"{summary['cases']['train']} training cases, {summary['iterations']} iterations,"
        f" {summary['parameters'] / 1e6:.2f} M parameters, {summary['device']},"
        f" {summary['seconds'] / 60:.1f} min ({summary['cpu_seconds'] / 60:.1f} min of CPU)"
    )
