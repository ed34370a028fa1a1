# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Drawing operations from a policy, the weights' gradients, and applying what was drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from batchgenerators.transforms.color_transforms import GammaTransform
from monai.transforms import RandAffined, RandGaussianSmooth
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import TrainingPolicy, augment, class_at_centre, gumbel, patch_classes, policy_index
from monai_autoaug.transforms import Cascade, Operation, from_batchgenerators, from_monai, training_cascades

NAMES = [c.name for c in training_cascades()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(batch: int = 2, shape: tuple[int, ...] = (10, 10, 10)) -> tuple[Tensor, Tensor]:
    image = torch.randn(batch, 1, *shape)
    return image, F.one_hot((image[:, 0] > 0).long() + (image[:, 0] > 1).long(), 3).movedim(-1, 1).float()


def chosen(**operations: int) -> Tensor:
    return torch.tensor([[operations.get(name, 0) for name in NAMES]])


def test_operations_come_with_the_probabilities_of_their_class() -> None:
    policy = TrainingPolicy.preset("nnunet")
    with torch.no_grad():
        policy.logits[1] = torch.randn(62)
    classes = torch.tensor([0, 1]).repeat_interleave(20_000)
    indices, weights = policy.sample(classes, seeded())
    assert indices.shape == weights.shape == (40_000, 15)
    assert torch.allclose(weights, torch.ones_like(weights))
    for k, name in enumerate(policy.classes):
        for column, p in enumerate(policy.probabilities(name)):
            share = indices[classes == k, column].bincount(minlength=len(p)) / 20_000
            assert torch.allclose(share, p.detach(), atol=0.015)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradient_of_the_weights(temperature: float) -> None:
    """Eqs. 1-2: s_k (delta_jk - s_j) / T, which is the slope of the softmax itself."""
    policy = TrainingPolicy.preset("deepmedic", temperature=temperature).double()
    classes = torch.tensor([1, 0, 1])
    noise = gumbel((3, 15, 7), seeded(3))
    factor = torch.randn(3, 15, dtype=torch.float64)
    indices, weights = policy.sample(classes, seeded(3))
    (weights * factor).sum().backward()
    gradient = policy.logits.grad
    assert gradient is not None

    def soft(logits: Tensor) -> Tensor:
        """The sum without the straight-through step, for the operations that were drawn."""
        total = torch.zeros((), dtype=torch.float64)
        for i, c in enumerate(classes.tolist()):
            for column, part in enumerate(logits[c].split([len(x) for x in policy.cascades])):
                s = ((part + noise[i, column, : len(part)]) / temperature).softmax(0)
                total = total + factor[i, column] * s[indices[i, column]]
        return total

    base, expected = policy.logits.detach(), torch.zeros(2, 62, dtype=torch.float64)
    for place in range(base.numel()):
        step = torch.zeros_like(base)
        step.view(-1)[place] = 1e-6
        expected.view(-1)[place] = (soft(base + step) - soft(base - step)) / 2e-6
    assert torch.allclose(gradient, expected, atol=1e-7)
    for part in gradient.split([len(c) for c in policy.cascades], dim=1):
        assert torch.allclose(part.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-12)


def test_weights_of_stored_indices() -> None:
    """Of value 1; on average over many draws the gradient is that of drawing afresh."""
    policy = TrainingPolicy.preset("nnunet").double()
    classes = torch.ones(20_000, dtype=torch.int64)
    indices, fresh = policy.sample(classes, seeded(1))
    again = policy.weights(classes, indices, seeded(2))
    assert torch.allclose(again, torch.ones_like(again))
    gain = torch.randn(7, dtype=torch.float64)[indices]
    gradients = [torch.autograd.grad((w * gain).mean(0).sum(), policy.logits)[0] for w in (fresh, again)]
    assert torch.allclose(gradients[0], gradients[1], atol=0.005)
    assert float(gradients[0][1].abs().max()) > 0.05
    assert not bool(gradients[0][0].any())  # the other class


def test_far_behind_logits_have_finite_gradients() -> None:
    policy = TrainingPolicy.preset("uniform")
    with torch.no_grad():
        policy.logits[:, 0] = 90.0
    policy.weights(torch.tensor([0]), torch.ones(1, 15, dtype=torch.int64), seeded()).sum().backward()
    assert policy.logits.grad is not None
    assert bool(policy.logits.grad.isfinite().all())


@torch.no_grad()
def test_floor_keeps_every_operation_alive() -> None:
    policy = TrainingPolicy.preset("nnunet", floor=0.02)
    before = TrainingPolicy.preset("nnunet")
    for name in policy.classes:
        for p, q in zip(policy.probabilities(name), before.probabilities(name), strict=True):
            assert float(p.min()) >= 0.02 - 1e-6
            assert float(q.min()) < 0.02 or torch.allclose(p, q)  # what nobody fell below stays as it is
    torch.manual_seed(0)
    with torch.no_grad():
        policy.logits.add_(20 * torch.randn_like(policy.logits))
    loose = [p.detach().clone() for p in policy.probabilities("foreground")]
    policy.constrain()
    for p, q in zip(policy.probabilities("foreground"), loose, strict=True):
        assert float(p.sum()) == pytest.approx(1)
        assert float(p.min()) == pytest.approx(0.02, abs=1e-5)
        assert int(p.argmax()) == int(q.argmax())
    again = policy.logits.detach().clone()
    policy.constrain()
    assert torch.allclose(policy.logits, again, atol=1e-4)


def test_entropy() -> None:
    policy = TrainingPolicy.preset("uniform").double()
    assert torch.allclose(policy.entropy(), torch.ones(2, 15, dtype=torch.float64))
    with torch.no_grad():
        policy.logits.add_(torch.randn_like(policy.logits))
    p = policy.probabilities("background")[12]
    expected = -(p * p.log()).sum() / torch.tensor(7.0, dtype=torch.float64).log()
    assert policy.entropy()[0, 12].item() == pytest.approx(expected.item())
    assert torch.autograd.gradcheck(
        lambda x: torch.func.functional_call(Entropy(policy), {"policy.logits": x}, ()), policy.logits
    )


class Entropy(torch.nn.Module):
    def __init__(self, policy: TrainingPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self) -> Tensor:
        return self.policy.entropy()


def test_apply_is_what_was_drawn() -> None:
    policy = TrainingPolicy.preset("nnunet")
    image, label = data(3)
    indices = torch.cat([chosen(), chosen(mirrorS=1, mirrorA=1), chosen(scale=3, rotL=2, gamma=1, noise=2)])
    moved, soft = policy.apply(image, label, indices, seeded(5))
    assert soft is not None
    assert torch.equal(moved[0], image[0])
    assert torch.equal(moved[1], image[1].flip(1, 3))
    assert torch.equal(soft[1], label[1].flip(1, 3))
    assert torch.allclose(soft.sum(1), torch.ones_like(soft[:, 0]), atol=1e-5)
    again = policy.apply(image, label, indices, seeded(5))
    assert torch.equal(again[0], moved)
    assert not torch.equal(policy.apply(image, label, indices, seeded(6))[0], moved)
    small, _ = policy.apply(image, label, indices, seeded(5), margin=(2, 2, 2))
    assert small.shape == (3, 1, 6, 6, 6)


def test_three_lines_make_a_policy_over_own_operations() -> None:
    blur = from_monai(RandGaussianSmooth(prob=1.0, sigma_x=(1, 2)), "monai_blur", kind="resolution")
    gamma = from_batchgenerators(GammaTransform(p_per_sample=1.0), "bg_gamma")
    policy = TrainingPolicy([Cascade("mine", (Operation("identity"), blur, gamma)), training_cascades()[4]])

    image, label = data(4)
    indices = torch.tensor([[0, 1], [1, 0], [2, 0], [1, 1]])
    moved, soft = policy.apply(image, label, indices, seeded())
    assert torch.equal(moved[0], image[0].flip(1))
    assert all(float((moved[i] - image[i]).abs().max()) > 0.01 for i in (1, 2))
    assert soft is not None
    assert torch.equal(soft[3], label[3].flip(1))
    drawn, weights = policy.sample(policy_index(torch.tensor([0, 2]), policy.classes), seeded())
    assert drawn.shape == (2, 2)
    weights.prod(1).sum().backward()
    assert policy.logits.grad is not None
    assert float(policy.logits.grad.abs().sum()) > 0
    assert torch.allclose(torch.cat(policy.probabilities("foreground")), torch.tensor([1 / 3] * 3 + [1 / 2] * 2))


@torch.no_grad()
def test_start_probabilities_of_own_cascades() -> None:
    policy = TrainingPolicy(training_cascades()[:2], ("all",), identity=0.7)
    assert [float(p[0]) for p in policy.probabilities("all")] == pytest.approx([0.7, 0.7])
    policy = TrainingPolicy(training_cascades()[:2], ("all",), identity={"rotF": 0.6})
    assert [float(p[0]) for p in policy.probabilities("all")] == pytest.approx([1 / 6, 0.6])


def test_what_cannot_be_a_policy_is_refused() -> None:
    cascade, other = training_cascades()[:2]
    for cascades, message in (
        ([], "at least one cascade"),
        ([cascade, cascade], "cascades of a policy must have names of their own, got twice: scale"),
        ([cascade, Cascade("b", cascade.operations)], "operations of a policy .* got twice: scale_1.00_1.10"),
        ([Cascade("b", other.operations[1:])], "cascade b must begin with the identity"),
        ([Cascade("b", (*other.operations, Operation("nothing")))], "hold no other, got .*nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainingPolicy(cascades)
    for options, message in (
        ({"classes": ()}, "classes must be names"),
        ({"classes": ("a", "a")}, "none twice"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"floor": 0.5}, r"floor must be in \[0, 0.167\)"),
        ({"identity": 1.1}, r"probability must be in \(0, 1\], got 1.1"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainingPolicy([cascade], **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="classes background, foreground, got 'liver'"):
        TrainingPolicy.preset("nnunet").probabilities("liver")


def test_class_at_the_centre_after_cropping() -> None:
    label = torch.zeros(2, 3, 7, 6, 5)
    label[:, 0] = 1
    label[1, :, 3, 3, 2] = torch.tensor([0.0, 0.0, 1.0])
    assert class_at_centre(label).tolist() == [0, 2]
    larger = F.pad(label, (2, 2, 2, 2, 2, 2))
    assert class_at_centre(larger).tolist() == [0, 2]
    valid = torch.ones(2, 1, 7, 6, 5)
    valid[1, :, 3, 3, 2] = 0
    assert class_at_centre(label, valid=valid).tolist() == [0, 0]
    regions = label[:, 1:].clone()
    assert class_at_centre(regions, regions=True).tolist() == [0, 2]
    regions[1, 0] = 1
    assert class_at_centre(regions, regions=True).tolist() == [0, 2]
    assert class_at_centre(label[..., 2]).tolist() == [0, 2]  # 2D


def test_policies_of_label_values() -> None:
    values = torch.tensor([0, 2, 1])
    assert policy_index(values, ("background", "foreground")).tolist() == [0, 1, 1]
    assert policy_index(values, ("background", "liver", "tumour")).tolist() == [0, 2, 1]
    assert policy_index(values, ("all",)).tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match=r"3 classes \(a, b, c\).* patch of label 3"):
        policy_index(torch.tensor([3]), ("a", "b", "c"))


def test_centre_or_what_the_host_says() -> None:
    label = torch.zeros(2, 3, 5, 5, 5)
    label[0, 2], label[1, 0] = 1, 1
    batch = Batch(torch.zeros(2, 1, 5, 5, 5), label, classes=torch.tensor([0, 1]))
    both = ("background", "foreground")
    assert patch_classes(batch, both).tolist() == [1, 0]
    assert patch_classes(batch, both, class_of="sampled").tolist() == [0, 1]
    assert patch_classes(batch, ("a", "b", "c")).tolist() == [2, 0]
    assert patch_classes(replace(batch, label=label[:, 1:]), both, regions=True).tolist() == [1, 0]
    assert patch_classes(replace(batch, valid=torch.zeros(2, 1, 5, 5, 5)), both).tolist() == [0, 0]
    with pytest.raises(ConfigError, match="class_of='sampled': the batch doesn't say"):
        patch_classes(replace(batch, classes=None), both, class_of="sampled")
    with pytest.raises(ConfigError, match="class_of must be 'centre' or 'sampled', got 'corner'"):
        patch_classes(batch, both, class_of="corner")  # type: ignore[arg-type]


def whole_batch() -> Batch:
    image, label = data(2, (8, 8, 8))
    valid, mask = (torch.rand(2, 1, 8, 8, 8) > 0.3).float(), (torch.rand(2, 1, 8, 8, 8) > 0.3).float()
    return Batch(image * mask, label, valid=valid, extra=torch.randn(2, 2, 8, 8, 8), mask=mask)


def test_everything_in_a_batch_moves_together() -> None:
    policy, batch = TrainingPolicy.preset("nnunet"), whole_batch()
    indices = torch.cat([chosen(mirrorS=1, rotL=4, noise=3), chosen()])
    moved = augment(policy, batch, indices, seeded())
    assert batch.valid is not None
    assert batch.mask is not None
    assert batch.extra is not None
    known = batch.label * batch.valid

    def by_hand(x: Tensor) -> Tensor:
        """The same without the noise."""
        return policy.apply(x, None, chosen(mirrorS=1, rotL=4).expand(2, -1), seeded())[0]

    for name in ("valid", "extra", "mask"):
        before = getattr(batch, name)
        assert torch.equal(getattr(moved, name), torch.cat([by_hand(before)[:1], before[1:]]))
    assert torch.equal(moved.label[1], known[1])
    assert moved.mask is not None
    assert not bool((moved.image * (1 - moved.mask)).any())
    assert 0.05 < float((moved.image[0] - by_hand(batch.image)[0]).std()) < 0.2
    assert torch.equal(moved.image[1], batch.image[1])
    assert moved.valid is not None
    assert torch.equal(moved.label[0], by_hand(known)[0])


@pytest.mark.parametrize("regions", [False, True])
def test_outside_is_known_background_or_no_region(regions: bool) -> None:
    shrink = replace(training_cascades()[0][5], opposite="none")
    policy = TrainingPolicy([Cascade("shrink", (Operation("identity"), shrink))])
    moved = augment(policy, whole_batch(), torch.tensor([[1], [1]]), seeded(), regions=regions)
    for name, value in (("valid", [1.0]), ("extra", [0.0, 0.0]), ("label", [0.0 if regions else 1.0, 0.0, 0.0])):
        assert getattr(moved, name)[:, :, 0, 0, 0].tolist() == [value, value]


def test_other_libraries_move_no_more_than_image_and_label() -> None:
    affine = from_monai(RandAffined(["image", "label"], prob=1.0, mode="bilinear"), "monai_affine", kind="spatial")
    policy = TrainingPolicy([Cascade("mine", (Operation("identity"), affine))])
    batch = whole_batch()
    with pytest.raises(ConfigError, match="monai_affine moves an image and its one-hot label alone"):
        augment(policy, batch, torch.tensor([[0], [1]]))
    augment(policy, batch, torch.tensor([[0], [0]]))
    plain = Batch(batch.image, batch.label)
    assert augment(policy, plain, torch.tensor([[1], [1]]), seeded()).label.shape == batch.label.shape


def test_the_state_is_the_logits_alone() -> None:
    policy, other = TrainingPolicy.preset("nnunet"), TrainingPolicy.preset("uniform")
    assert list(policy.state_dict()) == ["logits"]
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.logits, policy.logits)
