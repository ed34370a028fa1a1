# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A test-time policy around an inferer: the views it says, weighted, where they belong, and logits again."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import Tensor, nn

from monai_autoaug import policies
from monai_autoaug.engines import TestTimePolicyInferer
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.policies import TestTimePolicy, TrainingPolicy
from monai_autoaug.transforms import ViewGrids, views

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


def turned(*, level: str = "volume", z: int | None = None) -> TestTimePolicy:
    """Rotated and scaled views, and some that keep the grid."""
    rows = TestTimePolicy.preset("uniform").operations
    return TestTimePolicy([rows[k] for k in (0, 5, 15, 18, 32, 38, 60)], level=level, z=z)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid_memory", [0, 1, 256])
def test_grids_that_are_kept_change_nothing(grid_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second volume of a size gets the same prediction bit for bit, without a grid being made."""
    made: list[tuple[int, ...]] = []
    plain = views.identity_grid
    monkeypatch.setattr(views, "identity_grid", lambda shape, **o: made.append(shape) or plain(shape, **o))
    # in double precision, for which a CPU has no way without grids
    known, net, x = turned(), network().double(), image().double()
    small = x[:, :, :8, :9, :8]
    inferer = TestTimePolicyInferer(SimpleInferer(), known, grid_memory=grid_memory)
    with torch.no_grad():
        expected, other = known.apply(net, x), known.apply(net, small)
        made.clear()
        first = inferer(x, net)
        count = len(made)
        second = inferer(x, net)
        assert len(made) == (count if grid_memory else 2 * count)
        torch.testing.assert_close(inferer(small, net), other, rtol=1e-5, atol=1e-5)
        third = inferer(x, net)
    assert count > 0
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_grids_take_no_more_memory_than_allowed() -> None:
    known = turned()
    for limit in (100, 30_000, 60_000, 10**7):
        known.grids = ViewGrids(limit)
        for size in (8, 9, 10, 8):
            x = torch.rand(1, 1, size, size, size)
            torch.testing.assert_close(known.apply(network(), x), turned().apply(network(), x))
            assert known.grids.size <= limit
        held = [t for group in known.grids._kept.values() for t in group.values()]
        assert known.grids.size == sum(4 * t.numel() for t in held)
        assert bool(held) == (limit > 100)


def test_grids_of_inference_mode_do_not_get_into_training() -> None:
    inferer, net, x = TestTimePolicyInferer(SimpleInferer(), turned()), network(), image()
    with torch.inference_mode():
        inferer(x, net)
    inferer(x, net).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


INFERERS: dict[str, Inferer] = {
    "simple": SimpleInferer(),
    "windows": SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian"),
    "adapt": SlidingWindowInfererAdapt((8, 8, 8), sw_batch_size=2),
}


@pytest.mark.parametrize("kind", list(INFERERS))
def test_any_inferer_gets_the_same_views_one_by_one_or_together(kind: str) -> None:
    wrapped, net, x = INFERERS[kind], network(), image()
    with torch.no_grad():
        expected = turned().apply(lambda v: wrapped(v, net), x)
        for views_at_once in (1, 4):
            got = TestTimePolicyInferer(wrapped, turned(), views_at_once=views_at_once)(x, net)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_memory_holds_one_view_however_many_there_are() -> None:
    """While a view is predicted, there are the image, the view and the sum, and nothing of the views before it."""
    x = torch.rand(1, 1, 24, 24, 24)
    held: list[int] = []

    def look(view: Tensor) -> Tensor:
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) is Tensor and o.numel() >= x.numel() / 2]
        held.append(len({t.data_ptr() for t in tensors}))
        return view.expand(-1, 3, -1, -1, -1).clone()

    with torch.no_grad():
        TestTimePolicyInferer(SimpleInferer(), turned(z=7), grid_memory=0)(x, look)
    assert len(held) == 7
    assert max(held) <= held[0] + 3  # the view, the sum, and how much of each voxel was seen


def test_a_policy_of_patches_is_applied_to_whole_volumes() -> None:
    """Views that turn it get a canvas of their own, and the file's level doesn't forbid them."""
    patch, volume = (turned(level=level, z=4) for level in ("patch", "volume"))
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
    assert sizes == [(6, 1, *SHAPE), (2, 1, *SHAPE), (4, 1, 10, 9, 12)]


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
        ({"views_at_once": 0}, "views_at_once must be a whole number, at least 1"),
        ({"grid_memory": -1}, "grid_memory must be a whole number, at least 0"),
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
