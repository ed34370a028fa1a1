# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Meta-validation cases of a fold: drawn from its training cases or named, and never its validation cases."""

from __future__ import annotations

from typing import Any

import pytest

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.split import meta_split


def test_the_split_is_of_training_cases_alone() -> None:
    training, validation = [f"t{i}" for i in range(8)], ["v0", "v1"]
    given: dict[str, Any] = {"training": training, "validation": validation, "known": {*training, *validation, "other"}}
    for wanted, count in ((0.25, 2), (3, 3), (0.01, 1), (["t3", "other"], 2)):
        split = meta_split(wanted, seed=1, **given)
        meta, rest = split.meta(0), split.training(0)
        assert len(meta) == count
        assert not {*meta, *rest} & set(validation)
        assert not set(meta) & set(rest)
        assert {*meta, *rest} >= set(training)
        assert split.meta(5) == meta  # fixed
        assert meta_split(wanted, seed=1, **given) == split
    assert meta_split(3, seed=1, **given).meta(0) != meta_split(3, seed=2, **given).meta(0)
    again = meta_split(3, seed=1, resampled=True, **given)
    assert len({again.meta(epoch) for epoch in range(6)}) > 3
    assert {c for epoch in range(20) for c in again.training(epoch)} == set(training)
    # a split whose validation cases train as well: those are left alone, unless they are all there is (fold "all")
    given["training"] = [*training, "v0"]
    assert "v0" not in {*meta_split(3, seed=1, **given).meta(0), *meta_split(3, seed=1, **given).training(0)}
    everything = meta_split(1, training=validation, validation=validation, known=validation, seed=0)
    assert sorted([*everything.meta(0), *everything.training(0)]) == validation


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (4, "leaves none to train on"),
        (0.99, "leaves none to train on"),
        (["c9"], "not preprocessed: c9"),
        (["v0"], "names validation cases of this fold: v0"),
        (["t0", "t1", "t2", "t3"], "leave some to train on"),
    ],
)
def test_splits_that_can_not_be_are_refused(wanted: Any, message: str) -> None:
    training = ["t0", "t1", "t2", "t3"]
    with pytest.raises(ConfigError, match=message):
        meta_split(wanted, training=training, validation=["v0"], known={*training, "v0"}, seed=0)
