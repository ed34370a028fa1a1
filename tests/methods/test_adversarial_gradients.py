# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The adversarial method's gradients: against separate optimisations, their signs, what weighs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_helpers import Fixed, build, freeze, moved, unet
from torch import Tensor

from monai_autoaug.methods.adversarial import Adversarial
from monai_autoaug.networks.discriminators import adversarial_loss, discriminate_frozen


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("saturating", [True, False])
def test_one_backward_equals_three_separate_optimisations(saturating: bool, everything: bool) -> None:
    """Float64, smooth network: gradients of T, G and D against those of their own objectives (Eqs. 2-5)."""
    weights = {"weight_discriminator": 0.7, "weight_magnitude": 0.3}
    network = unet(act="SWISH", channels=2 if everything else 1).double()
    method = moved(build(network, balance=False, weight_prior=0.0, saturating=saturating,
                         discriminator_resamples=False, **weights))  # fmt: skip
    assert isinstance(method, Adversarial)
    method.generators.double()
    assert method.discriminator is not None
    method.discriminator.double()
    batches, state = Fixed(dtype=torch.float64, everything=everything), method.generator.get_state()
    optimizers = freeze(method)
    method.step(batches)
    got = {name: optimizer.seen for name, optimizer in optimizers.items()}

    def objective() -> tuple[Tensor, Tensor, Tensor, list[Any]]:
        method.generator.set_state(state)
        parts = method.generate(batches.next("train"))
        fake = torch.cat([p.batch.image for p in parts if p.transformation is not None])
        task, _ = method.segment(parts)
        size = sum(p.transformation.regularization() for p in parts if p.transformation is not None)
        return task, fake, size, parts

    weights_of = list(method.task.network.parameters())
    generators = list(method.generators.parameters())
    discriminator = list(method.discriminator.parameters())
    method._turns.clear()
    task, fake, size, _ = objective()
    # for D alone: its own loss (times lambda where the saturating game shares it, as Algorithm 1 has it)
    share = 1.0
    patches = batches.next("real").image
    chosen = torch.randperm(len(patches), generator=method.generator)[: len(fake)]
    real = method.discriminator(patches[chosen])
    own = adversarial_loss(real, True) + share * adversarial_loss(method.discriminator(fake), False)
    if saturating:
        realism = -weights["weight_discriminator"] * adversarial_loss(
            discriminate_frozen(method.discriminator, fake), False
        )
    else:
        realism = weights["weight_discriminator"] * adversarial_loss(
            discriminate_frozen(method.discriminator, fake), True
        )
    generator_loss = -task + realism + weights["weight_magnitude"] * size
    expected = {
        "network": torch.autograd.grad(task, weights_of, retain_graph=True, allow_unused=True),
        "generators": torch.autograd.grad(generator_loss, generators, retain_graph=True, allow_unused=True),
        "discriminator": torch.autograd.grad(own, discriminator, allow_unused=True),
    }
    for name, wanted in expected.items():
        assert any(g is not None and float(g.abs().max()) > 0 for g in wanted), name
        for a, b in zip(got[name], wanted, strict=True):
            assert (a is None) == (b is None)
            assert a is None or float((a - b).abs().max()) <= 1e-10, name


@pytest.mark.parametrize("seed", range(10))
def test_a_generator_step_raises_the_task_loss_and_a_network_step_lowers_it(seed: int) -> None:
    method = moved(build(discriminator=False, balance=False, weight_magnitude=0.0, weight_prior=0.0, seed=seed))
    assert isinstance(method, Adversarial)
    batches = Fixed()
    state = method.generator.get_state()

    def loss() -> Tensor:
        method.generator.set_state(state)
        method._turns.clear()
        return method.segment(method.generate(batches.next("train")))[0]

    before = loss()
    network, generators = list(method.task.network.parameters()), list(method.generators.parameters())
    gradient = torch.autograd.grad(before, generators, allow_unused=True)
    optimizers = freeze(method)
    method.generator.set_state(state)
    method._turns.clear()
    method.step(batches)
    given = optimizers["generators"].seen
    # the step's gradient is the task's, reversed
    assert all(a is None or torch.allclose(a, -b, atol=1e-6) for a, b in zip(given, gradient, strict=True))
    with torch.no_grad():
        for p, g in zip(generators, given, strict=True):
            if g is not None:
                p -= 1e-3 * g / sum(x.square().sum() for x in given if x is not None).sqrt()
    raised = loss()
    assert float(raised.detach()) > float(before.detach())
    gradient = torch.autograd.grad(raised, network, allow_unused=True)
    with torch.no_grad():
        for p, g in zip(network, gradient, strict=True):
            if g is not None:
                p -= 1e-3 * g
    assert float(loss()) < float(raised.detach())


@pytest.mark.parametrize("mode", ["affine", "deformation", "appearance"])
def test_the_generator_gradient_through_image_and_label(mode: str) -> None:
    """Directional derivative of the soft loss against central differences: smooth network, float64."""
    method = moved(
        build(unet(act="SWISH").double(), mode=mode, discriminator=False, balance=False, width=4, noise_size=6)
    )
    assert isinstance(method, Adversarial)
    method.generators.double()
    batches, state = Fixed(size=2, dtype=torch.float64), method.generator.get_state()

    def loss() -> Tensor:
        method.generator.set_state(state)
        return method.segment(method.generate(batches.next("train")))[0]

    parameters = list(method.generators.parameters())
    gradient = torch.autograd.grad(loss(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * 1e-6 * d
            values.append(float(loss()))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_translations_are_equivariant() -> None:
    """A pointwise network: gradients through image and through label cancel for a translation, whatever the label."""
    from monai_autoaug.transforms import geometry

    shape = (32, 32, 32)

    def blob(*centre: float) -> Tensor:
        place = geometry.identity_grid(shape) - torch.tensor(centre)
        return torch.exp(-(place / torch.tensor([4.0, 5.0, 3.5])).square().sum(-1) / 2)[:, None]  # 0 near the border

    x, y = 2 * blob(1.0, -2.0, 0.5), blob(-2.0, 1.0, 2.0)
    y = torch.cat([1 - y, y], 1)
    shift = torch.full((1, 3), 0.4, requires_grad=True)
    zero = torch.zeros(1, 3)
    matrix = geometry.affine_matrix(zero, zero, zero, shift)
    image, label = geometry.resample(x, geometry.compose(matrix, None, shape, like=x), label=y)
    assert label is not None

    def loss(image: Tensor, label: Tensor) -> Tensor:
        return -(label * torch.cat([-image, 0.5 * image], 1).log_softmax(1)).sum(1).mean()

    both = torch.autograd.grad(loss(image, label), shift, retain_graph=True)[0]
    image_alone = torch.autograd.grad(loss(image, label.detach()), shift)[0]
    assert float(both.norm()) <= 0.05 * float(image_alone.norm())


@pytest.mark.parametrize(
    "form", [{}, {"fidelity": "paper", "balance": True, "base": "random"}], ids=["default", "paper"]
)
@pytest.mark.parametrize("ramp", [0.2, 1.0])
def test_the_magnitude_penalty_is_a_ratio_of_gradients(form: dict[str, Any], ramp: float) -> None:
    """Whatever the units and however far the warm-up, what pulls back is ``weight_magnitude`` times what games push."""
    method = moved(build(weight_magnitude=0.5, weight_prior=0.0, discriminator=False, **form))
    assert isinstance(method, Adversarial)
    freeze(method)
    seen: dict[str, list[float]] = {}
    through = method.balancer.ratio

    def spied(name: str, reference: str, weight: float, **more: float) -> Callable[[Tensor], Tensor]:
        tap = through(name, reference, weight, **more)

        def measured(x: Tensor) -> Tensor:
            own = x.view_as(x)  # x itself gets the games' gradient too
            own.register_hook(lambda g: seen.setdefault(name, []).append(float(g.norm())))
            return tap(own)

        return measured

    method.balancer.ratio = spied  # type: ignore[method-assign]
    for step, strength in enumerate((1.0, 1.0, ramp, ramp)):  # the last two as within a warm-up
        method.warm_up, method.steps = 1000, round(1000 * strength) - 1
        method.generator.manual_seed(1)
        method._turns.clear()
        method.step(Fixed())
        assert method.steps == round(1000 * strength), step
    games = {n: float(method.balancer.means[i]) for n, i in method.balancer.names.items()}
    for kind in method.kinds:
        # games change a little with the strength: the ratio is to their mean over steps
        assert seen[f"{kind}_penalty"][-1] == pytest.approx(0.5 * games[f"{kind}_games"], rel=0.25), kind


def test_one_scaler_for_all_players() -> None:
    """With a loss scale of 1024 every player takes the step that it takes without."""
    results = []
    for scale in (None, 1024.0):
        method = moved(build(warm_up=0))
        if scale is not None:
            method.task.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        batches = Fixed()
        for _ in range(2):
            method.step(batches)
        results.append({**method.task.network.state_dict(), **method.players["generators"].module.state_dict()})
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-5), name
