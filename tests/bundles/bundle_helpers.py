# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of bundles share: where they are, their configurations, and their commands run for real."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow
from monai.networks.nets import UNet

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(p for p in (ROOT / "bundles").iterdir() if (p / "configs").is_dir())
SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")
CONFIGS = ["train", "evaluate", "inference", "multi_gpu_train"]
CASES = 12


def read(bundle: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "configs" / f"{name}.json").read_text())
    return content


def walk(node: Any) -> Iterator[Any]:
    """Every value of a configuration, nested ones too."""
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from walk(child)


def writable(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle; the schema lies where the checks look for it, so they need no network."""
    copy = folder / bundle.name
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("eval", "__pycache__"))
    (copy / "eval").mkdir()
    shutil.copy(SCHEMA, copy / "eval" / "schema.json")
    return copy


def some_cases(source: Path, folder: Path) -> Path:
    """A few cases of a data set, in the layout of the Medical Segmentation Decathlon."""
    for part, origin in (("imagesTr", "imagesTr"), ("labelsTr", "labelsTr"), ("imagesTs", "imagesTr")):
        (folder / part).mkdir(parents=True)
        for file in sorted((source / origin).glob("*.nii.gz"))[: 2 if part == "imagesTs" else CASES]:
            (folder / part / file.name).symlink_to(file)
    return folder


def synthetic_cases(folder: Path) -> Path:
    """Volumes of about the size of a hippocampus's surroundings, with two structures that touch, in that layout."""
    for part, count in (("imagesTr", CASES), ("labelsTr", CASES), ("imagesTs", 2)):
        (folder / part).mkdir(parents=True)
        for n in range(count):
            draw = np.random.default_rng(n)
            shape = tuple(int(s) for s in draw.integers((30, 44, 30), (38, 54, 38)))
            where = np.moveaxis(np.indices(shape), 0, -1) - np.array(shape) / 2 - draw.uniform(-3, 3, 3)
            inside = ((where / (7, 14, 6)) ** 2).sum(-1) < 1
            label = np.where(inside, np.where(where[..., 1] > 0, 1, 2), 0)
            image = draw.normal(0, 10, shape) + np.choose(label, (100, 160, 140))
            voxels = label.astype(np.uint8) if part == "labelsTr" else image.astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / part / f"case_{n:03d}.nii.gz")
    return folder


def call(bundle: Path, *arguments: object, launcher: tuple[str, ...] = ("-m", "monai.bundle")) -> str:
    """Run a command of the README in the bundle's folder; its whole output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)], cwd=bundle, env=environment, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def run(bundle: Path, data: Path, *configs: str, **options: object) -> str:
    files = str([f"configs/{name}.json" for name in configs])
    more = [part for name, value in options.items() for part in (f"--{name}", value)]
    return call(
        bundle, "run", "--meta_file", "configs/metadata.json", "--config_file", files, "--logging_file",
        "configs/logging.conf", "--dataset_dir", data, *more,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


WATCH = """
import torch.distributed as dist
from ignite.engine import Events


def watch(trainer):
    'After every update all ranks have the same weights and policies, to the bit, and other noise.'

    def compare(engine):
        method = engine.method
        modules = {n: p.module for n, p in method.players.items()} | dict(method.policies())
        modules["network"] = method.task.network
        here = {f"{n}.{k}": p.detach().cpu() for n, m in modules.items() for k, p in m.named_parameters()}
        noise = method.generator.get_state()
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, [here, noise])
        for other, drawn in everyone[1:]:
            assert other.keys() == everyone[0][0].keys()
            assert all((value == everyone[0][0][key]).all() for key, value in other.items())
            assert (drawn != everyone[0][1]).any()
        if dist.get_rank() == 0:
            print("all ranks are equal:", sorted(modules), flush=True)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, compare)
"""


def run_in_two_processes(bundle: Path, data: Path, **options: object) -> str:
    """Train by the multi-GPU configuration on the CPU; both processes are compared after every update."""
    (bundle / "watch_ranks.py").write_text(WATCH)
    watch = {"_target_": "watch_ranks.watch", "trainer": "@train::trainer"}
    steps = ["$@watched", *read(bundle, "multi_gpu_train")["run"]]
    (bundle / "configs" / "watched.json").write_text(json.dumps({"watched": watch, "run": steps}))
    launcher = (
        "-m", "torch.distributed.run", "--nnodes=1", "--nproc_per_node=2", "--master_addr=127.0.0.1",
        f"--master_port={free_port()}", "-m", "monai.bundle",
    )  # fmt: skip
    more = [part for name, value in options.items() for part in (f"--{name}", value)]
    log = call(
        bundle, "run", "--meta_file", "configs/metadata.json", "--config_file",
        "['configs/train.json','configs/multi_gpu_train.json','configs/watched.json']", "--logging_file",
        "configs/logging.conf", "--dataset_dir", data, *more, launcher=launcher,
    )  # fmt: skip
    assert "all ranks are equal: [" in log
    return log


def infer_without_this_package(bundle: Path, data: Path, *options: object) -> None:
    """Inference in an interpreter where monai_autoaug can't be imported."""
    blocked = bundle / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys\nsys.modules['monai_autoaug'] = None\n")
    environment = os.environ | {"PYTHONPATH": str(blocked), "OMP_NUM_THREADS": "1"}
    refused = subprocess.run([sys.executable, "-c", "import monai_autoaug"], env=environment, check=False,
                             capture_output=True)  # fmt: skip
    assert refused.returncode != 0
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--dataset_dir",
         str(data), *map(str, options)],
        cwd=bundle, env=environment, check=True, capture_output=True,
    )  # fmt: skip


def plain_unet() -> UNet:
    """What the bundles' weights load into."""
    return UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm=("instance", {"affine": True}))


def unmet_properties(bundle: Path, data: Path, workflow: str, config: str) -> Any:
    """What MONAI misses in a configuration; raises where it can't even be read."""
    made = ConfigWorkflow(
        str(bundle / "configs" / f"{config}.json"), str(bundle / "configs" / "metadata.json"), False,
        workflow_type=workflow, bundle_root=str(bundle), dataset_dir=str(data), device="cpu",
    )  # fmt: skip
    made.initialize()
    return made.check_properties()


def predictions(bundle: Path, data: Path) -> dict[str, np.ndarray]:
    """A segmentation of every image, in the image's own geometry, of whole class numbers."""
    found = {}
    for image in sorted((data / "imagesTs").iterdir()):
        made = nib.load(bundle / "eval" / image.name.replace(".nii.gz", "_seg.nii.gz"))
        source = nib.load(image)
        assert made.shape == source.shape
        np.testing.assert_allclose(made.affine, source.affine, atol=1e-4)
        assert made.get_data_dtype() == np.uint8
        found[image.name] = np.asanyarray(made.dataobj)
        assert set(np.unique(found[image.name])) <= {0, 1, 2}
    return found
