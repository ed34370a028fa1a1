# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The adversarial method: gradients against separate optimisations, signs, ablations, parts, resume."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn

from monai_autoaug import methods
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods.adversarial import Adversarial
from monai_autoaug.methods.augmented import AugmentedMethod, transform
from monai_autoaug.methods.balancer import Balancer
from monai_autoaug.methods.base import Method, Task
from monai_autoaug.networks.auxiliary_norm import norm_groups
from monai_autoaug.networks.discriminators import adversarial_loss, discriminate_frozen
from monai_autoaug.precision import Precision


def unet(norm: Any = "INSTANCE", act: str = "PRELU", channels: int = 1) -> nn.Module:
    return UNet(3, channels, 3, (4, 8, 16), (2, 2), num_res_units=1, norm=norm, act=act)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet_instance": unet,
    "unet_batch": lambda: unet("BATCH"),
    "segresnet": lambda: SegResNet(3, 8, 1, 3),
}


def losses(output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
    logits = output[0] if isinstance(output, list | tuple) else output
    logits = logits if logits.dtype == torch.float64 else logits.float()
    voxel = -(label * logits.log_softmax(1)).sum(1)
    return (voxel if valid is None else voxel * valid[:, 0]).flatten(1).mean(1)


class Fixed:
    """The same batches again and again: of smooth images, labels made from them."""

    def __init__(
        self, size: int = 4, shape: tuple[int, ...] = (16, 20, 16), channels: int = 1, *,
        dtype: torch.dtype = torch.float32, margin: tuple[int, ...] | None = None, everything: bool = False,
    ) -> None:  # fmt: skip
        self.asked: list[str] = []
        self.batches = {}
        for number, stream in enumerate(("train", "real")):
            generator = torch.Generator().manual_seed(number)
            coarse = torch.randn(size, channels, *[n // 4 for n in shape], generator=generator)
            mode = "trilinear" if len(shape) == 3 else "bilinear"
            image = nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)
            index = (image[:, 0] > 0.2).long() + (image[:, 0] > 0.8).long()
            label = nn.functional.one_hot(index, 3).movedim(-1, 1)
            self.batches[stream] = Batch(
                image.to(dtype), label.to(dtype), case=tuple(map(str, range(size))),
                margin=margin or tuple(0 for _ in shape),
            )  # fmt: skip
            if everything:  # a partly unknown label and a previous segmentation, as in a cascade
                valid = (torch.rand(size, 1, *shape, generator=generator) > 0.3).to(dtype)
                self.batches[stream] = replace(self.batches[stream], valid=valid, extra=label[:, 1:2].to(dtype))

    def next(self, stream: str) -> Batch:
        self.asked.append(stream)
        return self.batches[stream]


def build(
    network: nn.Module | None = None, name: str = "adversarial", precision: str = "float32", **options: Any
) -> Method:
    torch.manual_seed(0)
    network = unet() if network is None else network
    spatial_dims = options.pop("spatial_dims", 3)
    methods.prepare(name, network, **options)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    task = Task(network, optimizer, losses, Precision("cpu", precision), spatial_dims=spatial_dims)
    return methods.build(name, task, **options)


def moved(method: Method, amount: float = 0.1) -> Method:
    """Generators as after some training: heads not zero, full strength."""
    assert isinstance(method, AugmentedMethod)
    with torch.no_grad():
        for name, parameter in method.generators.named_parameters():
            if "trunk" not in name:
                parameter += amount * torch.randn_like(parameter)
        for augmenter in method.generators.values():
            augmenter.strength.fill_(1.0)
    method.warm_up = 0
    return method


class Recorded(torch.optim.SGD):
    """An optimiser that keeps the gradients it is given and changes nothing."""

    def step(self, closure: Any = None) -> None:
        self.seen = [None if p.grad is None else p.grad.clone() for g in self.param_groups for p in g["params"]]


def freeze(method: Method) -> dict[str, Recorded]:
    task = method.task
    task.optimizer = Recorded(task.network.parameters(), 1.0)
    for player in method.players.values():
        player.optimizer = Recorded(player.module.parameters(), 1.0)
    return {"network": task.optimizer} | {n: p.optimizer for n, p in method.players.items()}  # type: ignore[dict-item]


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
    real = method.discriminator(batches.next("real").image[: len(fake)])
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


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("mode", ["combined", "affine", "deformation", "appearance"])
def test_every_mode_trains_every_network(make: Callable[[], nn.Module], mode: str) -> None:
    method = build(make(), mode=mode, warm_up=0)
    batches = Fixed(shape=(16, 24, 16))
    before = {n: copy.deepcopy(p.module.state_dict()) for n, p in method.players.items()}
    weights = copy.deepcopy(method.task.network.state_dict())
    figures = [method.step(batches) for _ in range(3)][-1]
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())
    kinds = {"affine", "deformation", "appearance"} if mode == "combined" else {mode}
    assert {n.removeprefix("loss_") for n in figures if n.startswith("loss_")} == kinds | (
        {"clean"} if mode == "combined" else set()
    )
    for name, player in method.players.items():
        changed = [k for k, v in player.module.state_dict().items() if not torch.equal(v, before[name][k])]
        assert changed, f"{name} did not learn"
    assert any(not torch.equal(v, weights[k]) for k, v in method.task.network.state_dict().items())
    epoch = method.on_epoch(1)
    assert {f"{k}_noise_share" for k in kinds} <= set(epoch)
    assert set(method.augmenters()) == kinds


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_parts_rotate_evenly(size: int) -> None:
    method = build()
    assert isinstance(method, AugmentedMethod)
    seen = torch.cat([method.partition(size) for _ in range(40)])
    counts = torch.bincount(seen, minlength=4)
    assert int(counts.max() - counts.min()) <= 1
    if size >= 4:
        assert all(set(method.partition(size).tolist()) == {0, 1, 2, 3} for _ in range(50))
        method = build()
        assert isinstance(method, AugmentedMethod)
    again = build()
    assert isinstance(again, AugmentedMethod)
    assert torch.equal(torch.cat([again.partition(size) for _ in range(40)]), seen)


@pytest.mark.parametrize("size", [1, 2])
def test_batches_smaller_than_four_train(size: int) -> None:
    method = build()
    batches = Fixed(size=size)
    kinds = {name for _ in range(8) for name in method.step(batches) if name.startswith("loss_")}
    assert kinds == {"loss_clean", "loss_affine", "loss_deformation", "loss_appearance"}


def test_switches_do_what_they_say() -> None:
    without = build(discriminator=False)
    batches = Fixed()
    without.step(batches)
    assert set(without.players) == {"generators"}
    assert batches.asked == ["train"]
    with_it = build(warm_up=2)
    batches = Fixed()
    with_it.step(batches)
    assert batches.asked == ["train"]  # the discriminator rests while all patches are nearly real
    with_it.step(batches)
    batches.asked.clear()
    with_it.step(batches)
    assert batches.asked == ["train", "real"]
    assert tuple(with_it.needs) == ("train", "real")
    blind = build(image_condition=False)
    assert not any("trunk.image." in n for n, _ in blind.players["generators"].module.named_parameters())
    paper = build(fidelity="paper")
    assert isinstance(paper, Adversarial)
    assert (paper.saturating, paper.balance, paper.weight_prior) == (True, False, 0.0)
    assert paper.generators["affine"].trunk is not paper.generators["deformation"].trunk
    assert build().generators["affine"].trunk is not None
    plain = build(unet(), auxiliary_norms=False)
    assert not any("auxiliary" in n for n, _ in plain.task.network.named_parameters())
    network = unet()
    with pytest.raises(ConfigError, match="prepare"):
        methods.build(
            "adversarial", Task(network, torch.optim.SGD(network.parameters(), 0.1), losses, Precision("cpu"))
        )
    with pytest.raises(ConfigError, match="mode"):
        build(mode="all")
    with pytest.raises(ConfigError, match="no option 'lambda_'"):
        build(lambda_=1)


def test_warm_up_starts_from_the_identity() -> None:
    method = build(warm_up=10)
    assert isinstance(method, AugmentedMethod)
    batches = Fixed()
    fresh = method.generators["affine"](batches.next("train").image).apply(batches.next("train").image)
    assert torch.allclose(fresh, batches.next("train").image, atol=1e-4)
    strengths = []
    for _ in range(12):
        method.step(batches)
        strengths.append(float(method.generators["affine"].strength))
    assert strengths == pytest.approx([min(1.0, (i + 1) / 10) for i in range(12)])


def test_state_round_trip_goes_on_exactly() -> None:
    options: dict[str, Any] = {"warm_up": 3}
    straight, batches = build(**options), Fixed(size=3)
    expected = [straight.step(batches) for _ in range(6)]
    first = build(**options)
    for _ in range(3):
        first.step(batches)
    buffer = io.BytesIO()
    torch.save({"method": first.state_dict(), "network": first.task.network.state_dict(),
                "optimizer": first.task.optimizer.state_dict()}, buffer)  # fmt: skip
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second = build(**options, seed=99)
    second.task.network.load_state_dict(state["network"])
    second.task.optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["method"])
    got = [second.step(batches) for _ in range(3)]
    assert got == expected[3:]
    with pytest.raises(CheckpointError, match="random"):
        second.load_state_dict(build(name="random").state_dict())


def test_random_is_the_same_arrangement_with_nothing_learned() -> None:
    method = build(name="random", warm_up=0)
    assert isinstance(method, AugmentedMethod)
    assert not method.players
    batches = Fixed()
    before = copy.deepcopy(method.generators.state_dict())
    figures = method.step(batches)
    assert set(figures) == {"loss", "loss_clean", "loss_affine", "loss_deformation", "loss_appearance"}
    assert all(torch.equal(v, before[k]) for k, v in method.generators.state_dict().items() if "strength" not in k)
    affine = method.generate(batches.next("train"))[1].transformation
    assert affine is not None
    assert float(affine.magnitude()["displacement_mean"]) > 0.1


def test_non_finite_gradients_skip_one_player_only() -> None:
    method = build(warm_up=0)
    batches = Fixed()
    method.step(batches)
    weights = copy.deepcopy(method.task.network.state_dict())
    assert isinstance(method, Adversarial)
    assert method.discriminator is not None
    with torch.no_grad():
        method.discriminator.score.weight.fill_(float("nan"))
    before = copy.deepcopy(method.generators.state_dict())
    method.step(batches)
    assert dict(method.task.precision.skipped) == {"generators": 1, "discriminator": 1}
    after = method.generators.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert any(not torch.equal(v, weights[k]) for k, v in method.task.network.state_dict().items())


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_bfloat16(fidelity: str) -> None:
    method = build(precision="bfloat16", fidelity=fidelity, warm_up=0)
    batches = Fixed(shape=(16, 16, 16), size=4)
    figures = [method.step(batches) for _ in range(2)][-1]
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())


@pytest.mark.parametrize("mode", ["combined", "deformation"])
def test_two_dimensions_and_two_channels(mode: str) -> None:
    torch.manual_seed(0)
    network = UNet(2, 2, 3, (4, 8), (2,), num_res_units=1)
    method = build(network, spatial_dims=2, image_channels=2, mode=mode)
    figures = method.step(Fixed(shape=(24, 20), channels=2))
    assert torch.isfinite(torch.tensor(figures["loss"]))


def test_transform_moves_everything_that_belongs_together() -> None:
    method = moved(build())
    assert isinstance(method, AugmentedMethod)
    base = Fixed(margin=(2, 2, 2)).batches["train"]
    valid = torch.ones(4, 1, 16, 20, 16)
    valid[:, :, :8] = 0
    batch = Batch(base.image, base.label, valid=valid, extra=base.label[:, 1:], mask=(base.image > -1).float(),
                  case=base.case, margin=base.margin)  # fmt: skip
    noise = method.generators["affine"].sample_noise(4)
    t = method.generators["affine"](batch.image, noise)
    out = transform(batch, t)
    assert out.image.shape == (4, 1, 12, 16, 12)
    assert torch.allclose(out.label[:, 1:], out.extra, atol=1e-5)  # further channels follow like a label
    assert torch.allclose(out.valid, t.apply_label(valid, margin=(2, 2, 2)), atol=1e-6)
    assert bool((out.image[out.mask < 0.5] == 0).all())
    plain = transform(replace(batch, mask=None), t).image
    assert torch.equal(out.image[out.mask >= 0.5], plain[out.mask >= 0.5])  # the edge is not darkened twice
    shade = method.generators["appearance"](batch.image)
    kept = transform(batch, shade)
    assert torch.equal(kept.extra, batch.cropped().extra)
    assert not torch.equal(kept.image, batch.cropped().image)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_balance_is_a_ratio_of_gradients(steps: int) -> None:
    """What reaches the head is of unit size a whole batch, and the realism game's share is the weight asked for."""
    balancer = Balancer(("head", "task", "realism"), "cpu")
    x, y = torch.ones(6, requires_grad=True), torch.ones(6, requires_grad=True)
    for _ in range(2):
        x.grad = y.grad = None
        for _ in range(steps):
            task = (balancer.metered("task")(y) * 3).sum()
            realism = (balancer.ratio("realism", "task", 0.25)(y) * torch.arange(6.0)).sum()
            ((1e3 * balancer.unit("head", 1 / steps)(x)).sum() + task + realism).backward()
            balancer.update()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.allclose(x.grad.sum(), torch.ones(()))
    share = (y.grad / steps - 3).norm() / (3 * torch.ones(6)).norm()
    assert float(share) == pytest.approx(0.25, rel=1e-4)


def test_the_discriminator_sees_no_resampling_in_appearance() -> None:
    """Sharpness of transformed and real patches is alike, whatever the kind: white noise tells blur at once."""
    method = moved(build(warm_up=0, mode="appearance"))
    assert isinstance(method, Adversarial)
    batch = replace(Fixed(size=8).batches["train"], image=torch.randn(8, 1, 16, 20, 16))

    class Noise:
        def next(self, stream: str) -> Batch:
            return batch

    part = method.generate(batch)[0]
    real = method._real(Noise(), 8)
    fake = method._interior(method._resampled(part))
    assert part.batch.image.diff(dim=2).std() > 1.3 * real.diff(dim=2).std()
    assert float(fake.diff(dim=2).std() / real.diff(dim=2).std()) == pytest.approx(1, abs=0.15)


def test_building_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    network = methods.prepare("adversarial", unet())
    task = Task(network, torch.optim.SGD(network.parameters(), 0.1), losses, Precision("cpu"))
    torch.manual_seed(5)
    methods.build("adversarial", task, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_groups_are_back_at_rest_after_a_step() -> None:
    method = build()
    method.step(Fixed())
    layers = [m for m in method.task.network.modules() if hasattr(m, "auxiliary_weight")]
    assert layers
    assert all(m.group is None for m in layers)
    with norm_groups(method.task.network, torch.tensor([0])):
        assert all(m.group is not None for m in layers)
