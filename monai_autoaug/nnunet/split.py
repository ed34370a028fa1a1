# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which of a fold's training cases train the network and which judge what is learned beside it (meta-validation).

The fold's validation cases are never among them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from monai_autoaug.data import MetaSplit
from monai_autoaug.errors import ConfigError

__all__ = ["META_SPLITS", "meta_split"]

META_SPLITS = ("fixed", "resampled")


def meta_split(
    wanted: int | float | Sequence[str],
    *,
    training: Sequence[str],
    validation: Collection[str],
    known: Collection[str],
    seed: int,
    resampled: bool = False,
) -> MetaSplit[str]:
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

    >>> meta_split(0.5, training=["a", "b"], validation=["c"], known="abc", seed=0).held
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
) -> MetaSplit[str]:
    listed, there, held_out, own = set(names), set(known), set(validation), set(pool)
    unknown = [n for n in names if n not in there]
    if unknown:
        raise ConfigError(
            f"autoaug option meta_cases names cases that are not preprocessed: {', '.join(unknown[:10])}; correct the"
            " names, or add the cases to the data set and preprocess it again"
        )
    held = [n for n in names if n in held_out and n not in own]
    if held:
        raise ConfigError(
            f"autoaug option meta_cases names validation cases of this fold: {', '.join(held[:10])}; learning from them"
            " would make the validation too good. Name training cases, or cases that this fold doesn't use"
        )
    rest = tuple(c for c in pool if c not in listed)
    if not rest:
        raise ConfigError("autoaug option meta_cases names all training cases of this fold; leave some to train on")
    return MetaSplit(rest, seed=seed, listed=names)
