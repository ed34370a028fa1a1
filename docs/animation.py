# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Draws the README's animation from a finished demo: python docs/animation.py demo docs/images/augmentations.gif.

What each learned augmenter makes of a training case, from nothing (strength 0) to what it has learned (strength 1) and
back, draw after draw. ``monai-autoaug demo`` makes the demo.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from monai_autoaug import augmenters
from monai_autoaug.augmenters import Augmenter, Transformation
from monai_autoaug.data import read_datalist
from monai_autoaug.engines.folder import Run
from monai_autoaug.report import Panel
from monai_autoaug.report.panels import TITLES, median_draw
from monai_autoaug.report.pictures import label_names, subject
from monai_autoaug.report.slices import (
    array,
    contours,
    grey_window,
    lattice,
    planes,
    scale_bar,
    show_slice,
    sides,
    sizes,
    slices,
    tint,
)
from monai_autoaug.report.style import (
    BACKGROUND,
    BRIGHTER,
    COLOURS,
    DARKER,
    FAINT,
    GAP,
    LARGE,
    MEDIUM,
    SMALL,
    TEXT,
    UNMOVED,
    figure,
    key,
    key_height,
    place,
    structure_keys,
    write,
)
from monai_autoaug.transforms.geometry import identity_grid

SHOWN = ("axial", "sagittal")
SEEDS = (0, 3, 5)  # a draw each
STEPS = (0.0, 0.2, 0.5, 0.8, 1.0, 0.75, 0.35)  # strength, frame by frame
HOLD = {0.0: 700, 1.0: 1300}  # milliseconds; all others 90
COLUMN, LEFT, TOP = 1.5, 0.3, 0.66  # inches
STRONGEST = 0.6  # standard deviations: the change of intensity in the strongest colour
GREYS = 36
CASE = 0  # number of the training case


def drawn(learned: dict[str, Augmenter], image: Tensor, label: Tensor, seed: int) -> list[list[Panel]]:
    """The subject through each augmenter, strength by strength: of eight draws the one of median strength."""
    pictures = [[Panel("original", image, label)] for _ in STEPS]
    for name, augmenter in learned.items():
        noise = augmenter.sample_noise(8, torch.Generator().manual_seed(seed))
        noise = noise[median_draw(augmenter(image.expand(8, *image.shape), noise))]
        learned_strength = augmenter.strength.clone()
        caption = _caption(augmenter(image[None], noise))
        for panels, at in zip(pictures, STEPS, strict=True):
            augmenter.strength.copy_(learned_strength * at)
            made = augmenter(image[None], noise)
            moved, moved_label = made.apply_pair(image[None], label[None])
            assert moved_label is not None  # noqa: S101  # a label was given
            corner = identity_grid(tuple(image.shape[1:])).flatten(0, -2)[0]
            grid = (made.grid() - corner)[0] if made.moves_geometry else None
            panels.append(Panel(TITLES.get(name, name), moved[0], moved_label[0], grid, caption))
        augmenter.strength.copy_(learned_strength)
    return pictures


def _caption(made: Transformation) -> str:
    """How strong it is."""
    figures = {name: float(value[0]) for name, value in made.magnitude().items()}
    if "rotation" in figures:
        return f"rotation {figures['rotation']:.0f}\N{DEGREE SIGN}"
    if "displacement_mean" in figures:
        return f"up to {figures['displacement_max']:.1f} voxels"
    return f"mean \N{PLUS-MINUS SIGN}{figures['additive_mean']:.2f} SD"


def frame(panels: list[Panel], names: list[str], spacing: tuple[float, ...], orientation: str) -> Image.Image:
    """One picture: a column for each panel, a row for each plane."""
    first = panels[0]
    cuts = [cut for cut in planes(orientation) if cut[1] in SHOWN]
    widths, heights = sizes(tuple(first.image.shape[1:]), spacing, cuts)
    ups = [COLUMN * up / across for across, up in zip(widths, heights, strict=True)]
    width = LEFT + len(panels) * (COLUMN + GAP)
    tints = [Line2D([], [], color=c, linewidth=5, label=t) for c, t in ((BRIGHTER, "brighter"), (DARKER, "darker"))]
    keys = [*structure_keys(names), Line2D([], [], label="before", **UNMOVED), *tints]
    made = figure(width, TOP + sum(ups) + GAP * len(ups) + key_height(keys, width) + 0.05)
    window, middle = grey_window(array(first.image)[0]), slices(array(first.label)[1:])
    for column, panel in enumerate(panels):
        start, above = LEFT + column * (COLUMN + GAP), TOP
        write(made, start + COLUMN / 2, 0.1, panel.title, color=TEXT, fontsize=LARGE, fontweight="bold", ha="center")
        write(made, start + COLUMN / 2, 0.4, panel.caption, color=FAINT, fontsize=SMALL, ha="center")
        for (axis, name), up in zip(cuts, ups, strict=True):
            axes = place(made, start, above, COLUMN, up)
            show_slice(axes, array(panel.image)[0], axis, middle[axis], spacing, window)
            if panel.grid is not None:
                lattice(axes, array(panel.grid), axis, middle[axis], spacing)
                still = array(first.label)[1:]
                contours(axes, still, axis, middle[axis], spacing, colours=["#ffffff"], style="dashed", width=0.9)
            elif panel is not first:
                tint(axes, array(panel.image - first.image)[0], axis, middle[axis], spacing, STRONGEST)
            contours(axes, array(panel.label)[1:], axis, middle[axis], spacing, colours=COLOURS)
            if panel is first:
                sides(axes, axis, orientation)
                scale_bar(axes)
                write(made, 0.08, above + up / 2, name, color=FAINT, fontsize=MEDIUM, rotation=90, va="center")
            above += up + GAP
    key(made, keys)
    stored = io.BytesIO()
    made.savefig(stored, format="png", facecolor=made.get_facecolor())
    return Image.open(stored).convert("RGB")


def _palette(structures: int) -> Image.Image:
    """Greys, the colours of lines, and tinted greys; of a palette taken from the pixels greys would take all."""
    marks = [np.array(to_rgb(c)) for c in (*COLOURS[:structures], BRIGHTER, DARKER, TEXT, FAINT, BACKGROUND)]
    greys = [np.full(3, level) for level in np.linspace(0, 1, GREYS)]
    dimmed = [share * mark for mark in marks[:structures] for share in (0.35, 0.65)]  # edges of lines
    tinted = [
        share * np.array(to_rgb(colour)) + (1 - share) * level
        for colour in (BRIGHTER, DARKER)
        for level in (0.03, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.8)
        for share in (0.08, 0.16, 0.25, 0.35, 0.45, 0.55)
    ]
    colours = np.rint(255 * np.array([*marks, *greys, *dimmed, *tinted])).astype(np.uint8)
    made = Image.new("P", (1, 1))
    made.putpalette(colours.tobytes())
    return made


@torch.no_grad()
def main(demo: Path, output: Path) -> None:
    """Write the animation as GIF, with one palette for all frames, so that what stands still takes no room."""
    run, data = Run(demo / "run"), read_datalist(demo / "data")
    learned, preprocessing = dict(augmenters.load(run.augmenters)), run.load_preprocessing()
    image, label = subject(run, data, number=CASE)
    names = label_names(data)[1:]
    pictures = [
        frame(panels, names, preprocessing.spacing, preprocessing.orientation)
        for seed in SEEDS
        for panels in drawn(learned, image, label, seed)
    ]
    palette = _palette(len(names))
    frames = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    lasting = [HOLD.get(at, 90) for _ in SEEDS for at in STEPS]
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=lasting, loop=0, optimize=True)
    print(f"{output}: {len(frames)} frames of {frames[0].size}, {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
