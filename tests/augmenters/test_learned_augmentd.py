# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`LearnedAugmentd` as a MONAI user expects a dictionary transform to behave."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose

from monai_autoaug.augmenters import (
    AffineAugmenter,
    AppearanceAugmenter,
    Augmenter,
    DeformationAugmenter,
    LearnedAugmentd,
)
from monai_autoaug.errors import ConfigError, PolicyError

AFFINE = np.array([[0.0, -1.5, 0.0, 4.0], [1.0, 0.0, 0.0, -7.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


def learned(*kinds: type[Augmenter], **options: Any) -> dict[str, Augmenter]:
    """Augmenters as after training: last layers moved."""
    torch.manual_seed(1)
    made = {}
    for kind in kinds:
        augmenter = kind(3, 1, **options)
        with torch.no_grad():
            for name, parameter in augmenter.named_parameters():
                if not name.startswith("trunk"):
                    parameter += 0.1 * torch.randn_like(parameter)
        made[augmenter.kind] = augmenter
    return made


def sample(seed: int = 0) -> dict[Hashable, Any]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 6, 7, 5, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(24, 28, 20), mode="trilinear", align_corners=True)[0]
    label = (image > 0.3).to(torch.uint8) * 2 + (image < -0.3).to(torch.uint8)
    return {
        "image": MetaTensor(image, affine=torch.tensor(AFFINE)),
        "label": MetaTensor(label, affine=torch.tensor(AFFINE)),
    }


def both(**options: Any) -> LearnedAugmentd:
    return LearnedAugmentd(
        ["image", "label"], learned(AffineAugmenter, DeformationAugmenter, AppearanceAugmenter), **options
    )


def equal(a: Mapping[Hashable, Any], b: Mapping[Hashable, Any]) -> bool:
    return all(torch.equal(a[k].as_tensor(), b[k].as_tensor()) for k in ("image", "label"))


def test_set_random_state_makes_it_reproducible() -> None:
    first, second, third = both(), both(), both()
    runs = [
        [t(sample()) for _ in range(3)]
        for t in (first.set_random_state(7), second.set_random_state(7), third.set_random_state(8))
    ]
    assert all(equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not equal(runs[0][0], runs[2][0])
    assert not equal(runs[0][0], runs[0][1])


def test_geometry_dtype_and_input_are_kept() -> None:
    transform, data = both().set_random_state(0), sample()
    before = {k: v.clone() for k, v in data.items()}
    out = transform(data)
    for key in ("image", "label"):
        assert isinstance(out[key], MetaTensor)
        assert np.allclose(out[key].affine, AFFINE)
        assert out[key].shape == data[key].shape
        assert out[key].dtype == before[key].dtype
        assert torch.equal(data[key], before[key])
    assert set(out["label"].unique().tolist()) <= {0, 1, 2}
    assert not torch.equal(out["image"].as_tensor(), before["image"].as_tensor())


@pytest.mark.parametrize("kind", [AffineAugmenter, DeformationAugmenter, AppearanceAugmenter])
def test_inverse(kind: type[Augmenter]) -> None:
    transform = LearnedAugmentd(["image", "label"], learned(kind)).set_random_state(0)
    data = sample()
    moved = transform(data)
    assert [t["class"] for t in moved["image"].applied_operations] == ["LearnedAugmentd"]
    back = transform.inverse(moved)
    inner = (slice(None), *[slice(7, -7)] * 3)
    gone, left = ((d["image"] - data["image"])[inner].abs().mean() for d in (moved, back))
    assert float(left) < 0.4 * float(gone)  # the rest is interpolation, twice
    for key in ("image", "label"):
        assert back[key].applied_operations == []
        assert back[key].shape == data[key].shape
        assert np.allclose(back[key].affine, AFFINE)
    if kind is AppearanceAugmenter:
        assert torch.allclose(back["image"], data["image"], atol=1e-5)
        assert torch.equal(moved["label"], data["label"])
    # not applied: nothing to undo
    still = LearnedAugmentd(["image", "label"], learned(kind), prob=0.0)
    assert equal(still.inverse(still(data)), data)


def test_free_deformation_says_that_it_has_no_inverse() -> None:
    transform = LearnedAugmentd(["image"], learned(DeformationAugmenter, fidelity="paper"))
    with pytest.raises(PolicyError, match="no inverse"):
        transform.inverse(transform(sample()))


def test_collate_decollate_and_inverse_of_a_batch() -> None:
    transform = Compose([both()])
    transform.set_random_state(3)
    loader = DataLoader(Dataset([sample(i) for i in range(4)], transform), batch_size=4, num_workers=0)
    items = decollate_batch(next(iter(loader)))
    for i, item in enumerate(items):
        back = transform.inverse(item)
        assert back["image"].applied_operations == []
        assert back["image"].shape == sample(i)["image"].shape


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_get_streams_of_their_own(context: str) -> None:
    data = CacheDataset([sample(0)] * 4, Compose([both()]), progress=False)
    loader = DataLoader(data, batch_size=1, num_workers=2, multiprocessing_context=context)
    images = [b["image"].as_tensor() for b in loader]
    assert len({i.numpy().tobytes() for i in images}) == 4


def test_pickle_keeps_the_random_state() -> None:
    transform = both().set_random_state(5)
    transform(sample())
    again = pickle.loads(pickle.dumps(transform))  # noqa: S301  # our own object
    assert equal(transform(sample()), again(sample()))


def test_plain_tensors_missing_keys_and_bad_options() -> None:
    augmenters = learned(AffineAugmenter)
    plain = {"image": torch.rand(1, 12, 12, 12)}
    out = LearnedAugmentd(["image", "label"], augmenters, allow_missing_keys=True)(plain)
    assert type(out["image"]) is torch.Tensor or isinstance(out["image"], MetaTensor)
    with pytest.raises(KeyError):
        LearnedAugmentd(["image", "label"], augmenters)(plain)
    with pytest.raises(ConfigError, match="mode"):
        LearnedAugmentd(["image", "label"], augmenters, mode="nearest")
    with pytest.raises(ConfigError, match="strength"):
        LearnedAugmentd(["image"], augmenters, strength=2)
    still = LearnedAugmentd(["image", "label"], augmenters, strength=0.0)(sample())
    assert torch.allclose(still["image"], sample()["image"], atol=1e-4)
    assert torch.equal(still["label"], sample()["label"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_on_a_gpu_stay_there() -> None:
    transform, d = both(), {key: value.cuda() for key, value in sample().items()}
    transform.set_random_state(3)
    moved = transform(d)
    assert all(moved[key].is_cuda for key in d)
    back = transform.inverse(moved)
    assert all(back[key].is_cuda and back[key].shape == d[key].shape for key in d)
