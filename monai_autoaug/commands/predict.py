# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug predict``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["predict"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--precision", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--overlap", default=0.5, show_default=True, help="Overlap of neighbouring windows, 0 to below 1.")
def predict(run: Path, images: Path, output: Path, device: str, precision: str, overlap: float) -> None:
    """Segment IMAGES, a NIfTI file or a folder of them, with the trained RUN, into OUTPUT.

    OUTPUT is a folder, or for a single image a file name. Predictions lie on the voxel grid of their image's file.
    """
    from monai_autoaug.commands.console import bars, console
    from monai_autoaug.engines.prediction import predict as segment

    with bars() as listener:
        files = segment(run, images, output, device=device, precision=precision, overlap=overlap, listener=listener)
    console.print(f"wrote {len(files)} prediction{'s' * (len(files) != 1)} to {output}", markup=False)
