# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What all arms of a comparison have in common, and which cases they train on and are judged by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import monai_autoaug
from monai_autoaug.data import Case, DataList
from monai_autoaug.data.contents import content_hash
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.evaluation.comparison.arms import HOSTS
from monai_autoaug.evaluation.metrics import decided
from monai_autoaug.reading import read_json

__all__ = ["Parts", "Setting", "check_same", "digest", "fingerprint", "read_kept"]

TEST_TIMES = ("own", "none")
_WHY = {"data": ", so the data have changed since, or an older version, which told them otherwise, wrote that"}
# of the hosts' options: what the comparison says itself
_MONAI_OWN = {"data", "output", "method", "method_options", "seed", "split", "split_seed", "train_cases",
              "validation_cases", "meta_list", "unlabelled", "device", "workers", "cache"}  # fmt: skip
_NNUNET_OWN = {"method", "method_options", "seed"}


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison have in common.

    Args:
        host: "monai" or "nnunet".
        options: of all trainings: `engines.TrainOptions` of host "monai"; of host "nnunet" the trainers'
            (`nnunet.options.Options`) and what plans hold: ``configuration``, ``patch_size``.
        test_cases: number of the cases that no arm looks at, or their share of all labelled cases.
        validation_cases: of those that validate; only arms that choose their epoch on them look at them.
        unlabelled_cases: cases whose images, without their labels, are there for arms that learn from such.
        split_seed: of these choices.
        test_time: "own": each arm averages at test time the views that it comes with (nnU-Net's mirroring, learned
            views); "none": every image is predicted once.
        tolerance: of the surface Dice in mm.

    Raises:
        ConfigError: an option is unknown or out of range.

    >>> Setting(options={"epoch": 3})
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: there is no option 'epoch' of host monai ...; did you mean 'epochs'?
    """

    host: str = "monai"
    options: Mapping[str, Any] = field(default_factory=dict)
    test_cases: int | float = 0.25
    validation_cases: int | float = 2
    unlabelled_cases: int = 0
    split_seed: int = 0
    test_time: str = "own"
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        known = host_options(self.host)
        for name in self.options:
            if name not in known:
                raise ConfigError(
                    f"there is no option {name!r} of host {self.host} for all arms; there are {', '.join(known)}"
                    f"{did_you_mean(name, known)}"
                )
        if self.test_time not in TEST_TIMES:
            raise ConfigError(
                f"test_time must be one of {', '.join(TEST_TIMES)}, got {self.test_time!r}"
                f"{did_you_mean(self.test_time, TEST_TIMES)}"
            )
        for name in ("test_cases", "validation_cases"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (value >= 1 if isinstance(value, int) else 0 < value < 1):
                raise ConfigError(f"{name} must be a number of cases, or a share of them below 1, got {value!r}")
        for name in ("unlabelled_cases", "split_seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        decided(self.tolerance)

    def to_dict(self, data: str) -> dict[str, Any]:
        """JSON values, with the version that makes the results and the fingerprint of the data."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain | {"data": data, "version": monai_autoaug.__version__}


def host_options(host: str) -> tuple[str, ...]:
    """The options that all arms of a host can have in common.

    Args:
        host: "monai" or "nnunet".

    Raises:
        ConfigError: there is no such host.
    """
    if host == "monai":
        return tuple(f.name for f in fields(TrainOptions) if f.name not in _MONAI_OWN)
    if host == "nnunet":
        from monai_autoaug.nnunet.options import Options

        return (*(f.name for f in fields(Options) if f.name not in _NNUNET_OWN), "configuration", "patch_size")
    raise ConfigError(f"there is no host {host!r}; choose one of {', '.join(HOSTS)}{did_you_mean(host, HOSTS)}")


@dataclass(frozen=True)
class Parts:
    """Which cases are for what; all of them drawn by names and seeds alone, so that every process finds the same.

    Args:
        test: that no arm looks at.
        validation: see `Setting`.
        unlabelled: see `Setting`.
        pool: of which training cases are drawn.
        seed: of the draws.

    >>> cases = [Case(f"case_{i}", ()) for i in range(10)]
    >>> parts = Parts.of(cases, Setting(test_cases=3, validation_cases=1))
    >>> [len(part) for part in (parts.test, parts.validation, parts.pool)]
    [3, 1, 6]
    >>> set(parts.train(2, 0)) < set(parts.train(4, 0)), parts.train(2, 0) == parts.train(2, 1)
    (True, False)
    """

    test: tuple[str, ...]
    validation: tuple[str, ...]
    unlabelled: tuple[str, ...]
    pool: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, cases: Sequence[Case], setting: Setting) -> Parts:
        """The parts of a data set's labelled cases.

        Raises:
            ConfigError: there are too few.
        """
        order = _shuffled([case.name for case in cases], setting.split_seed)
        wanted = [_number(setting.test_cases, len(order)), _number(setting.validation_cases, len(order))]
        wanted.append(setting.unlabelled_cases)
        if sum(wanted) >= len(order):
            raise ConfigError(
                f"no training case is left: {len(order)} labelled cases, {wanted[0]} to test with, {wanted[1]} to"
                f" validate with, {wanted[2]} taken as unlabelled; lower --test-cases, --validation-cases or"
                " --unlabelled-cases"
            )
        bounds = [sum(wanted[:i]) for i in range(4)]
        test, validation, unlabelled, pool = (
            tuple(order[a:b]) for a, b in zip(bounds, [*bounds[1:], len(order)], strict=True)
        )
        return cls(test, validation, unlabelled, pool, setting.split_seed)

    def train(self, count: int, seed: int) -> tuple[str, ...]:
        """The training cases of a seed: of fewer, part of those of more."""
        return tuple(_shuffled(self.pool, self.seed, seed)[:count])

    def count(self, text: str | int) -> int:
        """How many training cases are asked for; "all": all that are left.

        Raises:
            ConfigError: that is no number, or more than there are.
        """
        if text == "all":
            return len(self.pool)
        if not str(text).isdigit() or int(text) < 1:
            raise ConfigError(f"--cases must be numbers of training cases, or all; got {text!r}")
        if int(text) > len(self.pool):
            raise ConfigError(
                f"{text} training cases can't be had: {len(self.test)} cases are kept to test with,"
                f" {len(self.validation)} to validate with"
                + (f", {len(self.unlabelled)} as unlabelled" if self.unlabelled else "")
                + f", which leaves {len(self.pool)}"
            )
        return int(text)


def _shuffled(names: Sequence[str], *seeds: int) -> list[str]:
    """In an order that depends on names and seeds alone."""
    key = ":".join(map(str, seeds))
    return sorted(names, key=lambda name: (hashlib.sha256(f"compare:{key}:{name}".encode()).digest(), name))


def _number(value: int | float, total: int) -> int:
    return value if isinstance(value, int) else max(1, round(value * total))


def fingerprint(datalist: DataList) -> str:
    """Of a data set: what it declares, its cases and the contents of their files; wherever it lies.

    Args:
        datalist: the data set.

    Raises:
        OSError: a file can't be read.
    """
    cases = sorted(datalist.training, key=lambda case: case.name)
    content = [datalist.channels, sorted(datalist.labels.items()), datalist.ignore_label, digest(cases)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def digest(cases: Sequence[Case]) -> str:
    """Of cases: their names and the contents of their files, each read once, to its end.

    Args:
        cases: in any order.

    Raises:
        OSError: a file can't be read.
    """
    found = hashlib.blake2b(digest_size=8)
    for case in sorted(cases, key=lambda case: case.name):
        found.update(json.dumps([case.name, *map(content_hash, case.files)]).encode())
    return found.hexdigest()


def read_kept(path: Path) -> dict[str, Any]:
    """A JSON object of a comparison's folder.

    Args:
        path: the file.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        kept = read_json(path)
        if not isinstance(kept, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: can't be read ({error}); remove it, or choose another folder with --output"
        ) from error
    return kept


def check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    """See that a file holds what is wanted.

    Args:
        path: a JSON object.
        wanted: JSON values.

    Raises:
        ConfigError: it holds something else; the message names what differs.
    """
    kept = read_kept(path)
    named = [*wanted, *(name for name in kept if name not in wanted)]
    changed = [
        f"{name}: {_short(kept.get(name))} there, {_short(wanted.get(name))} here{_WHY.get(name, '')}"
        for name in named
        if kept.get(name) != wanted.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{path}: holds results of another configuration, which are not mixed with these ({'; '.join(changed)}). To"
            " do: give the options as they were, or choose another folder with --output"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
