# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from monai_autoaug.commands.habits import (
    PRECISIONS,
    WORDS,
    Command,
    amp_option,
    chosen_precision,
    device_option,
    offering,
)

__all__ = ["predict"]

_EXAMPLES = (
    "monai-autoaug predict runs/learned IMAGES PREDICTIONS",
    "monai-autoaug predict runs/learned image.nii.gz label.nii.gz --components 10%",
    "monai-autoaug predict runs/policy IMAGES PREDICTIONS --z 0 --device cuda:1",
    "monai-autoaug predict runs/learned IMAGES PREDICTIONS --dry-run",
    "monai-autoaug predict runs/learned IMAGES PREDICTIONS --resume",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@device_option
@amp_option
@click.option("--precision", shell_complete=offering(PRECISIONS),
              help="In place of --amp: auto, mixed, float32, bfloat16 or float16.  [default: auto]")  # fmt: skip
@click.option("--overlap", default=0.5, show_default=True, help="Overlap of neighbouring windows, 0 to below 1.")
@click.option("--overwrite", is_flag=True, help="Replace predictions that are there already.")
@click.option("--resume", is_flag=True, help="Keep predictions that are there already, and make the others.")
@click.option("--z", type=click.IntRange(min=0),
              help="Views of each image that are averaged, of a run that has learned any; 0: the image alone."
              "  [default: as learned, usually 8]")  # fmt: skip
@click.option("--average", type=click.Choice(["logits", "probabilities"]),
              help="Of the views.  [default: as learned, usually logits]")  # fmt: skip
@click.option("--components", metavar="WHICH",
              help="Keep these connected components of each structure only: largest, those of at least a share of it"
              " (10%), or of a volume (500mm3).")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what there is to do, about how long it takes, and write nothing.")
@click.pass_context
def predict(
    ctx: click.Context,
    run: Path,
    images: Path,
    output: Path,
    device: str,
    amp: bool | None,
    precision: str | None,
    overlap: float,
    overwrite: bool,
    resume: bool,
    z: int | None,
    average: Literal["logits", "probabilities"] | None,
    components: str | None,
    dry_run: bool,
) -> None:
    """Segment IMAGES, a NIfTI file or a folder of them, with the trained RUN, into OUTPUT.

    A run that has learned which views to average at test time (method joint_policy) does so: that takes as many times
    as long as there are views.

    OUTPUT is a folder, or for a single image a file name. Predictions lie on the voxel grid of their image's file.
    Images that can't be used are named at the end, when the others have been predicted. Exit code 1: there are some.
    """
    from rich.markup import escape
    from rich.table import Table

    from monai_autoaug.commands.console import bars, console
    from monai_autoaug.engines.prediction import PredictionError
    from monai_autoaug.engines.prediction import predict as segment
    from monai_autoaug.errors import resumable
    from monai_autoaug.evaluation import Components

    clean = None if components is None else Components.parse(components)
    asked: dict[str, Any] = {
        "device": device, "precision": chosen_precision(precision, amp) or "auto", "overlap": overlap,
        "overwrite": overwrite, "resume": resume, "z": z, "average": average,
    }  # fmt: skip
    if dry_run:
        _foresee(run, images, output, asked)
        return
    files: list[Path] = []
    failed: dict[str, str] = {}
    with resumable(lambda: _going_on(ctx)), bars() as listener:
        try:
            files = segment(run, images, output, **asked, clean=clean, listener=listener)
        except PredictionError as error:
            files, failed = error.written, error.failed
    if failed:
        table = Table("image", "why it was not predicted")
        for case, reason in failed.items():
            table.add_row(escape(case), escape(reason), style="red")
        console.print(table)
    number = f"{len(files)} of {len(files) + len(failed)}" if failed else str(len(files))
    predictions = f"{number} prediction{'s' * (number != '1')}"
    console.print(f"{predictions} in {output}" if resume else f"wrote {predictions} to {output}", markup=False)
    ctx.exit(1 if failed else 0)


def _foresee(run: Path, images: Path, output: Path, asked: dict[str, Any]) -> None:
    """Show what would be done."""
    from monai_autoaug.commands.console import bars
    from monai_autoaug.commands.foresight import show_foresight
    from monai_autoaug.engines.prediction_preview import foresee

    with bars() as listener:
        found = foresee(run, images, output, **asked, listener=listener)
    show_foresight(found)


def _going_on(ctx: click.Context) -> list[str] | None:
    """The words of a command that makes the predictions that this one has not made.

    None where it has made none, or was replacing others: which of them are new can't be told afterwards.
    """
    if ctx.params["overwrite"] or not ctx.params["output"].is_dir():
        return None
    again = [word for word in ctx.meta[WORDS] if word != "--resume"]
    return ["monai-autoaug", "predict", *again, "--resume"]
