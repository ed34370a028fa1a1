# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The general augmenter: identity when fresh, bounded, conditioned on image and noise; the paper's form; its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from monai.data import MetaTensor

from monai_autoaug import augmenters
from monai_autoaug.augmenters import GeneralAugmenter, LearnedAugmentd, Transformation
from monai_autoaug.augmenters.general_parts import ImageDecoder, NoiseUNet
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods.collapse import noise_share
from monai_autoaug.networks.spatial_transformer import voxel_matrix
from monai_autoaug.transforms import geometry

SMALL: dict[str, Any] = {"width": 4, "noise_size": 6}
SHAPES = [((20, 28, 20), 1, 2), ((17, 25, 18), 2, 1), ((17, 30), 4, 1)]


def perturbed(amount: float = 0.3, **options: Any) -> GeneralAugmenter:
    """A few steps away from its start."""
    torch.manual_seed(1)
    augmenter = GeneralAugmenter(options.pop("spatial_dims", 3), options.pop("in_channels", 1), **(SMALL | options))
    with torch.no_grad():
        for parameter in augmenter.parameters():
            parameter += amount * torch.randn_like(parameter)
    return augmenter


@pytest.mark.parametrize(("shape", "channels", "batch"), SHAPES)
def test_fresh_it_is_the_identity_of_image_and_label(shape: tuple[int, ...], channels: int, batch: int) -> None:
    augmenter = GeneralAugmenter(len(shape), channels, **SMALL)
    image = torch.rand(batch, channels, *shape)
    label = F.one_hot((image[:, 0] > 0.5).long(), 2).movedim(-1, 1).float()
    t = augmenter(image, 3 * augmenter.sample_noise(batch))
    moved, soft = t.apply_pair(image, label)
    assert moved.shape == image.shape
    assert torch.allclose(moved, image, atol=1e-5)
    assert torch.allclose(soft, label, atol=1e-5)
    assert t.additive is not None
    assert float(t.additive.abs().max()) == 0


def test_in_the_paper_form_the_map_is_the_identity_when_fresh_and_the_u_net_makes_the_image() -> None:
    augmenter = GeneralAugmenter(3, 1, fidelity="paper", **SMALL)
    image, noise = torch.rand(2, 1, 20, 28, 20), augmenter.sample_noise(2)
    t = augmenter(image, noise)
    assert torch.equal(t.matrix, torch.eye(3, 4).expand(2, 3, 4))
    assert augmenter.unet is not None
    assert torch.allclose(
        t.apply(image), augmenter.unet(t.rows(slice(0, 2)).apply(image) - t.additive, noise), atol=1e-5
    )
    assert float((t.apply(image) - image).abs().mean()) > 0.1
    augmenter.strength.fill_(0.0)
    assert torch.allclose(augmenter(image).apply(image), image, atol=1e-5)


def test_label_follows_the_map_and_never_the_u_net() -> None:
    augmenter = perturbed()
    image = torch.randn(2, 1, 20, 28, 20)
    label = F.one_hot((image[:, 0] > 0.3).long(), 2).movedim(-1, 1).float()
    t = augmenter(image)
    moved, soft = t.apply_pair(image, label)
    alone, expected = Transformation(t.shape, matrix=t.matrix).apply_pair(image, label)
    assert torch.equal(soft, expected)
    assert not torch.allclose(moved, alone, atol=1e-3)
    assert t.additive is not None
    assert torch.allclose(moved, alone + geometry.upsample_field(t.additive, t.shape), atol=1e-6)
    assert float((alone - image).abs().mean()) > 1e-3


def test_the_u_net_sees_the_mapped_image() -> None:
    """Eq. 1, written down once more."""
    augmenter = perturbed()
    image, noise = torch.randn(2, 1, 20, 28, 20), augmenter.sample_noise(2)
    t = augmenter(image, noise)
    assert augmenter.affine is not None
    assert augmenter.unet is not None
    first = augmenter.affine(image, noise)
    assert torch.equal(t.matrix, first.matrix)
    assert torch.allclose(t.additive, 0.5 * augmenter.unet(first.apply(image), noise).tanh(), atol=1e-6)


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("part", ["affine", "appearance"])
def test_image_and_noise_condition_each_part(fidelity: str, part: str) -> None:
    augmenter = perturbed(fidelity=fidelity, spatial=part == "affine", appearance=part == "appearance").eval()
    name = "matrix" if part == "affine" else "additive"
    images, noise = torch.randn(2, 1, 20, 20, 20), augmenter.sample_noise(2)

    def found(image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = getattr(augmenter(image, z), name)
        return value

    assert augmenter.parts == (part,)
    base = found(images[:1], noise[:1])
    assert not torch.allclose(base, found(images[1:], noise[:1]), atol=1e-5)
    assert not torch.allclose(base, found(images[:1], noise[1:]), atol=1e-5)


@pytest.mark.parametrize(("fidelity", "training"), [("default", True), ("default", False), ("paper", True)])
def test_samples_of_one_image_differ(fidelity: str, training: bool) -> None:
    """Share of the variation that is due to noise, one perturbing step away from the start (0.12 would be a fail)."""
    augmenter = perturbed(0.1, fidelity=fidelity).train(training)
    image = torch.randn(1, 1, 20, 28, 20).expand(8, -1, -1, -1, -1)
    t = augmenter(image, augmenter.sample_noise(8, torch.Generator().manual_seed(0)))
    assert noise_share(Transformation(t.shape, matrix=t.matrix)) >= 0.3
    if fidelity == "default":
        assert noise_share(Transformation(t.shape, additive=t.additive)) >= 0.2


def test_magnitudes_stay_within_their_bounds() -> None:
    augmenter = perturbed(50.0, additive=0.3, translation=0.1, log_scale=0.15)
    t = augmenter(torch.randn(4, 1, 20, 28, 20))
    assert t.additive is not None
    assert t.matrix is not None
    assert 0.29 < float(t.additive.detach().abs().max()) <= 0.3 + 1e-6
    assert bool((t.matrix[:, :, 3].abs() <= 0.1 * torch.tensor([20.0, 28.0, 20.0]) + 1e-4).all())
    assert float(torch.linalg.det(t.matrix[:, :, :3]).log().abs().max()) <= 3 * 0.15 + 1e-4


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_of_every_learnable_number(spatial_dims: int) -> None:
    """Directional derivative against central differences, in float64."""
    augmenter = perturbed(0.1, spatial_dims=spatial_dims).double()
    shape = (12, 16, 12)[:spatial_dims]
    image, noise = torch.randn(2, 1, *shape).double(), augmenter.sample_noise(2).double()

    def loss() -> torch.Tensor:
        moved, soft = augmenter(image, noise).apply_pair(image, image.sigmoid(), outside=(0.0,))
        assert soft is not None
        return moved.sin().mean() + soft.square().mean()

    parameters = list(augmenter.parameters())
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


def test_one_sample_is_the_same_alone_and_in_a_batch() -> None:
    augmenter = perturbed()
    image, noise = torch.randn(3, 1, 20, 18, 20), augmenter.sample_noise(3)
    together = augmenter(image, noise).apply(image)
    alone = augmenter(image[1:2], noise[1:2]).apply(image[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-4)


def test_the_matrix_of_the_paper_is_that_of_affine_grid() -> None:
    """Coordinates of a spatial transformer, in torch's order x, y, against ours."""
    theta = torch.tensor([[[1.1, 0.2, 0.3], [-0.1, 0.9, -0.2]]])
    shape = (9, 13)
    ours = theta.flip(1)[:, :, [1, 0, 2]]  # rows and columns from x, y to H, W
    grid = geometry.compose(voxel_matrix(ours, shape), None, shape, like=theta)
    half = (torch.tensor(shape) - 1) / 2
    assert torch.allclose((grid / half).flip(-1), F.affine_grid(theta, [1, 1, *shape], align_corners=True), atol=1e-6)


def test_volumes_are_rotated_in_physical_space() -> None:
    augmenter = perturbed(appearance=False, translation=0.0, log_scale=0.0, shear=0.0, rotation=90.0)
    image, noise = torch.randn(1, 1, 16, 16, 16), augmenter.sample_noise(1)
    spacing = torch.tensor([[3.0, 1.0, 1.0]])
    linear = augmenter(image, noise, spacing=spacing).matrix[0, :, :3]
    turn = spacing.T * linear / spacing
    assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-5)
    assert not torch.allclose(linear @ linear.T, torch.eye(3), atol=1e-2)


@pytest.mark.parametrize("form", [{}, {"fidelity": "paper"}, {"spatial": False}, {"appearance": False}],
                         ids=["default", "paper", "appearance", "affine"])  # fmt: skip
def test_files_round_trip(form: dict[str, Any], tmp_path: Path) -> None:
    augmenter = perturbed(**form).eval()
    again = augmenters.load(augmenters.save(tmp_path / "augmenters.pt", {"general": augmenter}))["general"]
    image, noise = torch.randn(1, 1, 20, 20, 20), augmenter.sample_noise(1)
    assert torch.equal(again(image, noise).apply(image), augmenter(image, noise).apply(image))
    assert again.options() == augmenter.options()


def test_it_is_a_dictionary_transform_too() -> None:
    image = MetaTensor(torch.randn(1, 20, 24, 20), affine=torch.diag(torch.tensor([1.0, 2.0, 1.0, 1.0])))
    label = MetaTensor((image > 0.5).to(torch.uint8), affine=image.affine)
    augment = LearnedAugmentd(["image", "label"], {"general": perturbed()}).set_random_state(3)
    out = augment({"image": image, "label": label})
    assert out["label"].dtype == torch.uint8
    assert not torch.allclose(out["image"], image, atol=1e-3)
    back = augment.inverse(out)["image"]
    inner = (slice(None), slice(5, -5), slice(5, -5), slice(5, -5))
    assert float((back - image)[inner].abs().mean()) < float((out["image"] - image)[inner].abs().mean())
    weak = LearnedAugmentd(["image", "label"], {"general": perturbed()}, strength=0.0).set_random_state(3)
    assert torch.allclose(weak({"image": image, "label": label})["image"], image, atol=1e-5)


def test_small_and_odd_sizes_have_their_own_size() -> None:
    for shape in ((5, 7, 3), (1, 6), (33, 2)):
        unet = NoiseUNet(len(shape), 2, **SMALL)
        assert unet(torch.zeros(1, 2, *shape), torch.zeros(1, 6)).shape[2:] == tuple(-(-n // 2) for n in shape)
        paper = NoiseUNet(len(shape), 2, paper=True, **SMALL).eval()
        assert paper(torch.zeros(1, 2, *shape), torch.zeros(1, 6)).shape[2:] == shape
        decoder = ImageDecoder(len(shape), 3, 2, **SMALL).eval()
        assert decoder(torch.zeros(1, 6), torch.zeros(1, 3, *shape)).shape == (1, 2, *shape)


def test_a_decoded_image_depends_on_noise_and_label() -> None:
    decoder = ImageDecoder(2, 3, 1, **SMALL)
    label = F.one_hot(torch.randint(3, (2, 16, 12)), 3).movedim(-1, 1).float()
    noise = torch.randn(2, 6)
    base = decoder(noise, label)
    assert not torch.allclose(base, decoder(noise.flip(0), label), atol=1e-3)
    assert not torch.allclose(base, decoder(noise, label.flip(0)), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fidelity": "quick"}, "fidelity"), ({"spatial": False, "appearance": False}, "does nothing"),
        ({"additive": -1.0}, "general: additive must be a number between"),
        ({"rotation": "much"}, "general: rotation must be a number between"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GeneralAugmenter(**options)
