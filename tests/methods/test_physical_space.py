# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where a method rotates patches, it does so in physical space: it knows their spacing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import bilevel_helpers
import general_helpers
import pytest
import task_driven_helpers
import torch
from method_helpers import Fixed

from monai_autoaug.data.batch import Batch

SHAPE = (8, 8, 8)
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("bilevel", {"transformations": "affine", "start": 0.5}),
    ("bilevel", {"transformations": "affine", "augmentation": "predefined"}),
    ("general_adversarial", {"appearance": False, "doubled": True}),
    ("general_adversarial", {"augmentation": "strong"}),
    ("task_driven", {"augmentation": "none", "affine": ("rotation",)}),
    ("task_driven", {"augmentation": "elastic", "affine": ("rotation",)}),
]


@pytest.mark.parametrize(("name", "given"), WAYS)
def test_the_spacing_of_patches_changes_how_they_are_rotated(name: str, given: dict[str, Any]) -> None:
    seen: list[Batch] = []

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "forward":
            seen.append(values["batch"])

    for spacing in (None, torch.tensor([[1.0, 1.0, 2.5]]).expand(4, 3)):
        if name == "bilevel":
            method: Any = bilevel_helpers.build(task={"listener": listen}, **given)
        elif name == "task_driven":
            method = task_driven_helpers.make(spatial_dims=3, listener=listen, **given)
        else:
            method = general_helpers.make(listener=listen, **given)
            if method.learns:
                general_helpers.moved(method)
        batches = bilevel_helpers.Streams(shape=SHAPE) if name == "bilevel" else Fixed(shape=SHAPE)
        for stream, batch in batches.batches.items():
            batches.batches[stream] = replace(batch, spacing=spacing)
        method.step(batches)
    cubes, boxes = seen
    assert cubes.image.shape == boxes.image.shape
    assert float((cubes.image - boxes.image).abs().max()) > 0.01
    assert float((cubes.label - boxes.label).abs().max()) > 0.01
