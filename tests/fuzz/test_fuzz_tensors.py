# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Files of tensors whose bytes or content were changed: what is loaded is what was saved, or there is a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fuzz_helpers import EXAMPLES, fuzz, mutated, spoilt_bytes
from hypothesis import strategies as st

from monai_autoaug import augmenters
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.segmentation import build_network
from monai_autoaug.errors import AutoAugError


def model(folder: Path) -> Run:
    run = Run(folder)
    network = build_network("unet", 1, 2, channels=[2, 2])
    run.save_model(network, name="unet", inputs=1, outputs=2, options={"channels": [2, 2]})
    return run


@EXAMPLES
def test_bytes_of_a_model(tmp_path: Path, examples: int) -> None:
    run = model(tmp_path)
    whole = run.model.read_bytes()
    state = {name: tensor.clone() for name, tensor in run.load_model().state_dict().items()}

    def one(content: bytes) -> None:
        run.model.write_bytes(content)
        try:
            found = run.load_model().state_dict()
        except AutoAugError:
            return
        assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())

    fuzz(examples, one, spoilt_bytes(whole))


@EXAMPLES
def test_content_of_a_model(tmp_path: Path, examples: int) -> None:
    run = model(tmp_path)
    content = torch.load(run.model)

    def one(changed: Any) -> None:
        torch.save(changed, run.model)
        try:
            run.load_model()
        except AutoAugError:
            return

    fuzz(examples, one, mutated(content))


@EXAMPLES
def test_content_of_augmenters(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "augmenters.pt"
    kinds = ("affine", "deformation", "appearance")
    augmenters.save(path, {kind: augmenters.find(kind)(2, 1) for kind in kinds})
    content, whole = torch.load(path), path.read_bytes()

    def one(changed: Any) -> None:
        if isinstance(changed, bytes):
            path.write_bytes(changed)
        else:
            torch.save(changed, path)
        try:
            augmenters.load(path)
        except AutoAugError:
            return

    fuzz(examples, one, st.one_of(mutated(content), mutated(content), spoilt_bytes(whole)))
