# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug compare``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from monai_autoaug.commands.asking import (
    FILE,
    again,
    asked_before,
    at_equal_time,
    keep,
    reference_of,
    said,
    seeds,
    whole,
    words,
)
from monai_autoaug.commands.habits import Command, amp_option, chosen_precision, device_option, key_values, offering

if TYPE_CHECKING:
    from monai_autoaug.evaluation.comparison import Plan, Summary

__all__ = ["compare"]

_PATH = click.Path(path_type=Path)

_EXAMPLES = (
    "monai-autoaug compare --data DIR --methods none,nnunet,random --seeds 3",
    "monai-autoaug compare --data DIR --methods nnunet,joint_policy --host nnunet",
    "monai-autoaug compare --data DIR --methods none,random:mode=affine --dry-run",
    "monai-autoaug compare --arms --host nnunet",
    "monai-autoaug compare --resume --output comparison",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.option("--data", type=_PATH, help="The data set: a folder of NIfTI files with labels.")
@click.option("--methods", help="Arms, separated by commas; options of an arm follow after colons:"
              " joint_policy:views=4. --arms lists them.")  # fmt: skip
@click.option("--seeds", default="3", show_default=True, help="How many trainings of each arm, or which seeds: 0,1,2.")
@click.option("--cases", default="all", show_default=True, help="Numbers of training cases, such as 10,20,all.")
@click.option("--output", "-o", default="comparison", show_default=True, type=_PATH,
              help="Folder of the comparison; several processes and machines can share it.")  # fmt: skip
@click.option("--host", default="monai", show_default=True, shell_complete=offering(("monai", "nnunet")),
              help="monai or nnunet: which trains.")  # fmt: skip
@click.option("--reference", help="The arm that others are compared with.  [default: nnunet if it is there, else the"
              " first]")  # fmt: skip
@click.option("--equal", default="iterations", show_default=True, shell_complete=offering(("iterations", "time")),
              help="iterations, or time: arms also train again for as long as the reference takes.")  # fmt: skip
@click.option("--test-cases", default="0.25", show_default=True, help="Number or share of cases no arm looks at.")
@click.option("--validation-cases", default="2", show_default=True, help="Number or share of validation cases.")
@click.option("--unlabelled", type=_PATH, metavar="DIR", help="Images without labels, for arms that learn from them.")
@click.option("--unlabelled-cases", default=0, show_default=True, type=click.IntRange(min=0),
              help="Take so many labelled cases as such; no arm trains on them.")  # fmt: skip
@click.option("--split-seed", default=0, show_default=True, help="Seed of the choice of cases.")
@click.option("--epochs", type=int, help="Epochs of a training.  [default: the host's]")
@click.option("--iterations", type=int, help="Iterations an epoch.  [default: the host's]")
@click.option("--option", multiple=True, metavar="KEY=VALUE",
              help="Another option of all trainings: of train with host monai (network=segresnet), of the trainers and"
              " plans with host nnunet (configuration=3d_fullres); may be repeated.")  # fmt: skip
@click.option("--test-time", default="own", show_default=True,
              help="own: each arm averages at test time the views that it comes with; none: nobody does.")  # fmt: skip
@click.option("--tolerance", default=1.0, show_default=True, help="Of the surface Dice in mm.")
@device_option
@amp_option
@click.option("--workers", type=click.IntRange(min=0),
              help="Processes that cut and augment patches.  [default: the host's: 0, or nnU-Net's]")  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Do not wait for cells that other processes work on.")
@click.option("--dry-run", is_flag=True, help="Show the cells and about how long they take; train nothing.")
@click.option("--arms", "list_arms", is_flag=True, help="List the arms of --host and what they are.")
@click.option("--resume", is_flag=True,
              help="Go on with the comparison in --output: all its arms, seeds and numbers of cases.")  # fmt: skip
@click.pass_context
def compare(ctx: click.Context, /, list_arms: bool, dry_run: bool, resume: bool, **given: Any) -> None:
    """Train methods and baselines on the same cases and say which is better, by how much, and how surely.

    Test cases are set apart first, which no arm looks at. For each number of training cases and each seed every arm is
    trained on the same cases; one such training is a cell. The command can be stopped and called again (or --resume),
    with other arms, seeds or numbers of cases, too; what is done stays, and the tables show all of it. Called several
    times at once with one folder, on any machines, it shares the work. Exit code 1: some cells could not be done.
    """
    from monai_autoaug.commands.console import bars, console
    from monai_autoaug.commands.foresight import show_cells
    from monai_autoaug.errors import resumable
    from monai_autoaug.evaluation.comparison import compare as run
    from monai_autoaug.evaluation.comparison.working import Place

    if list_arms:
        _show_arms(given["host"])
        return
    kept = asked_before(given["output"])
    if resume:
        given = again(ctx, given, kept)
    given["reference"] = reference_of(ctx, given, kept)
    plan = at_equal_time(ctx, _plan(given), kept)
    if dry_run:
        show_cells(plan, given["device"])
        return
    unlabelled = given["unlabelled"]
    place = Place(
        plan.datalist.folder.resolve(), plan.folder.resolve(), given["device"], given["workers"],
        None if unlabelled is None else unlabelled.resolve(),
    )  # fmt: skip
    command = ["monai-autoaug", "compare", "--resume", "--output", str(plan.folder)]
    asked = {n: str(v.resolve()) if isinstance(v, Path) else v for n, v in given.items() if n != "output"}
    asked |= {"reference": plan.reference, "equal": "time" if plan.equal_time else "iterations"}
    further = plan.reference if said(ctx, "reference") else None
    with resumable(lambda: command if (plan.folder / FILE).exists() else None), bars() as listener:
        _, failed = run(
            plan, place, begun=lambda: keep(plan.folder, asked, further), wait=not given["no_wait"], listener=listener
        )
    names = _tell(plan, further)
    for name, reason in failed.items():
        click.secho(f"{name} could not be done: {reason}", fg="red", err=True)
    console.print(f"everything is in {plan.folder} ({', '.join(names)})", markup=False)
    ctx.exit(1 if failed else 0)


def _tell(plan: Plan, further: str | None) -> list[str]:
    """Write pages and tables of all that was asked for in the folder, by every reference; print one.

    Args:
        plan: of this call.
        further: the reference that is printed; None: the comparison's first one.

    Returns:
        Names of the files.
    """
    from monai_autoaug.evaluation.comparison.summary import summarise

    asked = asked_before(plan.folder)
    names: list[str] = []
    for reference in asked["references"]:
        everything = whole(plan, asked, reference)
        summary = summarise(everything)
        summary, files = _write_latest(everything, summary, first=reference == asked["reference"])
        names += [file.name for file in files]
        if reference == (further or asked["reference"]):
            shown = summary
    show(shown)
    return names


def _plan(given: Mapping[str, Any]) -> Plan:
    """What is asked for."""
    from monai_autoaug.data import read_datalist
    from monai_autoaug.engines.options import find_device
    from monai_autoaug.errors import ConfigError, did_you_mean
    from monai_autoaug.evaluation.comparison import Setting, plan

    for name in ("data", "methods"):
        if not given[name]:
            raise ConfigError(f"which {name}? Give --{name}; monai-autoaug compare --help shows how")
    if given["equal"] not in ("iterations", "time"):
        choices = ("iterations", "time")
        raise ConfigError(
            f"--equal must be iterations or time, got {given['equal']!r}{did_you_mean(given['equal'], choices)}"
        )
    find_device(given["device"])
    setting = Setting(
        host=given["host"], options=_host_options(given), test_cases=_amount("--test-cases", given["test_cases"]),
        validation_cases=_amount("--validation-cases", given["validation_cases"]),
        unlabelled_cases=given["unlabelled_cases"], split_seed=given["split_seed"], test_time=given["test_time"],
        tolerance=given["tolerance"],
    )  # fmt: skip
    return plan(
        read_datalist(given["data"]), given["output"], setting, arms=words(given["methods"]),
        counts=words(given["cases"]), seeds=seeds(given["seeds"]), reference=given["reference"],
        equal_time=given["equal"] == "time", unlabelled=given["unlabelled"],
    )  # fmt: skip


def _host_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of all trainings, by the host's names."""
    from monai_autoaug.errors import ConfigError

    try:
        options = key_values(given["option"])
    except ValueError as error:
        raise ConfigError(f"--option: {error}") from error
    names = {"epochs": "epochs", "iterations": "iterations_per_epoch" if given["host"] == "nnunet" else "iterations"}
    for name, own in names.items():
        if given[name] is not None:
            if own in options:
                raise ConfigError(f"--{name} and --option {own}= are one option; give one of them")
            options[own] = given[name]
    if given["amp"] is not None and given["host"] == "nnunet":
        raise ConfigError("--amp is of host monai; with nnU-Net --option precision= says it (a GPU: float16)")
    precision = chosen_precision(options.get("precision"), given["amp"])
    return options if precision is None else options | {"precision": precision}


def _amount(option: str, text: Any) -> int | float:
    """A number of cases, or a share of them."""
    from monai_autoaug.errors import ConfigError

    try:
        return int(text) if str(text).isdigit() else float(text)
    except ValueError as error:
        raise ConfigError(f"{option} must be a number of cases, or a share of them below 1; got {text!r}") from error


def _write_latest(plan: Plan, summary: Summary, *, first: bool = True) -> tuple[Summary, list[Path]]:
    """Write what is known; again if others have done more meanwhile, so that no table is replaced by an older one."""
    from monai_autoaug.evaluation.comparison.summary import summarise

    while True:
        files = write(plan, summary, first=first)
        newer = summarise(plan) if summary.done < summary.total else summary
        if newer.done <= summary.done:
            return summary, files
        summary = newer


def write(plan: Plan, summary: Summary, *, first: bool = True) -> list[Path]:
    """Write the tables and the page into the comparison's folder.

    Args:
        plan: of the comparison.
        summary: what is known of it.
        first: whether its reference is the comparison's first one; files of others have it in their names.
    """
    import json

    from monai_autoaug.evaluation.comparison import tables
    from monai_autoaug.evaluation.comparison.cells import file_name
    from monai_autoaug.report.comparison_page import page
    from monai_autoaug.writing import write_text

    by = "" if first else f"_against_{file_name(plan.reference)}"
    texts = {
        f"comparison{by}.html": page(summary), f"table{by}.md": tables.markdown(summary),
        f"table{by}.csv": tables.summary_csv(summary),
        **({"cases.csv": tables.cases_csv(plan)} if first else {}),  # no reference is in them
        f"summary{by}.json": json.dumps(summary.to_dict(), indent=1, allow_nan=False) + "\n",
    }  # fmt: skip
    return [write_text(plan.folder / name, text) for name, text in texts.items()]


def show(summary: Summary) -> None:
    """Print what is known: for each number of training cases the verdicts, then the other metrics, then notes."""
    from rich.markup import escape
    from rich.table import Table

    from monai_autoaug.commands.console import console
    from monai_autoaug.evaluation.comparison import tables

    styles = {"better": "green", "worse": "red", "none": "yellow", "reference": "bold", "unknown": "dim"}
    for cases, equal, rows in tables.groups(summary):
        head, texts = tables.columns(rows), list(tables.lines(rows))
        verdict, inner = head.index("verdict"), slice(2, head.index("rank"))
        first = [0, 1, verdict, head.index("rank"), *range(verdict + 1, len(head))]
        second = [0, *range(*inner.indices(len(head)))]
        for places, title in ((first, tables.title(summary, cases, equal)), (second, "")):
            table = Table(title=title or None, title_justify="left", title_style="bold")
            for place in places:
                table.add_column(escape(head[place]), justify="left" if place in (0, verdict) else "right")
            for row, text in zip(rows, texts, strict=True):
                cells = [escape(text[place]) for place in places]
                if verdict in places:
                    cells[places.index(verdict)] = f"[{styles[row.kind]}]{escape(row.verdict)}[/]"
                table.add_row(*cells)
            console.print(table)
    if summary.done < summary.total:
        console.print(f"{summary.done} of {summary.total} cells are done", style="yellow")
    for note in summary.notes:
        console.print(note, style="dim", markup=False)


def _show_arms(host: str) -> None:
    """All arms of a host and what they are."""
    from rich.markup import escape
    from rich.table import Table

    from monai_autoaug.commands.console import console
    from monai_autoaug.evaluation.comparison import known_arms

    table = Table("arm", "what it is", box=None)
    for name, arm in known_arms(host).items():
        table.add_row(escape(name), escape(arm.what))
    console.print(table)
