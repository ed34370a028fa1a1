# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug check``."""

from __future__ import annotations

from pathlib import Path

import click

from monai_autoaug.commands.habits import Command

__all__ = ["check"]


_EXAMPLES = ("monai-autoaug check DATA", "monai-autoaug check DATA --json findings.json --workers 2")


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the findings to this file too.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads; by default one a core, at most 8.")
@click.pass_context
def check(ctx: click.Context, data: Path, json_file: Path | None, workers: int | None) -> None:
    """Audit the data set in the folder DATA and print all its faults at once.

    Decathlon (dataset.json), nnU-Net raw (imagesTr/CASE_0000.nii.gz) and a pair of folders (images/, labels/) are told
    apart by themselves. Exit code 1: something forbids training.
    """
    from monai_autoaug.commands.console import bars, check_file, console, counter
    from monai_autoaug.data import read_datalist
    from monai_autoaug.data.audit import audit, findings_to_json, print_findings, refused
    from monai_autoaug.writing import write_text

    if json_file is not None:
        check_file("--json", json_file)
    datalist = read_datalist(data)
    with bars() as listener:
        findings = audit(datalist, workers=workers, progress=counter(listener, "checking"))
    names = ", ".join(f"{name} ({value})" for name, value in datalist.labels.items())
    console.print(
        f"{len(datalist.training)} labelled and {len(datalist.test)} other cases"
        + (f", {len(datalist.unlabelled)} unlabelled" if datalist.unlabelled else "")
        + f" ({datalist.layout});"
        f" channels: {', '.join(datalist.channels)}; labels: {names}",
        markup=False,
    )
    print_findings(findings, console)
    if json_file is not None:
        write_text(json_file, findings_to_json(findings) + "\n")
    ctx.exit(1 if refused(findings) else 0)
