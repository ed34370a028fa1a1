# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The task-driven method: its losses and who gets their gradients, its phases, what the network trains on, resume."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from general_helpers import changed, tiny, weights
from method_helpers import losses
from task_driven_helpers import SHAPE, Streams, go_to, gradients, make, moved, norm, same, unlabelled
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.parts import concatenate, transform
from monai_autoaug.methods.task_driven import TaskDriven
from monai_autoaug.methods.task_driven_patches import seen_after
from monai_autoaug.networks import built
from monai_autoaug.precision import Precision

PLAIN: dict[str, Any] = {"affine": (), "discriminator_resamples": False}
LEARNING = ["deformation", "appearance"]


def _descend(module: nn.Module, loss: Tensor, rate: float = 0.1) -> None:
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True),
                    strict=True):  # fmt: skip
        if g is not None:
            p.data -= rate * g


@pytest.mark.parametrize(("fidelity", "saturating"), [("default", False), ("default", True), ("paper", True)])
@pytest.mark.parametrize("kind", LEARNING)
def test_a_step_is_the_three_separate_optimisations(kind: str, fidelity: str, saturating: bool) -> None:
    """Float64: against Eqs. 4 to 6 written down plainly, with a partly unknown label and further channels."""
    given = {"weight_task": 0.7, "weight_adversarial": 0.4, "weight_big": 0.05, "saturating": saturating,
             "fidelity": fidelity}  # fmt: skip
    method = moved(make(tiny(2, 2).double(), augmentation=kind, **given, **PLAIN))
    for player in method.players.values():
        player.module.double()
        player.optimizer = torch.optim.SGD(player.module.parameters(), 0.1)
    method.task.optimizer = torch.optim.SGD(method.task.network.parameters(), 0.1)
    batches, state = Streams(dtype=torch.float64, everything=True), method.generator.get_state()
    g, c, d = (copy.deepcopy(m) for m in (method.generators[kind], method.task.network, method.discriminator))
    assert d is not None
    figures = method.step(batches)

    method.generator.set_state(state)
    order = torch.randperm(4, generator=method.generator)
    x, other = (batches.batches["train"].rows(rows) for rows in (order[:2], order[2:]))
    noise = torch.randn(2, 4, generator=method.generator).double()
    noise = torch.cat([noise, g.sample_noise(2, method.generator)[:, 4:]], 1)
    pool = batches.batches["unlabelled"].image[torch.randperm(4, generator=method.generator)[:1]]
    field = g(x.image, noise)
    fake = transform(x, field)
    whole = concatenate([other, fake])
    assert whole.extra is not None
    task = losses(c(torch.cat([whole.image, whole.extra], 1)), whole.label, whole.valid).mean()
    real = torch.cat([other.image[:1], pool])
    # real and transformed ones are one batch, of whose norms the paper's form has some
    found_out = d(torch.cat([fake.image, real]))[:2].sigmoid()
    adversarial = (1 - found_out).log().mean() if saturating else -found_out.log().mean()
    size = (field.displacement if kind == "deformation" else field.additive).abs().mean()
    scores = d(torch.cat([fake.image.detach(), real])).sigmoid()
    judged = -scores[2:].log().mean() - (1 - scores[:2]).log().mean()
    _descend(g, 0.7 * task + 0.4 * adversarial - 0.05 * size)
    _descend(c, task)
    _descend(d, judged)
    assert figures["loss"] == pytest.approx(float(task.detach()), rel=1e-5)
    assert figures["loss_discriminator"] == pytest.approx(float(judged.detach()), rel=1e-5)
    assert figures["realism"] == pytest.approx(float(adversarial.detach()), rel=1e-5)
    pairs = [(method.generators[kind], g), (method.task.network, c), (method.discriminator, d)]
    for ours, theirs in pairs:
        assert ours is not None
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert float((a - b).detach().abs().max()) <= 1e-10, name


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_unlabelled_images_reach_discriminator_and_generator_but_not_the_network(fidelity: str) -> None:
    """Spec check 17: at once where real and transformed patches share a batch norm, else by the next step."""
    found = []
    for shift in (0.0, 1.0):
        method = moved(make(fidelity=fidelity, affine=()))
        batches = Streams()
        pool = batches.batches["unlabelled"]
        batches.batches["unlabelled"] = replace(pool, image=pool.image + shift)
        first = gradients(method, batches)
        player = method.players["discriminator"]
        player.optimizer = torch.optim.SGD(player.module.parameters(), 0.1)
        state = method.generator.get_state()
        method.step(batches)
        method.generator.set_state(state)
        found.append((first, gradients(method, batches)))
    (a, a_later), (b, b_later) = found
    assert same(a["network"], b["network"])
    assert same(a_later["network"], b_later["network"])
    assert not same(a["discriminator"], b["discriminator"])
    assert same(a["generator"], b["generator"]) == (fidelity == "default")
    assert not same(a_later["generator"], b_later["generator"])


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("kind", LEARNING)
def test_the_task_reaches_the_generator(kind: str, fidelity: str) -> None:
    """Spec check 18: nothing but the task; in proportion to its weight; not at all with weight 0."""
    alone = {"augmentation": kind, "fidelity": fidelity, "weight_adversarial": 0.0, "weight_big": 0.0}
    whole, half, none = (gradients(moved(make(weight_task=w, **alone)), Streams()) for w in (1.0, 0.5, 0.0))
    assert norm(whole["generator"]) > 0
    assert norm(half["generator"]) == pytest.approx(norm(whole["generator"]) / 2, rel=1e-5)
    assert norm(none["generator"]) == 0
    assert same(whole["network"], half["network"])
    assert same(whole["network"], none["network"])


def test_the_tasks_gradient_is_that_of_image_and_label() -> None:
    """Float64: along a random direction of the generator, against central differences of the network's loss."""
    method = moved(make(tiny(2).double(), augmentation="deformation", weight_adversarial=0.0, weight_big=0.0))
    method.generators.double()
    batches, state = Streams(dtype=torch.float64), method.generator.get_state()
    found = gradients(method, batches)["generator"]
    parameters = list(method.generators.parameters())
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(5)) for p in parameters]
    exact = sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True) if g is not None)
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
        method.generator.set_state(state)
        method.patches.turns = [0, 0]
        with torch.no_grad():
            source, other = method.patches.divided(batches.batches["train"])
            made = transform(source, method.patches.move(source, ("deformation",)))
            whole = concatenate([method.patches.original(other), made])
            values.append(float(losses(method.task.network(whole.image), whole.label, None).mean()))
    assert exact != 0
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("kind", LEARNING)
def test_the_big_term_alone_makes_fields_larger_within_their_bound(kind: str) -> None:
    """Spec check 20; the mask grows faster, and must not be at its bound before the last step."""
    method = make(augmentation=kind, weight_task=0.0, weight_adversarial=0.0, weight_big=1.0,
                  learning_rate_generator={"deformation": 0.02, "appearance": 0.005}[kind])  # fmt: skip
    batches, state, sizes = Streams(), method.generator.get_state(), []
    for _ in range(21):
        method.generator.set_state(state)
        method.patches.turns = [0, 0]
        sizes.append(method.step(batches)["field_size"])
    assert sum(b > a for a, b in zip(sizes, sizes[1:], strict=False)) >= 18
    assert sizes[-1] > 1.2 * sizes[0]
    assert sizes[-1] <= (0.1 * max(SHAPE) if kind == "deformation" else 0.5)


# --- phases -----------------------------------------------------------------------------------------------------------


def test_phases_are_one_a_generator_and_the_network() -> None:
    names = {a: [(p.name, p.fresh) for p in make(augmentation=a).phases] for a in ("both", "appearance", "none")}
    assert names == {
        "both": [("deformation", False), ("appearance", True), ("network", True)],
        "appearance": [("appearance", False), ("network", True)],
        "none": [("network", False)],
    }
    assert [p.share for p in make(generator_length=0.5).phases] == [0.5, 0.5, 1.0]
    assert TaskDriven.keeps_best


def test_each_generator_has_a_network_and_a_discriminator_of_its_own() -> None:
    method, batches = make(), Streams()
    first = method.discriminator
    assert set(method.players) == {"generator", "discriminator"}
    assert method.players["generator"].module is method.generators["deformation"]
    others = weights(method.generators["appearance"])
    before = weights(method.generators["deformation"])
    method.step(batches)
    assert changed(before, method.generators["deformation"])
    assert not changed(others, method.generators["appearance"])
    trained = weights(method.task.network)
    go_to(method, "appearance")
    assert changed(trained, method.task.network)
    assert method.players["generator"].module is method.generators["appearance"]
    assert method.discriminator is not first
    assert first is not None
    assert method.discriminator is not None
    assert changed(weights(first), method.discriminator)  # not even the same at the start
    kept = weights(method.generators["deformation"])
    method.step(batches)
    assert not changed(kept, method.generators["deformation"])
    assert changed(others, method.generators["appearance"])
    go_to(method, "network")
    assert method.players == {}
    assert method.discriminator is None


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_in_the_last_phase_generators_stay_as_they_are_and_the_network_is_fresh(fidelity: str) -> None:
    """Spec check 19, parameters and buffers bit for bit."""
    method, batches = moved(make(fidelity=fidelity, seed=3)), Streams()
    method.step(batches)
    trained = weights(method.task.network)
    go_to(method, "network")
    assert changed(trained, method.task.network)
    assert not changed(weights(built(lambda: tiny(2), 3 * 1009 + 2)), method.task.network)
    generators, network = weights(method.generators), weights(method.task.network)
    batches.asked.clear()
    for _ in range(3):
        method.step(batches)
    assert not changed(generators, method.generators)
    assert all(not p.requires_grad and p.grad is None for p in method.generators.parameters())
    assert changed(network, method.task.network)
    assert set(batches.asked) == {"train"}


def test_while_it_warms_up_the_network_trains_alone() -> None:
    method, batches = make(warm_up=2), Streams()
    before, network = weights(*(p.module for p in method.players.values())), weights(method.task.network)
    for _ in range(2):
        figures = method.step(batches)
        assert set(figures) == {"loss", "loss_clean", "loss_deformation"}
    assert not changed(before, *(p.module for p in method.players.values()))
    assert changed(network, method.task.network)
    assert "unlabelled" not in batches.asked
    assert {"field_size", "realism", "loss_discriminator", "discriminator_accuracy"} <= set(method.step(batches))
    assert changed(before, *(p.module for p in method.players.values()))
    assert set(go_to(method, "appearance").step(batches)) == {"loss", "loss_clean", "loss_appearance"}  # and again


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("phase", ["deformation", "appearance", "network"])
def test_state_round_trip_goes_on_exactly_in_each_phase(phase: str, fidelity: str) -> None:
    given = {"fidelity": fidelity, "mixup": True}
    batches = Streams(size=3)

    def begun(**more: Any) -> TaskDriven:
        return make(**given, **more)

    straight = begun()
    straight.step(batches)
    go_to(straight, phase)
    expected = [straight.step(batches) for _ in range(3)]
    first = begun()
    first.step(batches)
    go_to(first, phase)
    first.step(batches)
    buffer = io.BytesIO()
    torch.save({"method": first.state_dict(), "network": first.task.network.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second = begun(seed=99)
    second.task.network.load_state_dict(state["network"])
    second.load_state_dict(state["method"])
    assert second.phase.name == phase
    assert [second.step(batches) for _ in range(2)] == expected[1:]


# --- what it trains on ------------------------------------------------------------------------------------------------


def test_the_network_trains_on_originals_and_all_three_kinds_of_what_is_made() -> None:
    """Half a batch each; of what is made, the kinds take turns."""
    method = moved(make(phase="network"))
    batch, seen = Streams().batches["train"], []
    for _ in range(3):
        parts = method.patches.parts(batch)
        assert len(parts["clean"].image) == 2
        assert {*concatenate(list(parts.values())).case} == set(batch.case)
        seen += [name for name, part in parts.items() if name != "clean" for _ in part.image]
    assert sorted(seen) == ["appearance"] * 2 + ["deformation"] * 2 + ["deformation_appearance"] * 2


def test_the_second_generator_sees_what_the_first_has_made_with_the_same_noise() -> None:
    method = moved(make(phase="network"))
    batch, seen = Streams().batches["train"], {}
    for kind, generator in method.generators.items():

        def keep(module: nn.Module, given: tuple[Tensor, ...], options: Any, kind: str = kind) -> None:
            seen[kind] = given

        generator.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        move = method.patches.move(batch, ("deformation", "appearance"))
    assert move.matrix is not None
    assert move.displacement is not None
    assert move.additive is not None
    torch.testing.assert_close(seen["appearance"][0], seen_after(batch, replace(move, additive=None)))
    placed = replace(move, displacement=None, velocity=None, additive=None)
    torch.testing.assert_close(seen["deformation"][0], seen_after(batch, placed))
    assert torch.equal(seen["deformation"][1][:, :4], seen["appearance"][1][:, :4])


@pytest.mark.parametrize("phase", ["deformation", "network"])
def test_what_the_network_sees_has_no_margin_and_fits_its_label(phase: str) -> None:
    """Images that are painted from their labels stay so, whatever moves them in one resampling."""
    heard: list[Batch] = []

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "forward":
            heard.append(values["batch"])

    method = moved(make(listener=listen, augmentation="deformation", phase=phase))
    batches = Streams(shape=(20, 24), margin=(2, 2))
    batch = batches.batches["train"]
    batches.batches["train"] = replace(batch, image=batch.label[:, 1:2] - batch.label[:, 0:1])
    method.step(batches)
    whole = heard[0]
    assert whole.image.shape == (4, 1, *SHAPE)
    torch.testing.assert_close(whole.image, whole.label[:, 1:2] - whole.label[:, 0:1], atol=1e-5, rtol=0)
    assert float((whole.label.sum(1) - 1).abs().max()) < 1e-5
    assert float((whole.label * (1 - whole.label)).max()) > 0.1  # soft: it has been resampled


@pytest.mark.parametrize("size", [1, 3])
def test_batches_of_any_size_train_every_phase(size: int) -> None:
    """One labelled image is the use case, and a batch of one patch may be all there is memory for."""
    method, batches = make(mixup=True), Streams(size=size)
    for phase in ("deformation", "appearance", "network"):
        go_to(method, phase)
        for _ in range(2):
            assert all(torch.isfinite(torch.tensor(v)) for v in method.step(batches).values())
    counts = [tuple(len(b.image) for b in method.patches.divided(batches.batches["train"])) for _ in range(2)]
    assert counts == ([(1, 1)] * 2 if size == 1 else [(1, 2), (2, 1)])


@pytest.mark.parametrize("mode", ["none", "elastic", "contrast"])
def test_the_papers_controls_augment_half_of_each_batch(mode: str) -> None:
    method, batches = make(augmentation=mode, affine=()), Streams()
    parts = method.patches.parts(batches.batches["train"])
    assert [(n, len(p.image)) for n, p in parts.items()] == (
        [("clean", 4)] if mode == "none" else [("clean", 2), (mode, 2)]
    )
    if mode != "none":
        before, after = batches.batches["train"], parts[mode]
        rows = [before.case.index(c) for c in after.case]
        assert not torch.allclose(after.image, before.image[rows], atol=1e-2)
        assert torch.allclose(after.label, before.label[rows], atol=1e-4) == (mode == "contrast")
    assert method.augmenters() == {}
    assert method.streams(augmentation=mode) == ("train",)
    assert "loss_clean" in method.step(batches)


def test_masks_stay_zero_and_unknown_voxels_unknown() -> None:
    method = moved(make(phase="network"))
    batches = Streams()
    batch = batches.batches["train"]
    mask = torch.ones_like(batch.image)
    mask[..., :6] = 0
    known = torch.ones_like(batch.image)
    known[:, :, :4] = 0
    parts = method.patches.parts(replace(batch, image=(batch.image + 9) * mask, mask=mask, valid=known))
    whole = concatenate(list(parts.values()))
    assert whole.valid is not None
    assert 0.1 < float((whole.image == 0).float().mean()) < 0.6
    assert float(whole.image[whole.image != 0].min()) > 1  # no voxel is half of one outside
    assert 0.5 < float(whole.valid.mean()) < 0.95


# --- what the discriminator sees --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "counts"),
    [({}, [(1, 1)] * 4), ({"labelled_share": 0.25}, [(0, 2), (1, 1)] * 2), ({"labelled_share": 0.0}, [(0, 2)] * 4),
     ({"labelled_share": 1.0}, [(2, 0)] * 4), ({"unlabelled": False}, [(2, 0)] * 4)],
)  # fmt: skip
def test_real_patches_are_labelled_and_unlabelled_in_the_share_that_is_wanted(
    given: dict[str, Any], counts: list[tuple[int, int]]
) -> None:
    method, batches = make(**given, **PLAIN), Streams()
    batch = batches.batches["train"]
    batches.batches["unlabelled"] = replace(unlabelled(batch), image=torch.full_like(batch.image, 7.0))
    seen = []
    for _ in counts:
        batches.asked.clear()
        real = method.realism._real(2, batch, batch, batches, blur=False)
        dark = int((real.flatten(1).mean(1) == 7).sum())
        seen.append((len(real) - dark, dark))
        assert ("unlabelled" in batches.asked) == (dark > 0)
    assert seen == counts
    assert ("unlabelled" in method.needs) == any(dark for _, dark in counts)


def test_real_patches_pass_the_affine_augmentation_too() -> None:
    batch = Streams(size=8).batches["train"]
    seen = make(affine=("flip",), discriminator_resamples=False).realism._as_real(batch, blur=False)
    is_flipped = (seen - batch.image.flip(-1)).abs().flatten(1).amax(1) < 1e-4
    is_same = (seen - batch.image).abs().flatten(1).amax(1) < 1e-4
    assert bool((is_flipped | is_same).all())
    assert 0 < int(is_flipped.sum()) < 8
    plain = make(**PLAIN)
    assert torch.equal(plain.realism._as_real(batch, blur=False), batch.image)


def test_the_discriminator_sees_all_patches_alike() -> None:
    """Without their border; where transformed patches are resampled, real ones are too."""
    method = make()
    batch = replace(Streams(size=8, shape=(32, 32)).batches["train"], image=torch.randn(8, 1, 32, 32))
    real = method.realism._as_real(batch, blur=True)
    with torch.no_grad():
        fake = method.realism._looked_at(transform(batch, method.patches.move(batch, ("deformation",))))
    assert real.shape == fake.shape == (8, 1, 24, 24)
    assert float(fake.diff(dim=2).std() / real.diff(dim=2).std()) == pytest.approx(1, abs=0.2)
    assert batch.image.diff(dim=2).std() > 1.3 * real.diff(dim=2).std()
    sharp = make(affine=()).realism._as_real(batch, blur=False)
    assert torch.equal(sharp, batch.image[:, :, 4:-4, 4:-4])
    blurs = []
    for kind in LEARNING:
        one = make(augmentation=kind)
        one.realism._real = lambda *a, blur, **k: blurs.append(blur) or torch.zeros(2, 1, 12, 16)  # type: ignore[method-assign,func-returns-value]
        one.step(Streams())
    assert blurs == [True, False]


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_both_forms_train_in_both_dimensions_and_in_bfloat16(
    fidelity: str, spatial_dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without oneDNN, whose bfloat16 gradients of a 3D convolution over 2x2x2 voxels read memory that nobody wrote."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    channels = 2 if spatial_dims == 2 else 1
    method = make(spatial_dims=spatial_dims, channels=channels, fidelity=fidelity, precision="bfloat16")
    assert (method.saturating, method.realism.resamples) == ((False, True) if fidelity == "default" else (True, False))
    batches = Streams(shape=(16, 20, 12)[:spatial_dims], channels=channels)
    for phase in ("deformation", "appearance", "network"):
        modules = [method.task.network, *(p.module for p in go_to(method, phase).players.values())]
        before = [weights(m) for m in modules]
        for _ in range(2):
            figures = method.step(batches)
        assert all(torch.isfinite(torch.tensor(v)) for v in figures.values())
        assert all(changed(b, m) for b, m in zip(before, modules, strict=True))
    assert not method.task.precision.skipped


def test_certain_players_leave_everything_finite() -> None:
    method = moved(make(saturating=True))
    with torch.no_grad():
        method.discriminator.score.bias.fill_(-300.0)  # type: ignore[union-attr]  # there is one
    figures = method.step(Streams())
    assert figures["loss_discriminator"] == pytest.approx(300, rel=0.1)
    assert not method.task.precision.skipped


def test_non_finite_gradients_skip_one_player_only() -> None:
    method = moved(make())
    with torch.no_grad():
        method.discriminator.score.weight.fill_(float("nan"))  # type: ignore[union-attr]  # there is one
    before, network = weights(method.generators), weights(method.task.network)
    method.step(Streams())
    assert dict(method.task.precision.skipped) == {"generator": 1, "discriminator": 1}
    assert not changed(before, method.generators)
    assert changed(network, method.task.network)


def test_what_an_epoch_tells() -> None:
    for fidelity in ("default", "paper"):
        method = moved(make(fidelity=fidelity))
        figures = method.step(Streams())
        state = method.generator.get_state()
        means = method.on_epoch(1)
        assert set(figures) <= set(means)
        assert {"deformation_noise_share", "deformation_displacement_mean", "deformation_jacobian_minimum",
                "deformation_loss_ratio"} <= set(means)  # fmt: skip
        assert torch.equal(method.generator.get_state(), state)
        go_to(method, "network").step(Streams())
        assert not [n for n in method.on_epoch(2) if n.startswith("deformation_n")]
        assert method.warnings() == []
    fresh = make(fidelity="paper", **{"augmentation": "appearance"})
    fresh.step(Streams())
    fresh.on_epoch(1)
    assert any("collapsed to the identity" in w for w in fresh.warnings())


def test_the_price_of_the_phases_is_said_beforehand() -> None:
    method = make(generator_length=0.5)
    method.task.steps = 1000
    first, second = method.announcement()
    assert first == (
        "Training has 3 phases: deformation (25 % of the epochs, about 250 updates), appearance (25 %, about 250),"
        " network (50 %, about 500)"
    )
    assert "ask for 2 times its epochs" in second
    method.task.steps = None
    assert "updates" not in method.announcement()[0]
    assert make(augmentation="elastic").announcement() == []


def test_generators_are_kept_by_kind() -> None:
    assert list(make().augmenters()) == ["deformation", "appearance"]
    assert [a.kind for a in make(fidelity="paper").augmenters().values()] == [
        "conditional_deformation", "conditional_appearance",
    ]  # fmt: skip
    assert make(fidelity="paper").augmenters()["deformation"].base == (1, 1)  # a 32nd of the patch


def test_classification_is_refused() -> None:
    network = tiny(2)
    from monai_autoaug.methods import Task, build

    task = Task(network, torch.optim.SGD(network.parameters(), 0.1), losses, Precision("cpu"), spatial_dims=2,
                classification=True)  # fmt: skip
    with pytest.raises(ConfigError, match="made for segmentation"):
        build("task_driven", task)
