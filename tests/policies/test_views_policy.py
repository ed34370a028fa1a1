# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which views are averaged, and that each comes back to where it belongs."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from monai_autoaug.engines import TestTimePolicyInferer
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import TestTimePolicy
from monai_autoaug.transforms import Operation, apply_view, operations_at_test_time, revert_view

VIEWS = operations_at_test_time()
BY_NAME = {o.name: o for o in VIEWS}


def only(*names: str, **options: Any) -> TestTimePolicy:
    return TestTimePolicy([BY_NAME[n] for n in names], **options)


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)


def test_the_presets_choose_the_usual_mirrorings() -> None:
    operations, weights = TestTimePolicy.preset("nnunet").top(8)
    assert [o.index for o in operations] == [0, 29, 30, 31, 34, 37, 40, 83]
    assert torch.allclose(weights, torch.full((8,), 1 / 8))
    assert [o.index for o in TestTimePolicy.preset("deepmedic").top(4)[0]] == [0, 29, 30, 31]
    assert [o.index for o in TestTimePolicy.preset("uniform").top(5)[0]] == [0, 1, 2, 3, 4]


def test_weights_are_the_probabilities_of_the_chosen_and_have_a_gradient() -> None:
    policy = TestTimePolicy.preset("nnunet").double()
    with torch.no_grad():
        policy.logits.add_(torch.randn(84, dtype=torch.float64))
    operations, weights = policy.top(5)
    share = policy.probabilities().detach()
    expected = share.sort(descending=True).values[:5]
    assert torch.allclose(weights, expected / expected.sum())
    assert [float(share[o.index]) for o in operations] == pytest.approx(expected.tolist())
    (weights * torch.arange(5)).sum().backward()
    assert policy.logits.grad is not None
    assert bool(policy.logits.grad[[o.index for o in operations]].abs().gt(0).all())


def test_the_average_is_the_weighted_sum_of_the_views_that_are_reverted() -> None:
    """Also as nnU-Net's mirroring has it, which is the mean over the eight."""
    image, net = torch.randn(1, 1, 6, 8, 10), network()
    policy = TestTimePolicy.preset("nnunet")
    axes: list[tuple[int, ...]] = [(), (2,), (3,), (4,), (3, 4), (2, 4), (2, 3), (2, 3, 4)]
    mean = sum(net(image.flip(a)).flip(a) for a in axes) / 8
    assert torch.allclose(policy.apply(net, image, 8), mean, atol=1e-6)
    assert torch.equal(policy.apply(net, image), policy.apply(net, image, 8))
    with torch.no_grad():
        policy.logits[BY_NAME["gamma_1.3"].index], policy.logits[0] = 3.0, 2.0
    weights = torch.tensor([3.0, 2.0]).softmax(0)
    seen = [net(apply_view(BY_NAME["gamma_1.3"], image)), net(image)]
    expected = weights[0] * seen[0] + weights[1] * seen[1]
    assert torch.allclose(policy.apply(net, image, 2), expected, atol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_can_be_averaged(regions: bool) -> None:
    image, net = torch.randn(1, 1, 6, 6, 6), network()
    policy = only("identity", "flip_h", average="probabilities", regions=regions)
    to = torch.sigmoid if regions else lambda x: x.softmax(1)
    expected = (to(net(image)) + to(net(image.flip(3))).flip(3)) / 2
    assert torch.allclose(policy.apply(net, image, 2), expected, atol=1e-6)


def test_one_view_at_a_time_and_the_first_of_several_outputs() -> None:
    shapes: list[tuple[int, ...]] = []

    def deep(x: Tensor) -> list[Tensor]:
        shapes.append(tuple(x.shape))
        return [x.expand(-1, 2, -1, -1, -1), x[..., ::2]]

    image = torch.rand(1, 1, 6, 6, 6).bfloat16()
    policy = only("identity", "rotate_hw_+90", "scale_1.45", "brightness_add_+0.25")
    out = policy.apply(deep, image, 4)
    assert sorted(shapes) == [(1, 1, 6, 6, 6)] * 3 + [(1, 1, 8, 8, 8)]
    assert out.dtype == torch.float32
    assert out.shape == (1, 2, 6, 6, 6)


@pytest.mark.parametrize("level", ["volume", "patch"])
@pytest.mark.parametrize("name", ["scale_1.45", "scale_0.69", "rotate_dh_+25"])
def test_affine_views_count_where_they_have_seen_something(level: Any, name: str) -> None:
    """A network that copies a constant: no view may darken the border, nor an unseen corner."""
    policy = only(name, level=level)
    image = torch.full((1, 1, 11, 11, 11), 3.0)
    out = policy.apply(lambda x: x, image, 1)
    assert torch.allclose(out, image, atol=1e-4)


def test_a_patch_keeps_its_size() -> None:
    image = torch.rand(1, 1, 6, 8, 8)
    affine = only("scale_1.25", "identity", level="patch")
    sizes: list[torch.Size] = []
    affine.apply(lambda x: sizes.append(x.shape[2:]) or x, image, 2)  # type: ignore[func-returns-value]
    assert sizes == [(6, 8, 8), (6, 8, 8)]
    only("rotate_hw_+90", level="patch").apply(lambda x: x, image, 1)
    with pytest.raises(ConfigError, match=r"rotate_dw_\+90 turns a patch of \(6, 8, 8\) into \(8, 8, 6\)"):
        only("rotate_dw_+90", level="patch").apply(lambda x: x, image, 1)
    kept = [o.name for o in TestTimePolicy.preset("nnunet", level="patch", patch_size=(6, 8, 8)).operations]
    assert set(BY_NAME) - set(kept) == {f"rotate_{p}_{s}90" for p in ("dw", "dh") for s in "+-"}


def test_noise_is_reproducible_unless_a_generator_is_given() -> None:
    image, policy = torch.zeros(1, 1, 6, 6, 6), only("noise_0.125")
    first, again = (policy.apply(lambda x: x, image, 1) for _ in range(2))
    assert float(first.std()) > 0.05
    assert torch.equal(first, again)
    other = policy.apply(lambda x: x, image, 1, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first, other)


def test_drawing_views_while_learning() -> None:
    policy = TestTimePolicy.preset("nnunet").double()
    indices, weights = policy.sample(30_000, torch.Generator().manual_seed(0))
    share = indices.bincount(minlength=84) / 30_000
    assert torch.allclose(share.double(), policy.probabilities().detach(), atol=0.01)
    again = policy.weights(indices, torch.Generator().manual_seed(1))
    assert torch.allclose(weights, torch.ones_like(weights))
    gain = torch.randn(84, dtype=torch.float64)[indices]
    gradients = [torch.autograd.grad((w * gain).mean(), policy.logits)[0] for w in (weights, again)]
    assert torch.allclose(gradients[0], gradients[1], atol=0.005)
    assert float(gradients[0].sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("view", VIEWS[::7], ids=lambda v: v.name)
def test_reverting_is_that_of_the_views(view: Operation) -> None:
    policy, image = TestTimePolicy.preset("uniform"), torch.rand(1, 2, 7, 8, 9)
    seen = policy.view(view, image)
    back, covered = policy.revert(view, seen, (7, 8, 9))
    assert torch.equal(back, revert_view(view, seen, (7, 8, 9)))
    assert float(covered.max()) < 1.001
    assert float(covered.min()) > (0.7 if view.acts == "matrix" else 0.999)  # a corner lies partly outside the canvas


def test_what_cannot_be_averaged_is_refused() -> None:
    policy = TestTimePolicy.preset("nnunet")
    for z in (0, 85, 2.0, True):
        with pytest.raises(ConfigError, match="z must be a number of views from 1 to 84"):
            policy.top(z)  # type: ignore[arg-type]
    for options, message in (
        ({"level": "slice"}, "level must be volume or patch, got 'slice'"),
        ({"average": "votes"}, "average must be logits or probabilities, got 'votes'"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"z": 3}, "z must be a number of views from 1 to 2, got 3"),
        ({"logits": torch.zeros(3)}, r"logits must be \(2,\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            only("identity", "flip_d", **options)
    with pytest.raises(ConfigError, match="views with names of their own"):
        only("flip_d", "flip_d")


def test_slices() -> None:
    policy = TestTimePolicy.preset("nnunet", spatial_dims=2)
    image = torch.rand(2, 1, 8, 10)
    assert torch.allclose(policy.apply(lambda x: x, image, 4), image, atol=1e-6)


def test_grids_are_as_fine_under_autocast() -> None:
    """In bfloat16 they would be off by some tenths of a voxel at this width."""
    image = torch.rand(1, 1, 4, 4, 160)
    view = BY_NAME["rotate_hw_+5"]
    expected = apply_view(view, image)
    with torch.autocast("cpu", torch.bfloat16):
        found = apply_view(view, image)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("z", [5, 8])
@pytest.mark.parametrize("level", ["patch", "volume"])
def test_views_of_equal_size_may_go_together(level: Literal["patch", "volume"], z: int) -> None:
    image, net = torch.randn(2, 1, 6, 8, 8), network()
    policy = TestTimePolicy.preset("uniform", level=level, patch_size=(6, 8, 8))
    with torch.no_grad():
        policy.logits[[9, 15, 16, 29, 30, 40, 45, 50]] += 5.0  # some of them enlarge a volume
    batches: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        batches.append(len(x) // len(image))
        return net(x)

    together = policy.apply(counted, image, z, at_once=2)
    assert sum(batches) == z
    assert max(batches) == 2
    torch.testing.assert_close(together, policy.apply(net, image, z))


@pytest.mark.parametrize("level", ["patch", "volume"])
def test_a_view_of_no_weight_leaves_no_voxel_without_a_prediction(level: Literal["patch", "volume"]) -> None:
    """Beside a rotation that has all of it, and has not seen the corners."""
    logits = torch.full((84,), -1000.0)
    logits[15], logits[0] = 0, -200
    policy = TestTimePolicy(operations_at_test_time(), logits, level=level, z=2)
    image = torch.rand(1, 1, 12, 12, 12)
    assert bool(policy.apply(lambda view: view, image).isfinite().all())
    assert bool(TestTimePolicyInferer(SimpleInferer(), policy)(image, lambda view: view).isfinite().all())
