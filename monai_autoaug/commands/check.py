# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from monai_autoaug.commands.habits import Command

if TYPE_CHECKING:
    from monai_autoaug.data import DataList

__all__ = ["check"]

_PATH = click.Path(path_type=Path)


def _fill(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | str | None:
    """A number, or the word min."""
    if value is None or value == "min":
        return value
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a number nor min") from error


_EXAMPLES = (
    "monai-autoaug check DATA",
    "monai-autoaug check DATA --json findings.json --workers 2",
    "monai-autoaug check DATA --repair-to REPAIRED --fill min",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("data", type=_PATH)
@click.option("--json", "json_file", type=_PATH, help="Write the findings to this file too.")
@click.option("--spacing", type=float, nargs=3,
              help="Voxel size in mm that volumes will be resampled to, as of train.  [default: the median]")
@click.option("--repair-to", type=_PATH, metavar="FOLDER",
              help="Write a copy of the data set here, with axes that almost meet at right angles set so (the error is"
              " told in mm), and audit the copy.")
@click.option("--resample", is_flag=True, help="In the copy, bring volumes with a larger shear onto right angles.")
@click.option("--fill", callback=_fill, metavar="NUMBER|min",
              help="In the copy, what NaN and infinite voxels of images become; min: the image's lowest value.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads; by default one a core, at most 8.")
@click.pass_context
def check(
    ctx: click.Context,
    data: Path,
    json_file: Path | None,
    spacing: tuple[float, float, float] | None,
    repair_to: Path | None,
    resample: bool,
    fill: float | str | None,
    workers: int | None,
) -> None:
    """Audit the data set in the folder DATA and print all its faults at once.

    Decathlon (dataset.json), nnU-Net raw (imagesTr/CASE_0000.nii.gz) and a pair of folders (images/, labels/) are told
    apart by themselves. Exit code 1: something forbids training. DATA itself is never changed.
    """
    from monai_autoaug.commands.console import bars, check_file, console, counter
    from monai_autoaug.data import read_datalist, repair
    from monai_autoaug.data.audit import audit, findings_to_json, print_findings, refused
    from monai_autoaug.errors import ConfigError
    from monai_autoaug.writing import write_text

    if repair_to is None and (resample or fill is not None):
        raise ConfigError("--resample and --fill change a copy of the data; say where: --repair-to FOLDER")
    if spacing is not None and not all(0 < s < float("inf") for s in spacing):
        raise ConfigError(f"--spacing must be three positive numbers, got {spacing}")
    if json_file is not None:
        check_file("--json", json_file)
    datalist = read_datalist(data)
    with bars() as listener:
        changes = []
        if repair_to is not None:
            count = counter(listener, "repairing")
            changes = repair(datalist, repair_to, resample=resample, fill=fill, progress=count)
            datalist = read_datalist(repair_to)
        findings = audit(datalist, spacing=spacing, workers=workers, progress=counter(listener, "checking"))
    console.print(_summary(datalist), markup=False)
    print_findings([*changes, *findings], console)
    if json_file is not None:
        write_text(json_file, findings_to_json([*changes, *findings]) + "\n")
    ctx.exit(1 if refused(findings) else 0)


def _summary(datalist: DataList) -> str:
    """What the data set holds, in a line."""
    from monai_autoaug.errors import printable

    values = {name: (value,) if isinstance(value, int) else value for name, value in datalist.labels.items()}
    names = ", ".join(f"{name} ({', '.join(map(str, found))})" for name, found in values.items())
    if datalist.ignore_label is not None:
        names += f", unknown ({datalist.ignore_label})"
    unlabelled = f", {len(datalist.unlabelled)} unlabelled" if datalist.unlabelled else ""
    return printable(
        f"{len(datalist.training)} labelled and {len(datalist.test)} other cases{unlabelled} ({datalist.layout});"
        f" channels: {', '.join(datalist.channels)}; labels: {names}"
    )
