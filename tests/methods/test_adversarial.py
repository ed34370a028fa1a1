# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The adversarial method: its discriminator, what it logs, resume."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from method_helpers import Fixed, build, moved, unet

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError
from monai_autoaug.methods.adversarial import Adversarial


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


def test_a_run_goes_on_on_another_kind_of_device() -> None:
    """A generator of a GPU has a state of another size; its numbers can't be had here, but the run can go on."""
    method = build()
    method.step(Fixed())
    state = method.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}
    first, second = build(), build()
    for resumed in (first, second):
        with pytest.warns(UserWarning, match="another kind of device"):
            resumed.load_state_dict(state)
    assert torch.equal(first.generator.get_state(), second.generator.get_state())  # the same numbers every time
    assert not torch.equal(first.generator.get_state(), build().generator.get_state())


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


def test_real_patches_are_drawn_from_the_whole_batch() -> None:
    """Hosts put patches centred on foreground last: the first ones alone would tell real from transformed."""
    method = build(warm_up=0)
    assert isinstance(method, Adversarial)
    batch = Fixed(size=4).batches["real"]
    marked = replace(batch, image=torch.arange(4.0).view(4, 1, 1, 1, 1).expand_as(batch.image).clone())

    class Marked:
        def next(self, stream: str) -> Batch:
            return marked

    seen = {round(float(x)) for _ in range(20) for x in method._real(Marked(), 2).mean((1, 2, 3, 4))}
    assert seen == {0, 1, 2, 3}


def test_every_loss_and_magnitude_is_logged() -> None:
    method = build(warm_up=1)
    batches = Fixed()
    figures = method.step(batches)
    penalties = {f"{kind}_penalty" for kind in ("affine", "deformation", "appearance")}
    losses_ = {"loss", "loss_clean", "loss_affine", "loss_deformation", "loss_appearance"}
    assert set(figures) == penalties | losses_ | {"realism", "discriminator_accuracy"}
    means = method.on_epoch(1)
    assert set(figures) <= set(means)
    assert {"affine_loss_ratio", "affine_learned_share", "deformation_jacobian_minimum"} <= set(means)
    assert means["affine_learned_share"] < 1e-3  # fresh: the noise acts through the random policy's draw alone
    assert means["affine_noise_share"] > 0.9


@pytest.mark.parametrize("mode", ["affine", "appearance"])
def test_a_single_kind_is_compared_with_clean_samples_too(mode: str) -> None:
    network = unet("BATCH")
    method = moved(build(network, mode=mode), 0.5)
    method.step(Fixed(everything=False))
    before = copy.deepcopy(network.state_dict())
    figures = method.on_epoch(1)
    assert figures[f"{mode}_loss_ratio"] > 0.5
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())  # looking changes nothing


def test_no_collapse_is_reported_while_the_augmentation_warms_up() -> None:
    method = build(warm_up=50, bounds={"affine": {"rotation": 0.0, "log_scale": 0.0, "shear": 0.0, "translation": 0.0}})
    method.step(Fixed())
    method.on_epoch(1)
    assert method.warnings() == []
    method.steps = 50
    method.step(Fixed())
    method.on_epoch(2)
    assert any("affine" in w for w in method.warnings())


def test_a_resumed_training_tells_the_same_of_its_epochs() -> None:
    """Batches that are too small for all kinds: which one came first, epochs ago, must not matter."""
    batches = Fixed(size=2, shape=(16, 16, 16))
    whole = build(warm_up=0, width=2)
    for _ in range(3):
        whole.step(batches)
    whole.on_epoch(1)
    resumed = build(warm_up=0, width=2)
    resumed.task.network.load_state_dict(whole.task.network.state_dict())
    resumed.task.optimizer.load_state_dict(copy.deepcopy(whole.task.optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for method in (whole, resumed):
        for _ in range(3):
            method.step(batches)
    assert whole.on_epoch(2) == resumed.on_epoch(2)
