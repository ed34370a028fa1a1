# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["evaluate"]


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the values of every case here.")
@click.option("--cases", "show_cases", is_flag=True, help="Show every case, the worst first.")
def evaluate(predictions: Path, reference: Path, json_file: Path | None, show_cases: bool) -> None:
    """Compare the NIfTI files in the folder PREDICTIONS with REFERENCE: a data set, or a folder of label files.

    Dice of a structure that is in neither is not defined and left out; one that is in only one of the two counts as 0.
    """
    from rich.table import Table

    from monai_autoaug.commands.console import bars, check_file, console, counter, dice_table
    from monai_autoaug.evaluation import evaluate as compare

    if json_file is not None:
        check_file("--json", json_file)
    with bars() as listener:
        result = compare(predictions, reference, progress=counter(listener, "evaluating"))
    if show_cases:
        table = Table("case", *result.classes)
        for case in result.worst("dice"):
            values = result.values["dice"][result.cases.index(case)]
            table.add_row(case, *("-" if v != v else f"{v:.3f}" for v in values))
        console.print(table)
    console.print(dice_table(result, f"{len(result.cases)} cases"))
    if result.without_prediction:
        console.print(f"{len(result.without_prediction)} labelled cases have no prediction and are not counted")
    if json_file is not None:
        result.save(json_file)
