# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a comparison was asked for, by all calls of the command with its folder together: ``command.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from monai_autoaug.data import Case
    from monai_autoaug.evaluation.comparison import Plan

__all__ = ["FILE", "again", "asked_before", "at_equal_time", "joined", "keep", "reference_of", "said", "seeds", "whole",
           "words"]  # fmt: skip

FILE = "command.json"
_POLL = 0.05  # seconds between two attempts to write where others write, too


def words(text: Any) -> list[str]:
    """What commas separate; not those within brackets, of an arm's options.

    >>> words("none, joint_policy:without=[noise, gamma]")
    ['none', 'joint_policy:without=[noise, gamma]']
    """
    found, depth, word = [], 0, ""
    for letter in f"{text},":
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0:
            found.append(word.strip())
            word = ""
        else:
            word += letter
    return [word for word in found if word]


def seeds(text: Any) -> list[int]:
    """How many seeds there are, or which.

    Raises:
        ConfigError: the text says neither.

    >>> seeds("3"), seeds("4,7"), seeds("5,")
    ([0, 1, 2], [4, 7], [5])
    """
    from monai_autoaug.errors import ConfigError

    parts = str(text).split(",")
    if not all(word.strip().isdigit() for word in parts if word.strip()) or not any(word.strip() for word in parts):
        raise ConfigError(f"--seeds must be a number of seeds, or seeds separated by commas; got {text!r}")
    numbers = [int(word) for word in parts if word.strip()]
    if len(parts) > 1:
        return numbers
    if numbers[0] < 1:
        raise ConfigError("--seeds must be at least 1; got 0")
    return list(range(numbers[0]))


def asked_before(folder: Path) -> dict[str, Any]:
    """What a comparison was asked for; empty where none has begun.

    Args:
        folder: of the comparison.

    Raises:
        ConfigError: the file is damaged.
    """
    from monai_autoaug.evaluation.comparison.setting import read_kept

    return read_kept(folder / FILE) if (folder / FILE).exists() else {}


def joined(kept: Mapping[str, Any], now: Mapping[str, Any], further: str | None = None) -> dict[str, Any]:
    """What was asked for by now: arms, numbers of cases and seeds of all calls, other options as they are now.

    Args:
        kept: what was asked for before; empty: nothing was.
        now: the options of this call, with the reference that they come to.
        further: another reference that this call has asked for.

    >>> first = joined({}, {"methods": "none,random", "seeds": "2", "cases": "10", "reference": "none"})
    >>> second = {"methods": "random,bilevel", "seeds": "3,", "cases": "10,all", "reference": "random"}
    >>> found = joined(first, second, "random")
    >>> found["methods"], found["seeds"], found["cases"], found["reference"], found["references"]
    ('none,random,bilevel', '0,1,3,', '10,all', 'none', ['none', 'random'])
    """
    found = {**kept, **now}
    found["reference"] = kept.get("reference") or now["reference"]
    references = [*kept.get("references", ()), found["reference"], *([] if further is None else [further])]
    found["references"] = list(dict.fromkeys(references))
    if not kept:
        return found
    for name in ("methods", "cases"):
        found[name] = ",".join(dict.fromkeys(words(kept[name]) + words(now[name])))
    numbers = dict.fromkeys(seeds(kept["seeds"]) + seeds(now["seeds"]))
    found["seeds"] = "".join(f"{number}," for number in numbers)
    found["unlabelled"] = now.get("unlabelled") or kept.get("unlabelled")
    found["equal"] = "time" if "time" in (kept.get("equal"), now.get("equal")) else now.get("equal")
    return found


def keep(folder: Path, now: Mapping[str, Any], further: str | None = None) -> None:
    """Add what is asked for now to what was.

    Args:
        folder: of the comparison, which has begun.
        now: JSON values, see `joined`.
        further: see `joined`.
    """
    from monai_autoaug.writing import write_text

    with _alone(folder):
        kept = asked_before(folder)
        found = joined(kept, now, further)
        if found != kept:
            write_text(folder / FILE, json.dumps(found, indent=1) + "\n")


def said(ctx: click.Context, name: str) -> bool:
    """Whether an option was given in this call."""
    from click.core import ParameterSource

    return ctx.get_parameter_source(name) != ParameterSource.DEFAULT


def again(ctx: click.Context, given: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a comparison was begun with, but for those that are given now."""
    from monai_autoaug.errors import ConfigError

    if not kept:
        raise ConfigError(
            f"{given['output']}: no comparison to go on with; give the folder of one (--output), or its options as when"
            " it was begun"
        )
    found = {n: v for n, v in kept.items() if n in given and not said(ctx, n)}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if found.get(name) is not None and isinstance(parameter.type, click.Path):
            found[name] = Path(found[name])
    return {**given, **found}


def reference_of(ctx: click.Context, given: Mapping[str, Any], kept: Mapping[str, Any]) -> str | None:
    """The reference that is asked for: unless it is said, the comparison's first one, if this call has that arm."""
    if said(ctx, "reference"):
        reference: str | None = given["reference"]
        return reference
    first = kept.get("reference")
    return first if first in words(given["methods"] or "") else None


def at_equal_time(ctx: click.Context, plan: Plan, kept: Mapping[str, Any]) -> Plan:
    """The plan; at equal time arms train as long as the comparison's first reference, and no other one.

    Raises:
        ConfigError: equal time with another one was asked for.
    """
    from monai_autoaug.errors import ConfigError

    first = kept.get("reference", plan.reference)
    if not plan.equal_time or plan.reference == first:
        return plan
    if said(ctx, "equal"):
        raise ConfigError(
            f"--equal time: in {plan.folder} arms take the time of {first}, not of {plan.reference}; have {first} among"
            " --methods and leave --reference out, or choose another folder with --output"
        )
    return replace(plan, equal_time=False)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process, on any machine, adds to what was asked for."""
    from monai_autoaug.evaluation.comparison.claims import Claim

    while (claim := Claim.take(folder)) is None:
        time.sleep(_POLL)
    try:
        yield
    finally:
        claim.release()


def whole(plan: Plan, asked: Mapping[str, Any], reference: str) -> Plan:
    """A plan with everything that was asked for, of which this call may have asked for a part.

    Args:
        plan: of this call.
        asked: by all calls.
        reference: one of those that were asked for; at equal time only the first one has been.
    """
    from monai_autoaug.evaluation.comparison.arms import Arm

    everything = replace(
        plan,
        arms=tuple(Arm.find(name, plan.setting.host) for name in words(asked["methods"])),
        counts=tuple(dict.fromkeys(plan.parts.count(word) for word in words(asked["cases"]))),
        seeds=tuple(seeds(asked["seeds"])),
        reference=reference,
        equal_time=asked["equal"] == "time" and reference == asked["reference"],
    )
    if plan.unlabelled or not everything.unlabelled_needed():
        return everything
    return replace(everything, unlabelled=_images(everything, asked["unlabelled"]))


def _images(plan: Plan, folder: str | None) -> tuple[Case, ...]:
    """What other calls' arms learn from, which is only counted here, and may lie on their machine alone."""
    from monai_autoaug.errors import DataError
    from monai_autoaug.evaluation.comparison.planning import unlabelled_images

    try:
        return unlabelled_images(plan.datalist, plan.parts, plan.arms, None if folder is None else Path(folder))
    except DataError as error:
        click.secho(f"unlabelled images are not counted on the page: {error}", fg="yellow", err=True)
        return ()
