# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures show what they are given, to scale, without a display."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from monai_autoaug.augmenters import AffineAugmenter, AppearanceAugmenter, DeformationAugmenter
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.report import (
    Panel,
    PredictionRow,
    augmentation_figure,
    augmentation_panels,
    prediction_figure,
    training_curves,
)
from monai_autoaug.report.curves import _colours, read_log
from monai_autoaug.report.style import COLOURS, figure, show_slice


def colour_share(path: Path, colour: str) -> float:
    """How much of a picture has about this colour."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float((np.abs(imread(path)[..., :3] - rgb).max(-1) < 0.12).mean())


def ball(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> torch.Tensor:
    axes = torch.meshgrid(*[torch.arange(n) - c for n, c in zip(shape, centre, strict=True)], indexing="ij")
    return torch.stack(axes).float().norm(dim=0) < radius


def subject() -> tuple[torch.Tensor, torch.Tensor]:
    inside = ball((24, 20, 16), (12, 10, 8), 5)
    image = (inside + 0.1 * torch.randn(24, 20, 16))[None]
    return image, torch.stack([~inside, inside]).float()


def test_augmentation_panels_have_a_caption_a_grid_and_a_moved_label() -> None:
    image, label = subject()
    augmenters = {"affine": AffineAugmenter(3, 1), "deformation": DeformationAugmenter(3, 1),
                  "appearance": AppearanceAugmenter(3, 1)}  # fmt: skip
    for augmenter in augmenters.values():
        augmenter.strength.fill_(1.0)
    panels = augmentation_panels(augmenters, image, label)
    assert [p.title for p in panels] == ["original", "affine", "deformed", "appearance"]
    original, affine, deformed, appearance = panels
    assert torch.equal(original.image, image)
    for moved in (affine, deformed):
        assert not torch.allclose(moved.label, label)
        torch.testing.assert_close(moved.label.sum(0), torch.ones(24, 20, 16))
        assert moved.grid is not None
        # the grid says where each voxel was read from: reading there by hand gives the moved image
        z, y, x = (moved.grid[12, 10, 8] + 0.5).long().tolist()
        near = image[0, max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert near.min() - 1e-4 <= moved.image[0, 12, 10, 8] <= near.max() + 1e-4
    assert "rotation" in affine.caption
    assert "max" in deformed.caption
    assert torch.equal(appearance.label, label)
    assert appearance.grid is None
    assert not torch.equal(appearance.image, image)
    again = augmentation_panels(augmenters, image, label)
    assert all(torch.equal(a.image, b.image) for a, b in zip(panels, again, strict=True))


def test_augmentation_figure_draws_contours_and_their_former_place(tmp_path: Path) -> None:
    image, label = subject()
    moved = Panel("moved", image.roll(4, 1), label.roll(4, 1))
    brighter = Panel("brighter", image + 0.5, label)
    original = Panel("original", image, label)
    one = augmentation_figure([original], tmp_path / "one.png", classes=["ball"])
    both = augmentation_figure([original, moved, brighter], tmp_path / "deep" / "er" / "both.png", classes=["ball"])
    assert colour_share(one, COLOURS[0]) > 0.002
    assert colour_share(both, COLOURS[0]) > 0.002
    shares = []
    for shift in (0, 6):  # the image stays, so that only the dashed former contour is new
        panel = Panel("label moved", image, label.roll(shift, 1))
        path = augmentation_figure([original, panel], tmp_path / "pair.png", classes=["ball"])
        shares.append(colour_share(path, "#ffffff"))
    assert shares[1] > shares[0] + 0.0005
    assert imread(both).shape[1] > 2 * imread(one).shape[1]
    with pytest.raises(ConfigError, match="panels of one size"):
        augmentation_figure([original, Panel("x", image[:, 1:], label[:, 1:])], tmp_path / "x.png")


def test_slices_are_drawn_in_millimetres() -> None:
    axes = figure(4, 4).add_subplot()
    show_slice(axes, np.zeros((10, 20, 30)), 0, 5, (9.0, 1.0, 3.0), (0, 1))
    assert axes.images[0].get_extent() == [0, 20, 0, 90]
    assert axes.get_aspect() == 1.0


def test_the_slice_shows_the_volume_the_right_way_up() -> None:
    volume = np.zeros((4, 5, 6))
    volume[2, 1, 3] = 1
    axes = figure(4, 4).add_subplot()
    show_slice(axes, volume, 2, 3, (1, 1, 1), (0, 1))  # axial: to the right is D, upwards is H
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (5, 4)
    assert shown[1, 2] == 1
    assert axes.images[0].origin == "lower"


def test_prediction_figure(tmp_path: Path) -> None:
    image, label = subject()
    truth = label[1].long()
    row = PredictionRow("case", image, truth, truth.roll(3, 0), (1.0, 1.0, 2.0), "Dice 0.5")
    without = PredictionRow("no label", image, None, truth, (1.0, 1.0, 2.0))
    one = prediction_figure([row], tmp_path / "one.png", classes={"ball": 1})
    two = prediction_figure([row, without], tmp_path / "two.png", classes={"ball": 1})
    assert colour_share(one, COLOURS[0]) > 0.002
    assert imread(two).shape[0] > 1.7 * imread(one).shape[0]
    with pytest.raises(ConfigError, match="at least one case"):
        prediction_figure([], tmp_path / "none.png", classes={})


def test_training_curves(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"epoch": e, "loss": 1 / e, "dice": 1 - 1 / e, "affine_noise_share": 0.9, "note": "x"} for e in (1, 2, 3)]
    rows[0]["dice"] = None
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    few = imread(training_curves(log, tmp_path / "few.png"))
    assert colour_share(tmp_path / "few.png", COLOURS[0]) > 0.0005
    rows[2] |= {"discriminator_accuracy": 0.5, "affine_saturation": 0.1}
    log.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert imread(training_curves(log, tmp_path / "more.png")).shape[0] > few.shape[0]
    log.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1 is not an object"):
        read_log(log)
    log.write_text('{"epoch": 1}\n')
    with pytest.raises(DataError, match="nothing that can be drawn"):
        training_curves(log, tmp_path / "nothing.png")
    with pytest.raises(DataError, match="can't be read as a training log"):
        training_curves(tmp_path / "missing.jsonl", tmp_path / "nothing.png")


def test_pictures_are_png_files(tmp_path: Path) -> None:
    image, label = subject()
    with pytest.raises(ConfigError, match=r"pictures are PNG files, but .*a\.pdf has another ending"):
        augmentation_figure([Panel("original", image, label)], tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_name_has_one_colour_in_all_diagrams() -> None:
    loss = {"loss": ([1], [1.0]), "loss_affine": ([1], [1.0]), "loss_appearance": ([1], [1.0])}
    share = {"appearance_noise_share": ([1], [1.0])}
    found = [("Loss", ("loss",), None, loss), ("Share", ("_noise_share",), None, share)]
    colours = _colours(found)
    assert set(colours) == {"mean", "affine", "appearance"}
    assert len(set(colours.values())) == 3
