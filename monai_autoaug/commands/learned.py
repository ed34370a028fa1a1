# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a command says of learned policies: what is decided of each class, and plainly so where nothing is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from monai_autoaug.policies import Policies

__all__ = ["policy_table", "show_policies"]

_VIEWS = 6  # that are named


def policy_table(found: Policies, no_ops: Collection[str] = ()) -> Table:
    """For each class the operations that have become more probable and are decided, with both probabilities.

    Args:
        found: what `policies.load` gave, with a training policy.
        no_ops: names of operations that the network can't see; they are told apart, not here.
    """
    from monai_autoaug.policies.evidence import DECIDED
    from monai_autoaug.report import policy_rows, readable

    table = Table(title="learned policy", title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("class")
    table.add_column("rose and is decided (probability at the start and now)")
    rows = policy_rows(found, no_ops)
    for name in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == name]
        risen = sorted((row for row in own if row.rose and row.decided and not row.no_op),
                       key=lambda row: (row.start or 0.0) - row.probability)  # fmt: skip
        told = [f"{readable(row.operation)}: {row.start:.2f} to {row.probability:.2f}" for row in risen]
        if found.seen is None:
            table.add_row(escape(name), "given, not learned", style="dim")
        else:
            table.add_row(escape(name), escape(", ".join(told)) or "no operation is decided")
    if found.seen is not None:
        table.caption = f"decided: better than the rest of its cascade by more than {DECIDED:g} standard errors"
    return table


def show_policies(found: Policies, no_ops: Collection[str], console: Console) -> None:
    """Print what was learned, by the names that people say (`report.readable`).

    Args:
        found: what `policies.load` gave.
        no_ops: names of operations that the network can't see.
        console: where to.
    """
    from monai_autoaug.report import readable

    if found.training is not None:
        console.print(policy_table(found, no_ops))
        unseen = _unseen(found, no_ops)
        if unseen:
            console.print(
                f"no effect on this network, whatever the probability: {', '.join(unseen)} (option without leaves such"
                " cascades and operations out)", style="dim", markup=False,
            )  # fmt: skip
    if found.test_time is not None:
        views, weights = found.test_time.top(found.test_time.z)
        named = [f"{readable(o.name)}: {w:.2f}" for o, w in zip(views, weights.tolist(), strict=True)]
        more = f" and {len(named) - _VIEWS} lighter ones" if len(named) > _VIEWS else ""
        console.print(
            f"averaged at test time, with their weights: {', '.join(named[:_VIEWS])}{more}", style="dim", markup=False
        )


def _unseen(found: Policies, no_ops: Collection[str]) -> list[str]:
    """Operations without effect; where a whole cascade has none, its name. In brackets what options call them."""
    from monai_autoaug.report import readable, readable_cascade

    assert found.training is not None  # noqa: S101  # for the type checker
    told: list[str] = []
    for cascade in found.training.cascades:
        names = [o.name for o in cascade.operations[1:]]
        blind = [name for name in names if name in no_ops]
        if blind == names:
            told.append(f"{readable_cascade(cascade.name)} ({cascade.name})")
        else:
            told += [f"{readable(name)} ({name})" for name in blind]
    return told
