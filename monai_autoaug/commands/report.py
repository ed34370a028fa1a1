# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug report``."""

from __future__ import annotations

from pathlib import Path

import click

from monai_autoaug.commands.habits import Command

__all__ = ["report"]

_PATH = click.Path(path_type=Path)


_EXAMPLES = (
    "monai-autoaug report runs/learned",
    "monai-autoaug report runs/learned --against runs/random --against runs/none",
    "monai-autoaug report RESULTS/TRAINER/fold_0 --data nnUNet_raw/Dataset004",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("run", type=_PATH)
@click.option("--output", "-o", type=_PATH, metavar="FILE",
              help="The page (a name that ends in .html), or its folder.  [default: report.html in RUN]")  # fmt: skip
@click.option("--against", type=_PATH, multiple=True, metavar="RUN",
              help="Another training on the same cases to compare with; may be repeated.")  # fmt: skip
@click.option("--data", type=_PATH, metavar="DIR",
              help="The data set, for pictures of validation cases.  [default: where RUN has read it]")  # fmt: skip
@click.option("--names", is_flag=True, help="Tell names of cases and paths, which are left out otherwise.")
def report(run: Path, output: Path | None, against: tuple[Path, ...], data: Path | None, names: bool) -> None:
    """Write a page about the training in the folder RUN, and the same as JSON beside it.

    RUN is a folder of monai-autoaug train, or a fold (fold_0) of one of nnU-Net's trainers nnUNetTrainerAutoAug*. The
    page is one file that loads nothing: whether a gain is shown, what was learned and how sure that is, images before
    and after augmentation in three planes and from epoch to epoch, test-time views, the course of the training,
    findings of the audit, provenance and warnings. It holds pieces of images, but neither names of cases nor paths.

    A gain is shown only against another training on the same cases, which may also be one of plain nnU-Net.
    """
    from monai_autoaug.commands.console import check_file, console
    from monai_autoaug.engines.folder import read_json
    from monai_autoaug.report.html import page_name, write_report

    page = page_name(run, output)
    check_file("--output", page)
    write_report(run, page, data=data, against=against, names=names)
    told = read_json(page.with_suffix(".json"))
    verdict = told["verdict"]
    console.print(verdict["headline"], style="bold", markup=False)
    for sentence in verdict["sentences"]:
        console.print(sentence, markup=False)
    for caution in told["cautions"]:
        if caution["severity"] == "serious":
            console.print(f"warning: {caution['text']}", style="yellow", markup=False)
    console.print(f"written: {page} (open it in a browser) and {page.with_suffix('.json').name}", markup=False)
