# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Fine-tuning draws from the cases that are set apart: when, how many patches, and which."""

from __future__ import annotations

from dataclasses import replace

import torch
from method_helpers import Fixed

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.meta_use import MetaUse


class Streams(Fixed):
    """Batches of different size, whose patches are numbered."""

    def __init__(self, train: int, meta: int) -> None:
        super().__init__(size=max(train, meta), shape=(4, 4, 4))
        number = torch.arange(max(train, meta))
        whole = replace(self.batches["train"], classes=number, target=object())
        self.batches = {"train": whole.rows(slice(train)), "meta": whole.rows(slice(meta))}


def drawn(train: int, meta: int, step: int = 99) -> Batch:
    return MetaUse(100, learns=False, fine_tune=0.25).batch(Streams(train, meta), step)


def numbers(batch: Batch) -> list[int]:
    assert batch.classes is not None
    assert batch.case == tuple(str(k) for k in batch.classes.tolist())
    assert len(batch.image) == len(batch.label) == len(batch.case)
    return batch.classes.tolist()


def test_as_many_patches_as_a_training_batch_has_from_all_over_the_other() -> None:
    """Hosts put patches on foreground last; of two, one is of either kind."""
    assert numbers(drawn(2, 8)) == [0, 7]
    assert numbers(drawn(4, 8)) == [0, 2, 5, 7]
    assert numbers(drawn(1, 8)) == [0]
    assert numbers(drawn(8, 8)) == list(range(8))
    assert numbers(drawn(5, 3)) == [0, 1, 2]  # there are no more


def test_the_last_share_of_the_steps() -> None:
    streams = Streams(2, 2)
    use = MetaUse(100, learns=False, fine_tune=0.25)
    for step in range(100):
        use.batch(streams, step)
    assert streams.asked[:75] == ["train"] * 75
    assert streams.asked.count("meta") == 25
    assert MetaUse(None, learns=True).start is None
