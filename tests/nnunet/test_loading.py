# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Patches: in order, each batch seeded, the same from any number of workers; what is known of them; margins."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet import launcher
from monai_autoaug.nnunet.loading import SeededLoader, Stream, seeded, take_loader
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    """Streams that are closed whatever happens."""
    streams: list[Any] = []
    yield streams
    for stream in streams:
        stream.close()


def streams(dataset: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    trainer = dataset.trainer(Adversarial, **options)
    trainer.initialize()
    trainer.get_dataloaders()
    return trainer, trainer._streams


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return bool(np.all(np.asarray(a) == np.asarray(b)))


def test_batches_are_the_same_from_any_number_of_workers(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any]
) -> None:
    wanted = None
    for workers in (0, 1, 3):
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        trainer, made = streams(tiny)
        stream = Stream(made["train"].source.loader, seed=0, rank=0, stream="train", workers=workers)
        closing.append(stream)
        np.random.rand(workers)  # noqa: NPY002  # global draws in between change nothing
        torch.rand(workers)
        batches = [next(stream) for _ in range(5)]
        assert stream.position == 5
        wanted = batches if wanted is None else wanted
        for number, (a, b) in enumerate(zip(batches, wanted, strict=True)):
            assert equal(a, b), f"batch {number} of {workers} workers"
    assert wanted is not None
    assert not torch.equal(wanted[0]["data"], wanted[1]["data"])


def test_the_trainer_itself_uses_workers(tiny: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any]) -> None:
    _, single = streams(tiny)
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    _, several = streams(tiny)
    closing += several.values()
    assert several["train"]._augmenter is not None
    for name in ("train", "val", "real"):
        for _ in range(2):
            assert equal(next(several[name]), next(single[name])), name


ORPHANS = """
import json, os, signal, sys, torch
from pathlib import Path
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial
plans, dataset_json = json.loads(Path(sys.argv[1]).read_text())
trainer = nnUNetTrainerAutoAugAdversarial(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
trainer.on_train_start()
for stream in trainer._streams.values():
    next(stream)
workers = [p.pid for s in trainer._streams.values() for p in s._augmenter._processes]
Path(sys.argv[2]).write_text(json.dumps(workers))
os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie that nobody waits for doesn't)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_workers_end_with_a_killed_training(tiny: Any, tmp_path: Path) -> None:
    given, out = tmp_path / "given.json", tmp_path / "workers.json"
    given.write_text(json.dumps([tiny.plans, tiny.json]))
    environment = os.environ | {"nnUNet_n_proc_DA": "2", "PYTHONPATH": str(Path(launcher.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", ORPHANS, str(given), str(out)], env=environment)
    assert process.wait(timeout=300) == -signal.SIGKILL
    workers = json.loads(out.read_text())
    assert len(workers) == 4
    deadline = time.time() + 30
    while any(map(alive, workers)) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


def test_streams_ranks_and_seeds_differ(tiny: Any) -> None:
    _, made = streams(tiny)
    first = next(made["train"])["data"]
    assert not torch.equal(first, next(made["real"])["data"])
    loader = made["train"].source.loader
    for change in ({"rank": 1}, {"seed": 1}, {"stream": "real"}):
        other = SeededLoader(loader, **({"seed": 0, "rank": 0, "stream": "train"} | change))
        assert not torch.equal(first, next(other)["data"]), change
    assert torch.equal(first, next(SeededLoader(loader, seed=0, rank=0, stream="train"))["data"])


def test_a_stream_starts_where_another_stopped(tiny: Any) -> None:
    _, made = streams(tiny)
    batches = [next(made["train"]) for _ in range(4)]
    later = Stream(made["train"].source.loader, seed=0, rank=0, stream="train", start=2)
    assert equal(next(later), batches[2])
    assert equal(next(later), batches[3])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stock_loader_under_a_learned_method(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any], workers: int
) -> None:
    """As nnU-Net serves patches, unseeded, but with what a method needs to know of them."""
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    trainer, made = streams(tiny, loader="stock")
    closing += made.values()
    first, second = next(made["train"]), next(made["real"])
    assert not torch.equal(first["data"], second["data"])
    assert trainer.layout.batch(first, torch.device("cpu")).classes.shape == (2,)
    assert made["train"].position == 1


def test_seeding_leaves_the_global_generators_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return np.random.rand(), float(torch.rand(())), random.random()  # noqa: NPY002, S311

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    wanted = [draw(), draw()]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    got = [draw()]
    with seeded(3, 4):
        inside = draw()
    got.append(draw())
    assert got == wanted
    with seeded(3, 5):
        assert inside != draw()


def test_loaders_can_be_sent_to_spawned_workers(tiny: Any) -> None:
    _, made = streams(tiny, base_augmentation="mirror", margin=2)
    copied = pickle.loads(pickle.dumps(made["train"].source))  # noqa: S301  # made a line above
    assert equal(next(copied), made["train"].source.batch(0))


def test_the_centre_class_is_the_label_at_the_centre(tiny: Any) -> None:
    """Without spatial augmentation the label at the centre of the patch itself is the reference."""
    trainer, made = streams(tiny, base_augmentation="none")
    seen = set()
    for _ in range(6):
        raw = next(made["train"])
        batch = trainer.layout.batch(raw, torch.device("cpu"))
        centre = batch.label[(slice(None), slice(None), *(n // 2 for n in batch.label.shape[2:]))].argmax(1)
        assert torch.equal(raw["center_class"], centre)
        for_nothing = raw["sampled"] < 0  # others are of the class they were cut for: see test_sampled_classes.py
        assert torch.equal(batch.classes[for_nothing], centre[for_nothing])
        assert torch.equal(batch.label.sum(1), torch.ones_like(batch.label[:, 0]))
        assert list(batch.case) == [str(k) for k in raw["keys"]]
        seen |= set(batch.classes.tolist())
    assert len(seen) > 1


def test_base_augmentation_keeps_what_it_says(tiny: Any) -> None:
    kinds = {}
    for base in ("stock", "mirror", "none"):
        trainer, made = streams(tiny, base_augmentation=base)
        transforms = made["train"].source.loader.loader.transforms.transforms.transforms
        kinds[base] = [type(t) for t in transforms]
        assert (trainer.inference_allowed_mirroring_axes is None) == (base == "none")
    assert SpatialTransform in kinds["stock"]
    assert SpatialTransform not in kinds["mirror"]
    assert MirrorTransform in kinds["mirror"]
    assert MirrorTransform not in kinds["none"]
    assert len(kinds["stock"]) > len(kinds["mirror"]) == len(kinds["none"]) + 1


@pytest.mark.parametrize("base", ["stock", "mirror", "none"])
def test_a_margin_surrounds_the_patch_that_was_there_before(tiny: Any, base: str) -> None:
    """The same seeds with and without margin: without spatial draws the interior is the very same patch."""
    plain_trainer, plain = streams(tiny, base_augmentation=base)
    trainer, made = streams(tiny, base_augmentation=base, margin=[2, 0, 3])
    before = plain_trainer.layout.batch(next(plain["train"]), torch.device("cpu"))
    batch = trainer.layout.batch(next(made["train"]), torch.device("cpu"))
    patch = tuple(tiny.plans["configurations"]["3d_fullres"]["patch_size"])
    assert batch.image.shape[2:] == (patch[0] + 4, patch[1], patch[2] + 6)
    assert batch.cropped().image.shape[2:] == patch == batch.cropped().label.shape[2:]
    assert [t.shape for t in batch.target] == [t.shape for t in before.target]
    full = batch.cropped().label.argmax(1, keepdim=True)
    assert torch.equal(batch.target[0].long(), full)
    if base == "none":
        assert batch.case == before.case
        torch.testing.assert_close(batch.cropped().image, before.image)
        assert all(equal(a, b) for a, b in zip(batch.target, before.target, strict=True))


def test_margins_reach_what_lies_beyond_the_patch(make_dataset: Callable[..., Any]) -> None:
    """In an image larger than the patch the margin shows the image itself, not padding."""

    def small_patch(plans: dict[str, Any]) -> None:
        plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]

    dataset = make_dataset(
        labels={"background": 0, "shell": 1, "core": 2}, shape=(32, 32, 32), edit=small_patch, cases=5
    )
    _, made = streams(dataset, base_augmentation="none", margin=4)
    image = next(made["train"])["data"]
    border = torch.ones_like(image, dtype=torch.bool)
    border[:, :, 4:-4, 4:-4, 4:-4] = False
    assert (image[border] != 0).float().mean() > 0.3
    automatic, _ = streams(dataset)
    assert automatic.layout.margin == (2, 2, 2)
    off, _ = streams(dataset, method="none")
    assert off.layout.margin == (0, 0, 0)


def test_a_trainer_with_another_list_of_transforms_is_refused_by_name(tiny: Any) -> None:
    _, made = streams(tiny)
    loader = copy.copy(made["train"].source.loader)
    recorder = loader.loader.transforms
    assert isinstance(recorder.transforms, ComposeTransforms)
    recorder.transforms = recorder.transforms.transforms[0]
    from monai_autoaug.nnunet.patches import prepare_loader

    with pytest.raises(ConfigError, match="SpatialTransform, not a list"):
        prepare_loader(loader, "none", (0, 0, 0), False)


def test_a_trainer_that_serves_patches_by_other_means_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="come from DummyLoader, not from nnU-Net's loader"):
        take_loader(type("DummyLoader", (), {})(), "train")
