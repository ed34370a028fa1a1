# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A batch is cut, cropped and moved as a whole, in 2D as in 3D."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from monai_autoaug.data import Batch


def batch(shape: tuple[int, ...], **options: object) -> Batch:
    image, label = torch.randn(3, 2, *shape), torch.rand(3, 4, *shape)
    fields = {"valid": torch.ones(3, 1, *shape), "extra": torch.rand(3, 1, *shape), "mask": torch.ones(3, 2, *shape)}
    return Batch(image, label, **fields, classes=torch.arange(3), case=("a", "b", "c"), spacing=torch.ones(3, 2),
                 **options)  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 10)])
def test_a_batch_has_no_margin_unless_it_is_given(shape: tuple[int, ...]) -> None:
    plain = batch(shape)
    assert plain.margin == (0,) * len(shape)
    assert torch.equal(plain.cropped().image, plain.image)
    assert replace(plain, target=1).margin == plain.margin
    assert plain.rows(slice(0, 2)).margin == plain.margin


@pytest.mark.parametrize(("shape", "margin"), [((8, 6), (2, 1)), ((8, 6, 10), (2, 0, 3))])
def test_the_margin_is_cut_off_everything(shape: tuple[int, ...], margin: tuple[int, ...]) -> None:
    wide = batch(shape, margin=margin)
    crop = wide.cropped()
    inner = tuple(slice(m, n - m) for m, n in zip(margin, shape, strict=True))
    for name in ("image", "label", "valid", "extra", "mask"):
        assert torch.equal(getattr(crop, name), getattr(wide, name)[(slice(None), slice(None), *inner)])
    assert crop.margin == (0,) * len(shape)
    assert wide.rows(torch.tensor([2, 0])).case == ("c", "a")
    assert wide.rows(torch.tensor([2, 0])).margin == margin
