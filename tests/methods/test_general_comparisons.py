# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every row of the paper's Tables 1 and 3 and of its Fig. 4: a switch changes what it says and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from general_helpers import changed, make, moved, tiny, weights
from method_helpers import Fixed

from monai_autoaug import methods
from monai_autoaug.augmenters import GeneralAugmenter
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.general_comparisons import GENERAL_COMPARISONS, general_comparison

SHAPE = (12, 16, 12)


@dataclass(frozen=True)
class Expected:
    """What is to be seen of a row."""

    parts: tuple[str, ...] = ()  # of the generator
    terms: tuple[str, ...] = ()
    separate: float = 0.0

    @property
    def discriminators(self) -> tuple[str, ...]:
        return tuple(t for t in self.terms if t != "adversarial")


BOTH = ("class", "dissimilarity")
ROWS = {
    "a": Expected(),
    "b": Expected(),
    "c": Expected(("affine",), BOTH),
    "d": Expected(("decoder",), ("class",)),
    "e": Expected(("appearance",), ("class",)),
    "f": Expected(("appearance",), ("dissimilarity",)),
    "g": Expected(("appearance",), BOTH),
    "h": Expected(("affine", "appearance"), BOTH),
    "l": Expected(("affine", "appearance"), (*BOTH, "adversarial")),
    "light": Expected(),
    "strong": Expected(),
    "separate_200": Expected(("affine", "appearance"), BOTH, 200 / 1200),
    "separate_500": Expected(("affine", "appearance"), BOTH, 500 / 1500),
    "separate_700": Expected(("affine", "appearance"), BOTH, 700 / 1700),
    "separate_1000": Expected(("affine", "appearance"), BOTH, 0.5),
}


def test_the_table_is_whole() -> None:
    assert set(GENERAL_COMPARISONS) == set(ROWS)
    assert all(row.what.endswith(".") for row in GENERAL_COMPARISONS.values())
    assert len({str(sorted(row.options.items(), key=str)) for row in GENERAL_COMPARISONS.values()}) == len(ROWS)
    with pytest.raises(ConfigError, match="there is no comparison 'i'; choose one of a, b, "):
        general_comparison("i")


@pytest.mark.parametrize("name", ROWS)
def test_a_row(name: str) -> None:
    expected, options = ROWS[name], general_comparison(name)
    seen: list[Batch] = []

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "forward":
            seen.append(values["batch"])

    method, batches = moved(make(listener=listen, **options), 0.05), Fixed(shape=SHAPE)
    # what there is: generator, discriminators, streams, phases
    generator = method.generators["general"] if expected.parts else None
    parts = generator.parts if isinstance(generator, GeneralAugmenter) else ("decoder",) * (generator is not None)
    assert parts == expected.parts
    assert method.terms == expected.terms
    assert tuple(method.discriminators) == expected.discriminators
    players = {"generator"} | {f"{d}_discriminator" for d in expected.discriminators} if expected.terms else set()
    assert set(method.players) == players
    needs = ("train", "real") if "dissimilarity" in expected.terms else ("train",)
    assert method.needs == methods.streams("general_adversarial", **options) == needs
    assert method.phases[0].share == (expected.separate or 1.0)
    assert len(method.phases) == 1 + bool(expected.separate)
    # who learns
    network, own = weights(method.task.network), {n: weights(p.module) for n, p in method.players.items()}
    figures = method.step(batches)
    assert batches.asked == list(needs)
    assert changed(network, method.task.network) == (not expected.separate)
    assert all(changed(own[n], p.module) for n, p in method.players.items())
    terms = {n.removeprefix("generator_") for n in figures if n.startswith("generator_")} - {"loss"}
    assert terms == set(expected.terms)
    assert bool(method.augmenters()) == (bool(expected.parts) and expected.parts != ("decoder",))
    assert len(seen) == 1  # hosts hear of a prediction in each step


@pytest.mark.parametrize("name", [n for n in ROWS if n != "b"])
def test_a_row_changes_nothing_else(name: str) -> None:
    """Network, noise and those discriminators that are there begin as in the whole method."""
    whole, method = make(), make(**general_comparison(name))
    assert not changed(weights(whole.task.network), method.task.network)
    if method.learns:
        assert torch.equal(whole._noise(3), method._noise(3))
    assert torch.equal(whole.generator.get_state(), method.generator.get_state())
    for key, discriminator in method.discriminators.items():
        assert not changed(weights(whole.discriminators[key]), discriminator)
    same = ("balance", "doubled", "resamples", "fidelity", "noise_size", "width", "width_discriminator", "bounds")
    assert all(getattr(whole, n) == getattr(method, n) for n in same)
    left = {n.removeprefix("weight_") for n in general_comparison(name) if n.startswith("weight_")}
    assert all(whole.weights[n] == method.weights[n] for n in set(whole.weights) - left)


def test_the_network_alone_is_the_plain_training_step() -> None:
    batches = Fixed(shape=SHAPE)
    method = make(**general_comparison("a"))
    plain = methods.build("none", make().task)
    plain.task.loss = lambda output, batch: plain.task.losses(output, batch.label, batch.valid).mean()  # type: ignore[method-assign]
    for _ in range(2):
        assert method.step(batches)["loss"] == pytest.approx(plain.step(batches)["loss"], abs=1e-6)
    ours, theirs = weights(method.task.network), weights(plain.task.network)
    assert all(torch.allclose(v, theirs[k], atol=1e-6) for k, v in ours.items())


@pytest.mark.parametrize("level", ["light", "strong"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_fixed_augmentation_moves_image_and_label_of_every_patch(level: str, spatial_dims: int) -> None:
    seen: list[Batch] = []

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "forward":
            seen.append(values["batch"])

    method = make(spatial_dims=spatial_dims, augmentation=level, listener=listen)
    batches = Fixed(shape=(24, 24, 24)[:spatial_dims], size=6)
    plain = batches.batches["train"]
    assert set(method.step(batches)) == {"loss", "loss_affine"}
    still = [torch.equal(a, b) for a, b in zip(seen[0].image, plain.image, strict=True)]
    assert sum(still) <= 1
    assert not torch.equal(seen[0].label, plain.label)
    assert torch.allclose(seen[0].label.sum(1), torch.ones(()), atol=1e-5)
    assert not method.augmenters()


def test_a_standard_spatial_transformer_learns_with_the_network() -> None:
    method, batches = make(**general_comparison("b")), Fixed(shape=SHAPE)
    transformer = method.task.network.spatial_transformer
    before = weights(transformer)
    assert transformer.bounded
    method.step(batches)
    assert changed(before, transformer)
    assert not make(augmentation="stn", fidelity="paper").task.network.spatial_transformer.bounded
    with pytest.raises(ConfigError, match="prepare"):
        methods.build("general_adversarial", make().task, augmentation="stn")


def test_decoded_images_are_of_the_label_and_both_are_as_large_as_the_patch() -> None:
    method, batches = make(**general_comparison("d")), Fixed(shape=(16, 20, 16), margin=(2, 2, 2))
    batch = batches.batches["train"]
    made = method._transformed(batch, method._noise(4))
    assert made.image.shape == (4, 1, 12, 16, 12)
    assert torch.equal(made.label, batch.cropped().label)
    other = method._transformed(batch, method._noise(4))
    assert not torch.allclose(made.image, other.image, atol=1e-3)


def test_the_number_of_classes_is_the_networks_or_as_told() -> None:
    assert make().discriminators["class"].features[0].in_channels == 1 + 3
    assert make(num_classes=5).discriminators["class"].features[0].in_channels == 1 + 5
    network = tiny(channels=2)
    assert make(network, weight_class=0.0).discriminators["dissimilarity"].features[0].in_channels == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_class": -1.0}, "weight_class must be at least 0"),
        ({"weight_class": 0.0, "weight_dissimilarity": 0.0, "weight_adversarial": 0.0}, "one of its three weights"),
        ({"separate": 1.0, "weight_adversarial": 0.0}, r"separate must be a share of the epochs in \[0, 1\)"),
        ({"separate": 0.5}, "set weight_adversarial to 0, or separate to 0"),
        ({"augmentation": "light", "separate": 0.5, "weight_adversarial": 0.0}, "has no generator: leave separate out"),
        ({"augmentation": "none", "bounds": {"rotation": 3.0}}, "has no generator: leave bounds out"),
        ({"augmentation": "none", "spatial": False}, "has no generator: leave spatial=False out"),
        ({"augmentation": "decoder", "spatial": False}, "has no parts"),
        ({"augmentation": "wild"}, "augmentation must be one of learned, decoder, none, light, strong, stn"),
        ({"bounds": {"rotatoin": 3.0}}, "bounds are rotation, .*, got rotatoin"),
        ({"bounds": {"rotation": -3.0}}, "general: rotation must be"),
        ({"noise_size": 0}, "noise_size must be at least 1"), ({"width": 0}, "width must be at least 1"),
        ({"width_discriminator": 0}, "width_discriminator must be at least 1"),
        ({"mirror_axes": [0]}, "mirror_axes are of augmentation 'strong'"),
        ({"mirror_axes": [3], "augmentation": "strong"}, "0 to 2; got"),
        ({"fidelity": "exact"}, "fidelity must be"), ({"spatial": False, "appearance": False}, "does nothing"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
