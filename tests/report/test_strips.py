# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Slices lie as people expect them, to scale, with contours where structures end."""

from __future__ import annotations

import base64
import io
import itertools
import re

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from monai_autoaug.report.planes import planes_of
from monai_autoaug.report.raster import heat, png, refined, tinted
from monai_autoaug.report.strips import Layer, strip


def pixels(uri: str) -> np.ndarray:
    return imread(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def orientations() -> list[str]:
    """All 48 that axes can have."""
    found = []
    for order in itertools.permutations(("RL", "AP", "SI")):
        found += ["".join(pair) for pair in itertools.product(*order)]
    return found


@pytest.mark.parametrize("orientation", orientations())
def test_every_orientation_is_shown_alike(orientation: str) -> None:
    """The same body, stored in any order of axes and directions, gives the same three pictures."""
    body = np.random.default_rng(0).random((4, 5, 6))  # to the right, front and head
    stored = nib.Nifti1Image(body, np.eye(4)).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
        )
    )
    volume = np.asarray(stored.dataobj)
    wanted = {"axial": body[:, :, 2].T[::-1], "coronal": body[:, 3, :].T[::-1], "sagittal": body[1].T[::-1]}
    place = {"axial": ("S", 2), "coronal": ("A", 3), "sagittal": ("R", 1)}
    size = dict(zip("RAS", (1.0, 2.0, 3.0), strict=True))
    towards = {"L": "R", "P": "A", "I": "S"}
    spacing = [size[towards.get(letter, letter)] for letter in orientation]
    found = planes_of(orientation)
    assert [plane.name for plane in found] == ["axial", "coronal", "sagittal"]
    assert [plane.letters for plane in found] == ["RA", "RS", "AS"]
    for plane in found:
        letter, index = place[plane.name]
        axis = next(k for k, own in enumerate(orientation) if towards.get(own, own) == letter)
        assert plane.cut == axis
        if orientation[axis] != letter:
            index = volume.shape[axis] - 1 - index
        assert np.array_equal(plane.laid(volume.take(index, axis)), wanted[plane.name])
        assert plane.spacing(spacing) == (size[plane.letters[0]], size[plane.letters[1]])


def test_unknown_orientations_and_2d() -> None:
    assert [p.name for p in planes_of("")] == ["across D", "across H", "across W"]
    (flat,) = planes_of("", 2)
    assert (flat.name, flat.cut, flat.letters) == ("slice", None, "")
    rows = np.arange(6).reshape(2, 3)
    assert np.array_equal(flat.laid(rows), rows)  # as stored: the first axis downwards
    (axial,) = planes_of("PL", 2)
    assert (axial.name, axial.letters) == ("axial", "RA")
    assert np.array_equal(axial.laid(rows), rows[:, ::-1])  # the front is at the top already


def test_pixels_survive_png() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (7, 5), np.uint8)
    assert np.array_equal(np.round(pixels(png(grey)) * 255), grey)
    colours = np.random.default_rng(1).integers(0, 256, (3, 4, 4), np.uint8)
    assert np.array_equal(np.round(pixels(png(colours)) * 255), colours)
    assert refined(np.zeros((30, 20))).shape == (120, 80)
    assert refined(np.zeros((100, 20))).shape == (200, 40)
    assert refined(np.zeros((200, 20))).shape == (200, 20)


def test_colours_say_which_way_and_how_far() -> None:
    change = np.zeros((200, 200))
    change[:100], change[100:] = 1.0, -0.5
    drawn = tinted(change, 1.0)
    assert drawn[0, 0, 0] > drawn[0, 0, 2]  # brighter: orange
    assert drawn[-1, 0, 2] > drawn[-1, 0, 0]  # darker: blue
    assert drawn[0, 0, 3] == pytest.approx(2 * drawn[-1, 0, 3], abs=2)
    length = heat(np.linspace(0, 2, 200)[None].repeat(200, 0), 2.0)
    assert (np.diff(length[0].astype(int).sum(1)) >= 0).all()


def test_planes_have_one_scale_and_a_bar_in_mm() -> None:
    image = [np.zeros((6, 4)), np.zeros((10, 4)), np.zeros((10, 6))]  # of a volume 10 x 6 x 4
    found = strip(planes_of("RAS"), image, (1.0, 2.0, 5.0), (0.0, 1.0), alt="a & b")
    boxes = [tuple(map(float, box)) for box in re.findall(r'<image width="([\d.]+)" height="([\d.]+)"', found.svg)]
    assert boxes == [(10, 12), (10, 20), (12, 20)]
    assert found.height == 20
    assert found.width == pytest.approx(10 + 10 + 12 + 2 * 0.025 * 20)
    texts = [mark.text for mark in found.marks]
    assert texts[:5] == ["axial", "R", "L", "A", "P"]
    assert texts[-1] == "2 mm"  # at most a third of the first plane
    assert re.findall(r"h([\d.]+)\"", found.svg) == ["2", "2"]
    assert all(0 <= mark.left <= 100 and 0 <= mark.top <= 100 for mark in found.marks)
    bare = strip(planes_of("RAS"), image, (1.0, 2.0, 5.0), (0.0, 1.0), alt="", named=False)
    assert bare.marks == ()


def test_contours_lie_where_a_structure_ends() -> None:
    label = np.zeros((1, 10, 10))
    label[0, 2:6, 3:8] = 1
    planes, image = planes_of("", 2), [np.zeros((10, 10))]
    drawn = strip(planes, image, (2.0, 1.0), (0.0, 1.0), layers=[Layer.of_label([label])], alt="", named=False)
    (path,) = set(re.findall(r' d="([^"]+)"', drawn.svg))
    numbers = np.array([float(n) for n in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2)
    # rows of 2 mm down, columns of 1 mm across: voxels 2 to 5 and 3 to 7, to their rims
    assert numbers.min(0).tolist() == [3.0, 4.0]
    assert numbers.max(0).tolist() == [8.0, 12.0]
    assert path.endswith("Z")
    white = strip(planes, image, (2.0, 1.0), (0.0, 1.0), layers=[Layer.of_label([label], white=True)], alt="")
    assert 'stroke="#ffffff"' in white.svg
    assert "stroke-dasharray" in white.svg
    empty = strip(planes, image, (1.0, 1.0), (0.0, 1.0), layers=[Layer.of_label([label * 0])], alt="", named=False)
    assert "<path" not in empty.svg


def test_grey_values_are_windowed() -> None:
    image = [np.array([[0.0, 5.0], [10.0, 20.0]]).repeat(100, 0).repeat(100, 1)]
    drawn = strip(planes_of("", 2), image, (1.0, 1.0), (0.0, 10.0), alt="", named=False)
    (uri,) = re.findall(r'href="([^"]+)"', drawn.svg)
    values = np.round(pixels(uri) * 255)
    assert (values[0, 0], values[0, -1], values[-1, 0], values[-1, -1]) == (0, 127, 255, 255)
