# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from monai_autoaug.commands.habits import Command

__all__ = ["evaluate"]


_EXAMPLES = (
    "monai-autoaug evaluate PREDICTIONS DATA",
    "monai-autoaug evaluate PREDICTIONS DATA --cases --hd95 --json dice.json",
    "monai-autoaug evaluate PREDICTIONS LABELS --components largest",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the values of every case here.")
@click.option("--cases", "show_cases", is_flag=True, help="Show every case, the worst first.")
@click.option("--hd95", is_flag=True, help="Also the 95 % Hausdorff distance in mm.")
@click.option("--components", metavar="WHICH",
              help="Count these connected components of each predicted structure only: largest, those of at least a"
              " share of it (10%), or of a volume (500mm3).")  # fmt: skip
def evaluate(
    predictions: Path, reference: Path, json_file: Path | None, show_cases: bool, hd95: bool, components: str | None
) -> None:
    """Compare the NIfTI files in the folder PREDICTIONS with REFERENCE: a data set, or a folder of label files.

    Dice of a structure that is in neither is not defined and left out; one that is in only one of the two counts as 0.
    The distance is left out in both cases.
    """
    from rich.table import Table

    from monai_autoaug.commands.console import bars, check_file, console, counter, dice_table
    from monai_autoaug.evaluation import Components
    from monai_autoaug.evaluation import evaluate as compare

    chosen = None if components is None else Components.parse(components)
    metrics = ("dice", "hd95") if hd95 else ("dice",)
    if json_file is not None:
        check_file("--json", json_file)
    with bars() as listener:
        result = compare(
            predictions, reference, metrics=metrics, components=chosen, progress=counter(listener, "evaluating")
        )
    if show_cases:
        table = Table("case", *result.classes)
        for case in result.worst("dice"):
            values = result.values["dice"][result.cases.index(case)]
            table.add_row(case, *("-" if v != v else f"{v:.3f}" for v in values))
        console.print(table)
    counted = "" if chosen is None else f", components: {chosen}"
    for metric in metrics:
        console.print(dice_table(result, f"{len(result.cases)} cases{counted}", metric))
    if result.without_prediction:
        console.print(f"{len(result.without_prediction)} labelled cases have no prediction and are not counted")
    if json_file is not None:
        result.save(json_file)
