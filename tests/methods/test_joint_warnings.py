# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What goes wrong while policies learn is told, and spoils nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_joint_policy import Streams, build

from monai_autoaug.data.batch import Batch
from monai_autoaug.methods.joint_policy import JointPolicy
from monai_autoaug.policies import Sampled


def test_hardly_any_patch_of_a_class_is_told() -> None:
    """Patches that all have a structure at their centre; and the remedy: a loss around a voxel of either class."""
    streams = Streams(size=10, shape=(16, 16, 16))
    label = torch.zeros(10, 3, 16, 16, 16)
    label[:, 0] = 1
    label[:, 0, 6:10, 6:10, 6:10], label[:, 1, 6:10, 6:10, 6:10] = 0, 1
    streams.batches["train"] = replace(streams.batches["train"], label=label)
    seen: dict[str, Batch] = {}
    task = {"listener": lambda event, v: seen.update(v) if event == "forward" else None}
    for options, told in (({}, True), ({"loss_region": 0.3}, False), ({"classes": "all"}, False)):
        method = build(test_time=False, update_every=10, steps=2000, task=task, **options)
        for _ in range(10):
            method.step(streams)
        figures = method.on_epoch(1)
        assert any("hardly any patch is of class background" in w for w in method.warnings()) == told
        if options:
            assert figures.get("share_background", 0.5) == pytest.approx(0.5, abs=0.2)
        valid = seen["batch"].valid
        assert (valid is not None and float(valid.mean()) < 0.1) == ("loss_region" in options)


def test_views_that_do_harm_again_and_again_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    method, streams = build(steps=2000), Streams(shape=(8, 8, 8))
    assert method.viewing is not None
    monkeypatch.setattr(method.viewing, "_gain", lambda *_: torch.tensor(-0.01))
    for epoch in range(5):
        assert not any("made the predictions" in w for w in method.warnings())
        method.step(streams)
        assert method.on_epoch(epoch)["views_gain"] == pytest.approx(-0.01)
        assert not method.views_help
    assert any("made the predictions" in w for w in method.warnings())
    monkeypatch.setattr(method.viewing, "_gain", lambda *_: torch.tensor(0.01))
    method.step(streams)
    method.on_epoch(5)
    assert method.views_help
    assert not any("made the predictions" in w for w in method.warnings())


def test_what_is_not_finite_does_not_reach_a_policy() -> None:
    """One value would spoil all logits of its class, for ever; it is left out and told."""

    class Spoilt(JointPolicy):
        def _improve(self, drawn: Sampled) -> None:
            values = drawn.values.clone()
            values[0] = torch.nan
            super()._improve(replace(drawn, values=values))

    streams = Streams(size=6, shape=(16, 16, 16))
    method = build(method=Spoilt, pool=2)
    start = method.training.logits.detach().clone()
    for _ in range(3):
        method.step(streams)
    assert torch.isfinite(method.training.logits).all()
    assert not torch.equal(method.training.logits, start)
    assert any("was not finite" in w for w in method.warnings())
    meta = streams.batches["meta"]
    streams.batches["meta"] = replace(meta, image=torch.full_like(meta.image, torch.nan))
    method.step(streams)
    assert method.test_time is not None
    assert torch.isfinite(method.test_time.logits).all()
    assert torch.isfinite(method.training.logits).all()
