# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A test-time policy around an inferer: the views it says, weighted, where they belong, and logits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import Tensor, nn

from monai_autoaug import policies
from monai_autoaug.engines import TestTimePolicyInferer
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.policies import TestTimePolicy, TrainingPolicy

SHAPE = (10, 12, 9)


def network(dims: int = 3) -> nn.Module:
    torch.manual_seed(0)
    kind = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(kind(1, 4, 3, padding=1), nn.Tanh(), kind(4, 3, 1)).eval()


def policy(seed: int = 0, **options: Any) -> TestTimePolicy:
    """A policy with views of every kind among its first ones."""
    made = TestTimePolicy.preset("uniform", **options)
    with torch.no_grad():
        made.logits.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def image(dims: int = 3) -> Tensor:
    return torch.randn(2, 1, *SHAPE[:dims], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("views_at_once", [1, 3, 20])
@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_what_the_policy_says(dims: int, views_at_once: int) -> None:
    known, net, x = policy(spatial_dims=dims), network(dims), image(dims)
    with torch.no_grad():
        expected = known.apply(net, x, 20)
        got = TestTimePolicyInferer(SimpleInferer(), known, 20, views_at_once)(x, net)
    assert len({o.acts for o in known.top(20)[0]}) >= 3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_policy_of_patches_is_applied_to_whole_volumes() -> None:
    """Views that turn it get a canvas of their own, and the file's level doesn't forbid them."""
    rows = TestTimePolicy.preset("uniform").operations
    turned = [rows[k] for k in (0, 15, 32, 38)]
    patch, volume = (TestTimePolicy(turned, level=level, z=4) for level in ("patch", "volume"))  # type: ignore[arg-type]
    net, x = network(), image()
    with torch.no_grad():
        got = TestTimePolicyInferer(SlidingWindowInferer((8, 8, 8)), patch)(x, net)
        expected = volume.apply(lambda v: SlidingWindowInferer((8, 8, 8))(v, net), x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_enlarging_views_alone_leave_no_voxel_without_a_prediction() -> None:
    rows = TestTimePolicy.preset("uniform").operations
    net, x = network(), image()
    larger = TestTimePolicy([o for o in rows[1:11] if o.low < 1][-1:], z=1)
    with torch.no_grad():
        got = TestTimePolicyInferer(SimpleInferer(), larger)(x, net)
        torch.testing.assert_close(got, larger.apply(net, x), rtol=1e-5, atol=1e-5)
    assert bool(torch.isfinite(got).all())


def test_views_of_one_size_are_predicted_together() -> None:
    sizes: list[tuple[int, ...]] = []

    def look(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape))
        return x

    rows = TestTimePolicy.preset("uniform").operations
    chosen = TestTimePolicy([rows[k] for k in (0, 29, 32, 30, 33, 41)], z=6)
    TestTimePolicyInferer(SimpleInferer(), chosen, views_at_once=3)(image(), look)
    turned = (10, 9, 12)
    assert sizes == [(6, 1, *SHAPE), (2, 1, *SHAPE), (4, 1, *turned)]


def test_z_0_is_the_wrapped_inferer_alone() -> None:
    net, x = network(), image()
    with torch.no_grad():
        got = TestTimePolicyInferer(SimpleInferer(), policy(), 0)(x, net)
        assert torch.equal(got, net(x))
        assert TestTimePolicyInferer(SimpleInferer(), policy(z=3)).z == 3


def test_metadata_of_the_image_stays() -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    x = MetaTensor(image()[:1], affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    got = TestTimePolicyInferer(SlidingWindowInferer((8, 8, 8)), policy(), 5)(x, network())
    assert isinstance(got, MetaTensor)
    assert torch.equal(got.affine, affine.double())
    assert got.meta["filename_or_obj"] == "a.nii.gz"


@pytest.mark.parametrize("regions", [False, True])
def test_averaged_probabilities_come_back_as_logits(regions: bool) -> None:
    """What follows takes softmax or sigmoid of them, whatever was averaged."""
    known, net, x = policy(regions=regions, average="probabilities"), network(), image()
    with torch.no_grad():
        expected = known.apply(net, x, 6)
        got = TestTimePolicyInferer(SimpleInferer(), known, 6)(x, net)
        other = TestTimePolicyInferer(SimpleInferer(), policy(regions=regions), 6, average="probabilities")(x, net)
    torch.testing.assert_close(got.sigmoid() if regions else got.softmax(1), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(got, other)


def test_deep_supervision_counts_by_its_first_output() -> None:
    net, x = network(), image()

    def several(view: Tensor) -> list[Tensor]:
        return [net(view), net(view)[..., ::2]]

    with torch.no_grad():
        one, two = (TestTimePolicyInferer(SimpleInferer(), policy(), 4)(x, n) for n in (net, several))
    assert torch.equal(one, two)


def test_a_copy_is_taken_of_a_policy_that_learns_on() -> None:
    known = policy()
    made = TestTimePolicyInferer(SimpleInferer(), known)
    before = made.policy.logits.clone()
    with torch.no_grad():
        known.logits.zero_()
    assert torch.equal(made.policy.logits, before)
    assert not made.policy.logits.requires_grad


def test_from_a_file_in_a_bundles_configuration(tmp_path: Path) -> None:
    file = policies.save(tmp_path / "policy.json", test_time=policy(z=4))
    parser = ConfigParser({
        "inferer": {"_target_": "monai_autoaug.engines.TestTimePolicyInferer", "policy": str(file),
                    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8]}},
    })  # fmt: skip
    inferer = parser.get_parsed_content("inferer")
    with torch.no_grad():
        assert inferer(image(), network()).shape == (2, 3, *SHAPE)
    assert inferer.z == 4
    only = policies.save(tmp_path / "training.json", training=TrainingPolicy.preset("nnunet"))
    with pytest.raises(PolicyError, match=r"training.json: holds no test-time policy"):
        TestTimePolicyInferer(SimpleInferer(), only)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"z": 85}, "from 1 to 84, got 85"),
        ({"z": -1}, "from 1 to 84"),
        ({"views_at_once": 0}, "views_at_once must be at least 1"),
        ({"average": "votes"}, "average must be"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TestTimePolicyInferer(SimpleInferer(), policy(), **options)


def test_predictions_that_cannot_be_averaged_are_refused() -> None:
    made = TestTimePolicyInferer(SimpleInferer(), policy())
    with pytest.raises(ConfigError, match="the policy is of 3D views"):
        made(image(2), network(2))
    for wrong in (lambda x: x[..., ::2], lambda x: {"pred": x}):
        with pytest.raises(ConfigError, match="averaged voxel by voxel"):
            made(image(), wrong)
