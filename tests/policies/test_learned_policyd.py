# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`LearnedPolicyd` as a MONAI user expects a dictionary transform to behave."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, RandAffined

from monai_autoaug import policies
from monai_autoaug.errors import ConfigError, DataError, PolicyError
from monai_autoaug.policies import LearnedPolicyd, TestTimePolicy, TrainingPolicy
from monai_autoaug.transforms import Cascade, Operation, from_monai, training_cascades

AFFINE = np.array([[0.0, -1.5, 0.0, 4.0], [1.0, 0.0, 0.0, -7.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
FLIP = Cascade("flip", training_cascades()[4].operations)


def sample(seed: int = 0) -> dict[Hashable, Any]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 5, 6, 4, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(12, 14, 10), mode="trilinear")[0]
    label = (image > 0.3).to(torch.uint8) * 4 + (image < -0.3).to(torch.uint8)
    return {
        "image": MetaTensor(image, affine=torch.tensor(AFFINE)),
        "label": MetaTensor(label, affine=torch.tensor(AFFINE)),
    }


def sure(policy: TrainingPolicy, *choices: tuple[int, str]) -> TrainingPolicy:
    """The policy with one operation of a class made certain, and the identity for all else."""
    with torch.no_grad():
        place = 0
        for cascade in policy.cascades:
            policy.logits[:, place : place + len(cascade)] = torch.tensor([50.0] + [-50.0] * (len(cascade) - 1))
            for row, name in choices:
                for k, operation in enumerate(cascade.operations):
                    if operation.name == name:
                        policy.logits[row, place + k] = 200.0
            place += len(cascade)
    return policy


def equal(a: Mapping[Hashable, Any], b: Mapping[Hashable, Any]) -> bool:
    return all(torch.equal(a[k].as_tensor(), b[k].as_tensor()) for k in ("image", "label"))


def preset(**options: Any) -> LearnedPolicyd:
    return LearnedPolicyd(["image", "label"], TrainingPolicy.preset("uniform"), **options)


def test_set_random_state_makes_it_reproducible() -> None:
    runs = [[t(sample()) for _ in range(3)] for t in (preset().set_random_state(s) for s in (7, 7, 8))]
    assert all(equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not equal(runs[0][0], runs[2][0])
    assert not equal(runs[0][0], runs[0][1])
    assert equal(preset(prob=0.0)(sample()), sample())


def test_geometry_dtype_and_input_are_kept() -> None:
    data = sample()
    out = preset().set_random_state(0)(data)
    assert equal(data, sample())
    for key in ("image", "label"):
        assert isinstance(out[key], MetaTensor)
        assert np.allclose(out[key].affine, AFFINE)
        assert out[key].shape == data[key].shape
        assert out[key].dtype == data[key].dtype
    assert set(out["label"].unique().tolist()) <= {0, 1, 4}
    assert not equal(out, data)
    plain = preset().set_random_state(0)({k: v.as_tensor() for k, v in data.items()})
    assert torch.equal(torch.as_tensor(plain["image"]), out["image"].as_tensor())


def test_the_class_decides_and_is_read_at_the_centre_or_from_a_key() -> None:
    policy = sure(TrainingPolicy.preset("nnunet"), (0, "flip_d"), (1, "flip_h"))
    data = sample()
    for value, axis in ((0, 1), (4, 2)):
        data["label"][0, 6, 7, 5] = value
        out = LearnedPolicyd(["image", "label"], policy)(data)
        assert torch.equal(out["image"], data["image"].flip(axis))
        assert torch.equal(out["label"], data["label"].flip(axis))
        out = LearnedPolicyd(["image"], policy, class_key="kind")(data | {"kind": torch.tensor(value)})
        assert torch.equal(out["image"], data["image"].flip(axis))


def test_the_policy_is_a_frozen_copy() -> None:
    policy = sure(TrainingPolicy.preset("nnunet", ("all",)), (0, "flip_d"))
    transform = LearnedPolicyd(["image"], policy)
    sure(policy, (0, "flip_h"))
    assert torch.equal(transform(sample())["image"], sample()["image"].flip(1))
    assert not transform.policy.logits.requires_grad
    assert policy.logits.requires_grad


def test_pairs_of_labels_are_exchanged_by_value() -> None:
    policy = sure(TrainingPolicy.preset("nnunet", ("all",), laterality=[(1, 4)]), (0, "flip_d"))
    data = sample()
    expected = data["label"].flip(1).as_tensor()
    expected = torch.where(expected == 1, 4, torch.where(expected == 4, 1, expected)).to(torch.uint8)
    assert torch.equal(LearnedPolicyd(["image", "label"], policy)(data)["label"].as_tensor(), expected)
    hot = (data["label"] == torch.tensor([0, 1, 2, 3, 4]).view(-1, 1, 1, 1)).float()
    soft = LearnedPolicyd(["image", "label"], policy, mode="soft")(data | {"label": hot})["label"]
    assert torch.equal(soft.argmax(0, keepdim=True).to(torch.uint8).as_tensor(), expected)


def test_several_images_and_labels_share_one_geometry() -> None:
    policy = sure(TrainingPolicy.preset("nnunet", ("all",)), (0, "rotate_dh_10_20"), (0, "brightness_add_0.20_0.30"))
    data = sample()
    data |= {"second": data["image"].to(torch.float64).repeat(2, 1, 1, 1), "other": data["label"].to(torch.int64)}
    out = LearnedPolicyd(
        ["image", "second", "label", "other"], policy, mode=["image", "image", "label", "label"]
    ).set_random_state(2)(data)
    assert out["second"].dtype == torch.float64
    assert torch.allclose(out["second"][1:].float().as_tensor(), out["image"].as_tensor(), atol=1e-6)
    assert out["other"].dtype == torch.int64
    assert torch.equal(out["other"].as_tensor(), out["label"].long().as_tensor())
    assert not torch.equal(out["label"].as_tensor(), data["label"].as_tensor())


def test_whole_numbers_become_float_images() -> None:
    out = preset()({"image": torch.ones(1, 6, 6, 6, dtype=torch.int16), "label": torch.zeros(1, 6, 6, 6)})
    assert out["image"].dtype == torch.float32


def test_it_comes_from_a_file(tmp_path: Path) -> None:
    policy = TrainingPolicy.preset("uniform")
    path = policies.save(tmp_path / "policy.json", training=policy)
    a, b = (LearnedPolicyd(["image", "label"], p).set_random_state(4) for p in (path, policy))
    assert equal(a(sample()), b(sample()))
    other = policies.save(tmp_path / "other.json", test_time=TestTimePolicy.preset("nnunet"))
    with pytest.raises(PolicyError, match="other.json: holds no training-time policy"):
        LearnedPolicyd(["image"], other)


def test_pickle_keeps_the_random_state() -> None:
    transform = preset().set_random_state(5)
    transform(sample())
    again = pickle.loads(pickle.dumps(transform))  # noqa: S301  # our own object
    assert equal(transform(sample()), again(sample()))


def test_workers_get_streams_of_their_own() -> None:
    data = CacheDataset([sample(0)] * 4, Compose([preset()]), progress=False)
    loader = DataLoader(data, batch_size=1, num_workers=2, multiprocessing_context="fork")
    images = [b["image"].as_tensor() for b in loader]
    assert len({i.numpy().tobytes() for i in images}) == 4


def test_own_operations_move_one_label() -> None:
    affine = from_monai(
        RandAffined(["image", "label"], prob=1.0, rotate_range=1.0, mode="bilinear"), "mine", kind="spatial"
    )
    policy = sure(TrainingPolicy([Cascade("mine", (Operation("identity"), affine)), FLIP], ("all",)), (0, "mine"))
    data = sample()
    out = pickle.loads(pickle.dumps(LearnedPolicyd(["image", "label"], policy).set_random_state(0)))(data)  # noqa: S301  # our own
    assert set(out["label"].unique().tolist()) <= {0, 1, 4}
    assert not torch.equal(out["label"].as_tensor(), data["label"].as_tensor())
    with pytest.raises(ConfigError, match="operation mine moves images and one label alone, got label, other"):
        LearnedPolicyd(["image", "label", "other"], policy)(data | {"other": data["label"]})


def test_what_does_not_fit_is_said() -> None:
    data = sample()
    with pytest.raises(ConfigError, match="mode must be 'image', 'label' or 'soft'"):
        preset(mode="nearest")
    with pytest.raises(ConfigError, match="the first key's 'image'"):
        preset(mode=["label", "label"])
    with pytest.raises(KeyError):
        preset()({"image": data["image"]})
    with pytest.raises(DataError, match="keys differ in size; expected one size, came .*To do: crop all keys alike"):
        preset()(data | {"label": data["label"][:, 1:]})
    with pytest.raises(DataError, match="class of the patch can't be read"):
        LearnedPolicyd(["image"], TrainingPolicy.preset("nnunet"))(data)
    with pytest.raises(DataError, match="has no key 'kind'"):
        preset(class_key="kind")(data)
    three = LearnedPolicyd(["image", "label"], TrainingPolicy.preset("nnunet", ("a", "b", "c")), class_key="kind")
    with pytest.raises(ConfigError, match="a patch of label 4"):
        three(data | {"kind": 4})
    missing = preset(allow_missing_keys=True, class_key="kind")({"label": data["label"], "kind": 1})
    assert torch.equal(missing["label"], data["label"])
