# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""MONAI's and batchgenerators' transforms among the operations of a policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from batchgenerators.transforms.color_transforms import GammaTransform
from batchgenerators.transforms.spatial_transforms import MirrorTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform as MirrorTransform2
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlip,
    RandFlipd,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandSpatialCrop,
    RandZoomd,
)
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.transforms import Cascade, Operation, apply, from_batchgenerators, from_monai, training_cascades

KEYS = ["image", "label"]
OPERATIONS = [
    from_monai(RandGaussianSmooth(prob=1.0), "smooth", kind="resolution"),
    from_monai(RandGaussianNoise(prob=1.0), "noise", kind="noise"),
    from_monai(RandAdjustContrastd(["image"], prob=1.0), "contrast"),
    from_monai(
        RandAffined(KEYS, prob=1.0, rotate_range=1.0, mode="bilinear", padding_mode="zeros"), "affine", kind="spatial"
    ),
    from_monai(Compose([RandZoomd(KEYS, prob=1.0, mode="nearest"), RandFlipd(KEYS, 1.0, 0)]), "zoom", kind="spatial"),
    from_batchgenerators(GammaTransform(p_per_sample=1.0), "gamma"),
    from_batchgenerators(MirrorTransform(), "mirror", kind="spatial"),
    from_batchgenerators(ContrastTransform(BGContrast((0.7, 1.5)), True, False), "contrast2"),
    from_batchgenerators(MirrorTransform2((0, 1, 2)), "mirror2", kind="spatial"),
]


def data() -> tuple[Tensor, Tensor]:
    image = torch.randn(3, 1, 8, 8, 8)
    return image, F.one_hot((image[:, 0] > 0.3).long(), 2).movedim(-1, 1).float()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_any_transform_can_join_a_policy(operation: Operation) -> None:
    image, label = data()
    kept = image.clone(), label.clone()
    cascades = [Cascade("mine", (Operation("identity"), operation)), training_cascades()[4]]
    chosen = torch.tensor([[1, 0], [0, 0], [1, 1]])

    def run(seed: int) -> tuple[Tensor, Tensor]:
        moved, soft = apply(image, label, chosen, cascades, generator=torch.Generator().manual_seed(seed))
        assert soft is not None
        return moved, soft

    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    moved, soft = run(0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(image, kept[0])
    assert torch.equal(label, kept[1])
    assert type(moved) is Tensor
    assert moved.shape == image.shape
    assert torch.equal(moved[1], image[1])
    assert not torch.equal(moved[0], image[0]) or operation.name.startswith("mirror")
    assert torch.allclose(soft.sum(1), torch.ones_like(soft[:, 0]), atol=1e-5)
    if operation.kind != "spatial":
        assert torch.equal(soft[0], label[0])
        assert torch.equal(soft[2], label[2].flip(1))
    again = run(0)
    assert torch.equal(again[0], moved)
    assert torch.equal(again[1], soft)
    assert any(not torch.equal(run(seed)[0], moved) for seed in range(1, 8))


@pytest.mark.parametrize("name", ["mirror", "mirror2", "zoom"])
def test_the_label_moves_with_the_image(name: str) -> None:
    _, label = data()
    operation = next(o for o in OPERATIONS if o.name == name)
    cascades = [Cascade("mine", (Operation("identity"), operation))]
    chosen = torch.ones(3, 1, dtype=torch.int64)
    moved, soft = apply(label[:, 1:], label, chosen, cascades, generator=torch.Generator().manual_seed(2))
    assert soft is not None
    assert torch.equal(moved[:, 0], soft[:, 1])
    assert not torch.equal(soft, label)


def test_transforms_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="flip: a spatial transform has to move image and label alike"):
        from_monai(RandFlip(prob=1.0), "flip", kind="spatial")
    with pytest.raises(ConfigError, match="expected a transform of batchgenerators"):
        from_batchgenerators(RandFlip(prob=1.0), "flip")
    crop = from_monai(RandSpatialCrop(4, random_size=False), "crop")
    with pytest.raises(ConfigError, match="crop changes the size of a patch"):
        apply(*data(), torch.ones(3, 1, dtype=torch.int64), [Cascade("c", (Operation("identity"), crop))])
