# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which of a fold's training cases train the network and which judge what is learned beside it (meta-validation).

The fold's validation cases are never among them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from monai_autoaug.errors import ConfigError

__all__ = ["META_SPLITS", "MetaSplit", "TrainingCases", "meta_split"]

META_SPLITS = ("fixed", "resampled")
_KEY = 0x6D657461  # "meta": no other random numbers of the seed are these


@dataclass(frozen=True)
class MetaSplit:
    """A split of cases by seed and epoch: the same on all ranks, in all workers and in a resumed run.

    Args:
        cases: names, of which some are drawn; none if ``listed`` says which.
        count: how many are drawn for meta-validation.
        seed: of the run.
        resampled: draw anew for each epoch, so that no case is lost to training.
        listed: names of the meta-validation cases, which then aren't drawn; ``cases`` all train.

    >>> split = MetaSplit(("a", "b", "c", "d"), count=1, seed=0)
    >>> split.training(0), split.meta(0), split.meta(1)
    (('b', 'c', 'd'), ('a',), ('a',))
    """

    cases: tuple[str, ...]
    count: int = 0
    seed: int = 0
    resampled: bool = False
    listed: tuple[str, ...] = ()

    def meta(self, epoch: int) -> tuple[str, ...]:
        """The meta-validation cases of an epoch."""
        if self.listed:
            return self.listed
        key = np.random.SeedSequence((_KEY, self.seed, epoch if self.resampled else 0))
        drawn = np.random.default_rng(key).choice(len(self.cases), self.count, replace=False)
        return tuple(self.cases[i] for i in sorted(drawn.tolist()))

    def training(self, epoch: int) -> tuple[str, ...]:
        """The cases that train the network in an epoch."""
        held = set(self.meta(epoch))
        return tuple(c for c in self.cases if c not in held)


@dataclass(frozen=True)
class TrainingCases:
    """The cases that batch ``number`` of the training stream is drawn from; workers are sent this.

    Args:
        split: by epoch.
        length: batches an epoch.
    """

    split: MetaSplit
    length: int

    def __call__(self, number: int) -> tuple[str, ...]:
        """Of a batch."""
        return self.split.training(number // self.length)


def meta_split(
    wanted: int | float | Sequence[str],
    *,
    training: Sequence[str],
    validation: Collection[str],
    known: Collection[str],
    seed: int,
    resampled: bool = False,
) -> MetaSplit:
    """What the options ``meta_cases`` and ``meta_split`` mean for a fold.

    Args:
        wanted: number or share of the training cases, or names.
        training: the fold's training cases.
        validation: its validation cases; where they are the training cases (fold "all") they may be drawn.
        known: all cases that have been preprocessed.
        seed: of the run.
        resampled: see `MetaSplit`.

    Raises:
        ConfigError: nothing is left to train on, or a name is unknown or validates.

    >>> meta_split(0.5, training=["a", "b"], validation=["c"], known="abc", seed=0).count
    1
    """
    pool = sorted(set(training) - set(validation)) or sorted(set(training))
    if not isinstance(wanted, int | float):
        return _listed(tuple(wanted), pool, validation, known, seed)
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(pool)))
    if count >= len(pool):
        raise ConfigError(
            f"autoaug option meta_cases: {wanted} of {len(pool)} training cases of this fold leaves none to train on;"
            f" give a number from 1 to {len(pool) - 1}, a share, or a list of other cases"
        )
    return MetaSplit(tuple(pool), count, seed, resampled)


def _listed(
    names: tuple[str, ...], pool: Sequence[str], validation: Collection[str], known: Collection[str], seed: int
) -> MetaSplit:
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError(
            f"autoaug option meta_cases names cases that are not preprocessed: {', '.join(unknown[:10])}; correct the"
            " names, or add the cases to the data set and preprocess it again"
        )
    held = [n for n in names if n in validation and n not in pool]
    if held:
        raise ConfigError(
            f"autoaug option meta_cases names validation cases of this fold: {', '.join(held[:10])}; learning from them"
            " would make the validation too good. Name training cases, or cases that this fold doesn't use"
        )
    rest = tuple(c for c in pool if c not in names)
    if not rest:
        raise ConfigError("autoaug option meta_cases names all training cases of this fold; leave some to train on")
    return MetaSplit(rest, seed=seed, listed=names)
