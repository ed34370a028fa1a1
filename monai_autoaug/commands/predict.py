# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

__all__ = ["predict"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--overlap", default=0.5, show_default=True, help="Overlap of neighbouring windows, 0 to below 1.")
@click.option("--overwrite", is_flag=True, help="Replace predictions that are there already.")
@click.option("--resume", is_flag=True, help="Leave predictions that are there already, and make the others.")
@click.option("--z", type=click.IntRange(min=0),
              help="Views of each image that are averaged, of a run that has learned any; 0: the image alone."
              "  [default: as learned, usually 8]")  # fmt: skip
@click.option("--average", type=click.Choice(["logits", "probabilities"]),
              help="Of the views.  [default: as learned, usually logits]")  # fmt: skip
@click.option("--components", metavar="WHICH",
              help="Keep these connected components of each structure only: largest, those of at least a share of it"
              " (10%), or of a volume (500mm3).")  # fmt: skip
@click.pass_context
def predict(
    ctx: click.Context,
    run: Path,
    images: Path,
    output: Path,
    device: str,
    precision: str,
    overlap: float,
    overwrite: bool,
    resume: bool,
    z: int | None,
    average: Literal["logits", "probabilities"] | None,
    components: str | None,
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
    failed: dict[str, str] = {}
    with resumable(lambda: _going_on(ctx)), bars() as listener:
        try:
            files = segment(
                run, images, output, device=device, precision=precision, overlap=overlap, overwrite=overwrite,
                resume=resume, z=z, average=average, clean=clean, listener=listener,
            )  # fmt: skip
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


def _going_on(ctx: click.Context) -> list[str] | None:
    """The words of a command that makes the predictions that this one has not made.

    None where it has made none, or was replacing others: which of them are new can't be told afterwards.
    """
    given = ctx.params
    if given["overwrite"] or not Path(given["output"]).is_dir():
        return None
    words = ["monai-autoaug", "predict", str(given["run"]), str(given["images"]), str(given["output"]), "--resume"]
    for option in ctx.command.params:
        said = option.name is not None and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
        if isinstance(option, click.Option) and not option.is_flag and said:
            words += [option.opts[0], str(given[option.name])]
    return words
