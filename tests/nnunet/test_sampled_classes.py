# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a patch was cut for: nnU-Net's choice of a class is noted, and class_of: sampled goes by it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_configurations import LABELS, steps
from test_joint_trainer import joint, started

from monai_autoaug.nnunet.cutting import NOT_FOR_A_CLASS
from monai_autoaug.policies import class_at_centre


def large_patch(plans: dict[str, Any]) -> None:
    """Larger than the images, whose borders keep it from being centred where it should be."""
    plans["configurations"]["3d_fullres"]["patch_size"] = [32, 32, 32]


@pytest.fixture(scope="module")
def small_images(make_dataset: Callable[..., Any]) -> Any:
    return make_dataset(labels=LABELS, shape=(20, 20, 20), edit=large_patch)


def sampled(loader: Any, locations: Any, forced: bool = True) -> int:
    loader.get_bbox(np.array([24, 24, 24]), forced, locations)
    return int(loader.transforms.take()["sampled"][-1])


def test_the_note_is_of_the_class_that_was_drawn(tiny: Any) -> None:
    trainer = started(joint(tiny))
    loader = trainer._streams["train"].source.loader.loader
    here, none = np.array([[0, 1, 2, 3]]), []
    for fresh in (loader, pickle.loads(pickle.dumps(loader))):  # noqa: S301  # as a spawned worker gets it
        assert [sampled(fresh, {1: none, 2: here}), sampled(fresh, {1: here, 2: none})] == [2, 1]
        assert {sampled(fresh, {1: here, 2: here}) for _ in range(20)} == {1, 2}
        assert sampled(fresh, {1: none, 2: none}) == NOT_FOR_A_CLASS  # a case without foreground
        assert sampled(fresh, {1: here, 2: here}, forced=False) == NOT_FOR_A_CLASS
        assert sampled(fresh, {(1, 2): here, 2: none}) == 1  # regions are counted, whatever their labels
        assert sampled(fresh, {(1, 2): none, 1: here}) == 2
        assert sampled(fresh, {1: none, (-1, 0, 1): here}) == NOT_FOR_A_CLASS  # any voxel whose label is known
    trainer._close_streams()


def test_forced_patches_are_of_the_class_they_were_cut_for(small_images: Any) -> None:
    options = {"class_of": "sampled", "classes": "labels"}
    trainer = joint(small_images, method_options=options, batch_size=6)
    apart = 0
    for batch, _ in steps(trainer, 4):
        assert (batch.classes[4:] > 0).all()  # a third of nnU-Net's patches are for foreground
        centres = batch.label[:, :, 16, 16, 16].argmax(1)
        apart += int((batch.classes[4:] != centres[4:]).sum())
    assert apart > 0
    assert trainer.method.on_epoch(0)["share_core"] > 0


def test_patches_for_nothing_are_of_the_class_of_their_centre(tiny: Any) -> None:
    trainer = started(joint(tiny, batch_size=4, base_augmentation="none", margin=0))
    for _ in range(3):
        raw = next(trainer._streams["train"])
        assert (raw["sampled"] > 0).tolist() == [False, False, False, True]
        batch = trainer.layout.batch(raw, torch.device("cpu"))
        assert batch.classes is not None
        assert torch.equal(batch.classes[:3], class_at_centre(batch.label)[:3])
        assert batch.classes[3] == raw["sampled"][3]
    trainer._close_streams()


def test_regions_and_an_ignore_label(make_dataset: Callable[..., Any]) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    dataset = make_dataset(labels=labels, ignore=3, regions_class_order=[1, 2])
    trainer = joint(dataset, batch_size=6, method_options={"class_of": "sampled", "classes": "labels"})
    seen = torch.cat([batch.classes[4:] for batch, _ in steps(trainer, 4)])
    assert set(seen.tolist()) == {1, 2}
