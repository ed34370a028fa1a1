# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pairs of patches of one class from two subjects, and labels as maps."""

from __future__ import annotations

import torch

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.pairs import label_maps, partners


def batch(cases: str, classes: list[int]) -> Batch:
    n = len(classes)
    return Batch(torch.zeros(n, 1, 4, 4), torch.zeros(n, 3, 4, 4), case=tuple(cases), classes=torch.tensor(classes))


def drawn(first: Batch, pool: Batch) -> dict[int, set[int]]:
    """Partners of each sample that has one."""
    generator, found = torch.Generator().manual_seed(0), dict[int, set[int]]()
    for _ in range(50):
        for row, other in zip(*partners(first, pool, generator), strict=True):
            found.setdefault(int(row), set()).add(int(other))
    return found


def test_another_subject_of_the_same_class() -> None:
    assert drawn(batch("aab", [0, 1, 0]), batch("abcc", [0, 0, 0, 1])) == {0: {1, 2}, 1: {3}, 2: {0, 2}}


def test_a_sample_without_such_a_partner_is_left_out_where_others_have_one() -> None:
    """Else a discriminator would learn that images of two classes belong together."""
    assert drawn(batch("aab", [0, 1, 2]), batch("abcc", [0, 0, 0, 1])) == {0: {1, 2}, 1: {3}}
    assert drawn(batch("ab", [0, 0]), batch("aa", [0, 1])) == {1: {0}}  # another subject comes before the class


def test_without_the_class_another_subject_and_without_another_subject_another_patch() -> None:
    assert drawn(batch("a", [2]), batch("abc", [2, 0, 1])) == {0: {1, 2}}
    assert drawn(batch("a", [2]), batch("aa", [0, 2])) == {0: {1}}


def test_images_of_one_class_are_pairs() -> None:
    label = torch.nn.functional.one_hot(torch.tensor([0, 2, 1]), 3).float()
    images = Batch(torch.zeros(3, 1, 4, 4), label, case=("a", "b", "c"))
    pool = Batch(torch.zeros(3, 1, 4, 4), label.flip(0), case=("d", "e", "f"))
    assert drawn(images, pool) == {0: {2}, 1: {1}, 2: {0}}


def test_cases_without_names_differ() -> None:
    nameless = Batch(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))
    assert drawn(nameless, nameless) == {0: {0, 1}, 1: {0, 1}}


def test_labels_as_maps() -> None:
    image, volume = torch.zeros(2, 1, 4, 5, 6), torch.rand(2, 3, 4, 5, 6)
    assert label_maps(volume, image) is volume
    maps = label_maps(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), image)
    assert maps.shape == (2, 2, 4, 5, 6)
    assert maps.flatten(2).std() > 0
    assert bool((maps[0, 0] == 1).all())
    assert bool((maps[0, 1] == 0).all())
