# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures show what they are given, to scale, without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from looking import colour_share, texts
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from monai_autoaug.augmenters import AffineAugmenter, AppearanceAugmenter, DeformationAugmenter
from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.errors import ConfigError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.report import (
    Panel,
    PredictionRow,
    augmentation_figure,
    augmentation_panels,
    prediction_figure,
)
from monai_autoaug.report.pictures import _dice, canonical, chosen_cases, structures
from monai_autoaug.report.predictions import channels, near
from monai_autoaug.report.slices import _without_specks, planes, scale_bar, show_slice, sides, slices
from monai_autoaug.report.style import COLOURS, figure, key, key_height, structure_keys


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


def test_regions_are_drawn_whole_and_by_their_names(tmp_path: Path, made: list[Figure]) -> None:
    data = read_datalist(write_phantom(tmp_path / "data", cases=1, size=20, layout="nnunet", regions=True))
    classes = structures(data)
    assert classes == {"hook": (1, 2), "head": 1, "round": 3}
    image, spacing = canonical(data.training[0].images[0])
    assert data.training[0].label is not None
    label = canonical(data.training[0].label)[0].long()[0]
    drawn = channels(label, [*classes.values()])
    assert drawn[0].sum() == ((label == 1) | (label == 2)).sum() > drawn[1].sum() > 0
    prediction_figure([PredictionRow("case", image, label, label, spacing)], tmp_path / "a.png", classes=classes)
    assert {"hook", "head", "round"} <= set(texts(made[-1]))
    values = read_datalist(write_phantom(tmp_path / "values", cases=1, size=20, layout="nnunet"))
    assert structures(values) == values.foreground


def test_pictures_are_png_files(tmp_path: Path) -> None:
    image, label = subject()
    with pytest.raises(ConfigError, match=r"pictures are PNG files, but .*a\.pdf has another ending"):
        augmentation_figure([Panel("original", image, label)], tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_the_key_fits_into_any_picture() -> None:
    for names in (["a", "b"], [f"a rather long name of structure {k}" for k in range(9)]):
        picture = figure(4.5, 5)
        box = key(picture, structure_keys(names)).get_window_extent()
        assert 0 <= box.x0 < box.x1 <= picture.bbox.width
        assert 0 <= box.y0
        assert box.height == pytest.approx(key_height(structure_keys(names), 4.5) * picture.dpi)
        assert len(picture.legends) == 1


def test_the_key_names_what_is_drawn_and_nothing_else(tmp_path: Path, made: list[Figure]) -> None:
    image, label = subject()
    original, moved = Panel("original", image, label), Panel("moved", image, label.roll(4, 1))
    brighter, darker = Panel("brighter", image + 0.5, label), Panel("darker", image - 2, label)
    for panels in ([original], [original, moved], [original, brighter, darker]):
        augmentation_figure(panels, tmp_path / "a.png", classes=["ball"])
    one, two, three = (texts(picture) for picture in made)
    assert "ball" in one
    scale = "standard deviations\n(scale: at least ±1)"
    assert not {"before", scale} & set(one)
    assert "before" in two
    assert scale not in two
    assert "before" not in three
    assert three.count(scale) == 2
    assert three.count("+2\nbrighter") == 2  # one scale for both, that of the larger change


def test_planes_and_sides_follow_the_orientation() -> None:
    assert planes("RAS") == [(2, "axial"), (1, "coronal"), (0, "sagittal")]
    assert planes("SLP") == [(0, "axial"), (2, "coronal"), (1, "sagittal")]
    for orientation, expected in (("RAS", ["L", "R", "P", "A"]), ("LPS", ["R", "L", "A", "P"])):
        picture = figure(2, 2)
        sides(picture.add_subplot(), 2, orientation)  # left, right, bottom, top
        assert [t for t in texts(picture) if t in "LRPAIS" and t] == expected


@pytest.mark.parametrize(("width", "says"), [(48.0, "10 mm"), (400.0, "100 mm"), (65.0, "20 mm"), (2.0, "0.5 mm")])
def test_the_scale_bar_is_as_long_as_it_says(width: float, says: str) -> None:
    picture = figure(2, 2)
    axes = picture.add_subplot()
    axes.set_xlim(0, width)
    scale_bar(axes)
    left, right = axes.lines[0].get_xdata()
    assert says in texts(picture)
    assert right - left == pytest.approx(float(says.removesuffix(" mm")))
    assert right - left <= width / 3


def test_slices_show_as_many_structures_as_they_can() -> None:
    label = np.zeros((3, 20, 20, 20))
    label[0, 2:18, 2:18, 2:10] = 1  # large, and alone where it is largest
    label[1, 5:7, 5:7, 8:12] = 1
    assert slices(label)[0] in (5, 6)
    assert slices(label)[2] in (8, 9)  # both; most of the volume's slices show one
    assert slices(np.zeros((1, 8, 6, 4))) == (4, 3, 2)


def test_predictions_have_planes_sides_a_bar_and_their_structures_near(tmp_path: Path, made: list[Figure]) -> None:
    truth = ball((60, 60, 60), (30, 30, 30), 4).long()
    row = PredictionRow("case", torch.rand(1, 60, 60, 60), truth, truth.roll(6, 0), (1.0, 1.0, 2.0), "Dice 0.5")
    cut = near(row, [1])
    assert cut.image.shape[1:] == cut.prediction.shape == (33, 27, 17)  # structures, 10 mm around them
    assert cut.reference is not None
    assert cut.reference.sum() == truth.sum()
    prediction_figure([row], tmp_path / "p.png", classes={"ball": 1})
    said = texts(made[0])
    keys = {"prediction (coloured)", "label", "ball"}
    assert {"axial", "coronal", "sagittal", "case", "Dice 0.5", "10 mm", *keys} <= set(said)
    assert {"R", "L", "A", "P", "S", "I"} <= set(said)
    styles = {str(style) for box in made[0].axes for c in box.collections for style in c.get_linestyles()}
    assert len(styles) == 2  # prediction and label differ without colour


def test_label_and_prediction_have_the_colour_of_their_structure(tmp_path: Path, made: list[Figure]) -> None:
    truth = ball((40, 40, 40), (20, 20, 20), 8).long()
    row = PredictionRow("case", torch.rand(1, 40, 40, 40), truth, truth.roll(3, 0), (1.0, 1.0, 1.0))
    prediction_figure([row], tmp_path / "p.png", classes={"ball": 1})
    for box in made[0].axes:
        lines = [c for c in box.collections if to_hex(c.get_edgecolor()[0]) == COLOURS[0]]
        assert [c.get_linestyles()[0][1] is None for c in lines] == [True, False]  # the label, then the prediction
        shade = np.asarray(box.images[1].get_array())
        assert to_hex(shade[shade[..., 3] > 0][0]) == COLOURS[0]


def test_specks_and_small_holes_have_no_line() -> None:
    cut = np.zeros((20, 20))
    cut[2:10, 2:10], cut[5, 5], cut[15, 15] = 1, 0, 1
    clean = _without_specks(cut, 9)
    assert clean[5, 5] == 1
    assert clean[15, 15] == 0
    assert clean.sum() == 64


def test_a_small_change_of_intensity_looks_small(tmp_path: Path, made: list[Figure]) -> None:
    image, label = subject()
    original = Panel("original", image, label)
    for change, strongest in ((0.01, 1.0), (3.0, 3.0)):
        augmentation_figure([original, Panel("brighter", image + change, label)], tmp_path / "a.png")
        drawn = [i for box in made[-1].axes for i in box.images if i.get_cmap().name == "change"]
        assert drawn
        assert all(i.norm.vmax == pytest.approx(strongest, rel=1e-3) for i in drawn)


def test_worst_median_and_best_are_named_with_their_dice() -> None:
    values = np.array([[0.5, 0.7], [np.nan, np.nan], [0.9, np.nan], [0.1, 0.2]])
    result = Evaluation(("a", "b", "c", "d"), ("head", "tail"), {"dice": values})
    assert chosen_cases(result) == {"d": "worst: d", "a": "median: a", "c": "best: c"}
    assert _dice(result, "a") == "Dice 0.60: head 0.50, tail 0.70"
    assert _dice(result, "c") == "Dice 0.90: head 0.90"
    assert "not defined" in _dice(result, "b")
    two = Evaluation(("a", "b"), ("head",), {"dice": np.array([[0.5], [0.4]])})
    assert chosen_cases(two) == {"b": "worst: b", "a": "best: a"}
    assert chosen_cases(Evaluation(("a",), ("head",), {"dice": np.array([[np.nan]])})) == {"a": "a"}
