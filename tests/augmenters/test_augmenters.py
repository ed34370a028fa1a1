# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Augmenters: identity when fresh, bounded, diverse, conditioned on the image, and known values of the regularisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monai_autoaug import augmenters
from monai_autoaug.augmenters import (
    AffineAugmenter,
    AppearanceAugmenter,
    Augmenter,
    DeformationAugmenter,
    Transformation,
)
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.methods.collapse import noise_share
from monai_autoaug.transforms import geometry

KINDS = [AffineAugmenter, DeformationAugmenter, AppearanceAugmenter]
FORMS = [{"fidelity": "default"}, {"fidelity": "paper"}, {"base": "identity"}]
SHAPES = [((40, 56, 40), 1, 2), ((35, 50, 36), 2, 1), ((64, 64, 64), 1, 1), ((17, 30), 4, 1)]


def perturbed(kind: type[Augmenter], amount: float = 0.5, **options: Any) -> Augmenter:
    """An augmenter a few steps away from its start: last layers moved, full strength."""
    torch.manual_seed(1)
    augmenter = kind(options.pop("spatial_dims", 3), options.pop("in_channels", 1), **options)
    with torch.no_grad():
        for name, parameter in augmenter.named_parameters():
            if not name.startswith("trunk"):
                parameter += amount * torch.randn_like(parameter)
    augmenter.strength.fill_(1.0)
    return augmenter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: next(iter(f.values())))
@pytest.mark.parametrize(("shape", "channels", "batch"), SHAPES)
def test_fresh_augmenters_are_the_identity(
    kind: type[Augmenter], form: dict[str, str], shape: tuple[int, ...], channels: int, batch: int
) -> None:
    augmenter = kind(len(shape), channels, **form)
    image = torch.rand(batch, channels, *shape)
    label = torch.nn.functional.one_hot((image[:, 0] > 0.5).long(), 2).movedim(-1, 1).float()
    t = augmenter(image, 3 * augmenter.sample_noise(batch))
    moved, soft = t.apply_pair(image, label)
    assert moved.shape == image.shape
    assert torch.allclose(moved, image, atol=1e-5)
    assert torch.allclose(soft, label, atol=1e-5)
    assert float(t.regularization()) == pytest.approx(0, abs=1e-9)
    if kind is AppearanceAugmenter:
        assert torch.equal(moved, image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "training"),
    # evaluated with running statistics the paper's form loses most of its diversity, which is why it is not the default
    [({"fidelity": "default"}, True), ({"fidelity": "default"}, False), ({"base": "identity"}, True),
     ({"base": "identity"}, False), ({"fidelity": "paper"}, True)],
)  # fmt: skip
def test_samples_of_one_image_differ(kind: type[Augmenter], form: dict[str, str], training: bool) -> None:
    """Share of the variation that is due to noise, one perturbing step away from the start."""
    augmenter = perturbed(kind, 0.1, **form).train(training)
    image = torch.randn(1, 1, 40, 56, 40).expand(8, -1, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    assert noise_share(augmenter(image, augmenter.sample_noise(8, generator))) >= 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_the_image_conditions_the_transformation(kind: type[Augmenter], fidelity: str) -> None:
    images = torch.randn(2, 1, 24, 24, 24)
    for condition in (True, False):
        augmenter = perturbed(kind, fidelity=fidelity, image_condition=condition).eval()
        noise = augmenter.sample_noise(1).expand(2, -1)
        a, b = (augmenter(images[i : i + 1], noise[:1]) for i in (0, 1))
        same = all(
            torch.equal(getattr(a, n), getattr(b, n))
            for n in ("matrix", "displacement", "additive")
            if getattr(a, n) is not None
        )
        assert same is not condition


@pytest.mark.parametrize("kind", KINDS)
def test_magnitudes_stay_within_their_bounds(kind: type[Augmenter]) -> None:
    augmenter = perturbed(kind, 50.0)  # saturated
    image = torch.randn(4, 1, 40, 56, 40)
    t = augmenter(image)
    figures = t.magnitude()
    if t.matrix is not None:
        bound = torch.tensor([0.0625 * n for n in (40, 56, 40)])
        assert bool((t.matrix[:, :, 3].abs() <= bound + 1e-4).all())
        assert float(torch.linalg.det(t.matrix[:, :, :3]).log().abs().max()) <= 3 * 0.2 + 1e-4
    if t.velocity is not None:
        # a tenth of each axis' size; the mean that is taken off may double it
        assert bool((t.velocity.abs().amax(dim=(0, 2, 3, 4)) <= 2 * torch.tensor([4.0, 5.6, 4.0])).all())
        assert float(figures["jacobian_minimum"].min()) > 0
    if t.additive is not None:
        assert float(t.additive.abs().max()) <= 0.5


def test_fields_at_their_largest_do_not_fold() -> None:
    """Random signs at every control point, full bound: the worst that the parametrisation can do, 100 draws."""
    shape = (40, 56, 40)
    augmenter = DeformationAugmenter(3, 1)
    augmenter.strength.fill_(1.0)
    smallest = []
    for draw in range(100):
        noise = 6 * augmenter.sample_noise(1, torch.Generator().manual_seed(draw)).sign()
        t = augmenter.decode(torch.zeros(1, 16, 10, 14, 10), noise, shape)
        assert t.displacement is not None
        grid = geometry.compose(None, t.displacement, shape, like=t.displacement)
        smallest.append(float(geometry.jacobian_determinant(grid).amin()))
    assert min(smallest) > 0


def test_the_field_has_no_mean_translation_and_an_inverse() -> None:
    augmenter = perturbed(DeformationAugmenter)
    t = augmenter(torch.randn(4, 1, 40, 56, 40))
    assert t.velocity is not None
    assert float(t.velocity.mean(dim=(2, 3, 4)).abs().max()) < 1e-5
    back = t.inverse()
    assert back is not None
    first = t.grid()
    assert back.displacement is not None
    second = first + geometry.sample_field(back.displacement, first, t.shape).movedim(1, -1)
    assert float((second - geometry.identity_grid(t.shape)).norm(dim=-1).mean()) < 0.1


def test_the_random_policy_is_uniform_within_its_bounds() -> None:
    augmenter = AffineAugmenter(3, 1, image_condition=False)
    augmenter.strength.fill_(1.0)
    draws: list[torch.Tensor] = []
    augmenter.register_squash_listener(draws.append)
    augmenter(torch.zeros(2000, 1, 4, 4, 4))
    values = draws[0].flatten()
    assert float(values.abs().max()) < 1
    histogram = torch.histc(values, bins=10, min=-1, max=1) / len(values)
    assert torch.allclose(histogram, torch.full((10,), 0.1), atol=0.01)


def test_regularisers_by_hand() -> None:
    shape = (9, 11, 7)
    stretch = torch.zeros(1, 3, 4)
    stretch[0, :, :3] = torch.diag(torch.tensor([1.1, 1.0, 1.0]))
    # normalised coordinates run from -1 to 1: flow is 0.1 x along one of three axes
    x = torch.linspace(-1, 1, 9).double()
    expected = 0.01 * float(x.square().mean()) / 3
    got = Transformation(shape, matrix=stretch, normalised=True).regularization()
    assert float(got) == pytest.approx(expected, rel=1e-5)
    grid = geometry.affine_grid(stretch, geometry.identity_grid(shape)) - geometry.identity_grid(shape)
    half = (torch.tensor(shape) - 1) / 2
    assert float(got) == pytest.approx(float((grid / half).square().mean()), rel=1e-5)
    # a field with slope 0.3 along D in its first component: mean over 3 axes x 3 components of the squared slope
    slope = torch.zeros(1, 3, *shape)
    slope[0, 0] = 0.3 * torch.arange(9.0).view(9, 1, 1)
    size = float((slope / (torch.tensor(shape) / 2).view(1, 3, 1, 1, 1)).square().mean())  # in half extents
    assert float(Transformation(shape, displacement=slope).regularization()) == pytest.approx(0.09 / 9 + size, rel=1e-5)
    in_paper_units = (0.3 / ((9 - 1) / 2)) ** 2 / 9
    got = Transformation(shape, displacement=slope, normalised=True).regularization()
    assert float(got) == pytest.approx(in_paper_units, rel=1e-5)
    # the dimensionless slope does not depend on the grid that the field is given on
    coarse = geometry.upsample_field(slope, (5, 6, 4))
    size = float((coarse / (torch.tensor(shape) / 2).view(1, 3, 1, 1, 1)).square().mean())
    assert float(Transformation(shape, displacement=coarse).regularization()) == pytest.approx(0.01 + size, rel=1e-5)
    drift = torch.full((1, 3, 5, 6, 4), 2.0)  # no slope, but a magnitude
    moved = float(Transformation(shape, displacement=drift).regularization())
    assert moved == pytest.approx(sum((4 / n) ** 2 for n in shape) / 3, rel=1e-5)
    mask = torch.full((2, 1, *shape), 0.4)
    assert float(Transformation(shape, additive=mask).regularization()) == pytest.approx(0.16, rel=1e-5)
    assert float(Transformation.identity(shape).regularization()) == 0


def test_magnitudes_by_hand() -> None:
    angle = torch.tensor([[0.0, 0.0, 0.2]])
    zero = torch.zeros(1, 3)
    matrix = geometry.affine_matrix(angle, torch.tensor([[0.1, 0.0, 0.0]]), zero, torch.tensor([[3.0, 4.0, 0.0]]))
    figures = Transformation((12, 12, 12), matrix=matrix).magnitude()
    assert float(figures["rotation"]) == pytest.approx(0.2 * 180 / torch.pi, rel=1e-4)
    assert float(figures["translation"]) == pytest.approx(5.0, rel=1e-5)
    assert float(figures["log_volume"]) == pytest.approx(0.1, rel=1e-4)
    assert float(figures["jacobian_minimum"]) == pytest.approx(2.718281828**0.1, rel=1e-4)
    shift = torch.ones(1, 3, 3, 3, 3)
    figures = Transformation((12, 12, 12), displacement=shift).magnitude()
    assert float(figures["translation_share"]) == pytest.approx(1)
    assert float(figures["displacement_mean"]) == pytest.approx(3**0.5, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_every_learnable_number(kind: type[Augmenter]) -> None:
    """Directional derivative against central differences, in float64."""
    augmenter = perturbed(kind, 0.1, width=4, noise_size=5).double()
    image = torch.randn(2, 1, 12, 16, 12).double()
    noise = augmenter.sample_noise(2).double()

    def loss() -> torch.Tensor:
        t = augmenter(image, noise)
        return t.apply(image).sin().mean() + t.regularization()

    parameters = [p for p in augmenter.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        direction /= direction.norm()
        with torch.no_grad():
            parameter += 1e-6 * direction
            up = float(loss())
            parameter -= 2e-6 * direction
            down = float(loss())
            parameter += 1e-6 * direction
        assert (up - down) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_is_the_same_alone_and_in_a_batch(kind: type[Augmenter]) -> None:
    augmenter = perturbed(kind)
    image, noise = torch.randn(3, 1, 24, 20, 24), augmenter.sample_noise(3)
    together = augmenter(image, noise).apply(image)
    alone = augmenter(image[1:2], noise[1:2]).apply(image[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: next(iter(f.values())))
def test_files_round_trip(kind: type[Augmenter], form: dict[str, str], tmp_path: Path) -> None:
    augmenter = perturbed(kind, **form).eval()
    file = augmenters.save(tmp_path / "augmenters.pt", {"one": augmenter})
    again = augmenters.load(file)["one"]
    image, noise = torch.randn(1, 1, 24, 24, 24), augmenter.sample_noise(1)
    assert torch.equal(again(image, noise).apply(image), augmenter(image, noise).apply(image))
    assert again.options() == augmenter.options()
    assert [p.name for p in tmp_path.iterdir()] == ["augmenters.pt"]


def test_bad_files_and_options_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(PolicyError, match=r"broken\.pt"):
        augmenters.load(broken)
    torch.save({"weights": torch.zeros(1)}, broken)
    with pytest.raises(PolicyError, match="is not a file of augmenters"):
        augmenters.load(broken)
    with pytest.raises(ConfigError, match="fidelity"):
        AffineAugmenter(fidelity="quick")


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        (AffineAugmenter, {"rotation": -1.0}), (AffineAugmenter, {"shear": "much"}),
        (AffineAugmenter, {"log_scale": float("nan")}), (AffineAugmenter, {"translation": True}),
        (DeformationAugmenter, {"control": 3}), (DeformationAugmenter, {"control": 6.0}),
        (DeformationAugmenter, {"steps": 0}), (DeformationAugmenter, {"displacement": float("inf")}),
        (AppearanceAugmenter, {"additive": -0.5}), (AppearanceAugmenter, {"control": 65}),
    ],
)  # fmt: skip
def test_bounds_out_of_range_are_refused_by_name(kind: type[Augmenter], bound: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.kind}: {next(iter(bound))} must be .* between .*, got"):
        kind(**bound)
