# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Killed at any moment of a training, of a write, of a prediction: what is there is whole, and nothing is lost."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_helpers import begin, chances, complete, ended, killed, needs_kill, same, server, temporary, used
from run_helpers import rows

from monai_autoaug.data import write_phantom
from monai_autoaug.engines import predict, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.writing import write_tensors

pytestmark = needs_kill
METHODS: dict[str, dict[str, Any]] = {
    "joint_policy": {
        "method_options": {"warm_up": 0, "update_every": 1, "pool": 2, "views": 2, "meta_batch": 4}, "meta_cases": 1
    },
    "adversarial": {"method_options": {"warm_up": 0, "width": 2}},
}  # fmt: skip
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    return server()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("kills") / "data", cases=4, size=16, test=3)


def go_on(data: Path, folder: Path, method: str) -> None:
    """Train, or finish what was begun."""
    if Run(folder).config.exists():
        resume(folder)
        return
    options = TrainOptions(
        data, folder, method=method, epochs=6, iterations=2, validation_cases=1, validation_interval=2, batch_size=4,
        patch_size=(8, 8, 8), network_options={"channels": [2, 4]}, device="cpu", **METHODS[method],
    )  # fmt: skip
    train(options)


def equal(one: Path, other: Path) -> None:
    """Two runs have learned the same, to the last bit: weights, policies, random states, figures."""
    contents = [torch.load(Run(folder).checkpoint, weights_only=True) for folder in (one, other)]
    for content in contents:
        del content["clock"]
    assert {"network", "optimizer", "autoaug"} <= contents[0].keys()
    assert contents[0]["autoaug"]["ranks"][0]["random"].keys() == {"python", "numpy", "torch", "cuda"}
    same(*contents)
    files = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in (one, other)]
    assert files[0] == files[1]
    for name in files[0]:
        if name.name not in ("checkpoint.pt", "log.jsonl", "summary.json", "config.json"):  # these tell times and paths
            if name.suffix == ".pt":  # whose bytes depend on which equal strings of a process are one object
                same(*(torch.load(folder / name, weights_only=True) for folder in (one, other)))
                continue
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert rows(Run(one)) == rows(Run(other))


@pytest.mark.parametrize(("method", "kills"), [
    ("joint_policy", 6), pytest.param("joint_policy", 60, marks=LONG), pytest.param("adversarial", 60, marks=LONG),
])  # fmt: skip
def test_a_training_killed_at_any_moment_is_the_one_that_never_stopped(
    method: str, kills: int, data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    whole = tmp_path / "whole"
    seconds = ended(begin(processes, go_on, data, whole, method))
    moments, done, run = chances(kills), 0, 0
    while done < kills:
        run += 1
        folder = tmp_path / f"killed_{run}"
        finished = False
        while not finished:
            process = begin(processes, go_on, data, folder, method)
            if done < kills:
                finished = not killed(process, moments.uniform(0, 0.5 * seconds), moments)
                done += not finished
            else:
                ended(process)
                finished = True
            if folder.exists():
                complete(folder)
        assert not temporary(folder)
        equal(folder, whole)


def writes(file: Path) -> None:
    """Replace a file again and again."""
    number = 0
    while True:
        number += 1
        write_tensors(file, {"number": number, "weights": [torch.full((100_000,), float(number)) for _ in range(4)]})


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=LONG)])
def test_a_write_killed_at_any_moment_leaves_a_whole_file(
    kills: int, tmp_path: Path, processes: ForkServerContext
) -> None:
    file, moments, seen = tmp_path / "checkpoint.pt", chances(kills), set()
    for _ in range(kills):
        process = begin(processes, writes, file)
        while not file.exists():
            assert process.exitcode is None
        assert process.pid is not None
        assert killed(process, used(process.pid) + moments.uniform(0, 0.05), moments)
        content = torch.load(file, weights_only=True)
        assert all(bool((w == content["number"]).all()) for w in content["weights"])
        seen.add(content["number"])
        assert len(temporary(tmp_path)) <= 1  # each process removes what the one before has left
        file.unlink()
    assert len(seen) > 1


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=LONG)])
def test_a_prediction_killed_at_any_moment_is_made_by_the_next_command(
    kills: int, data: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    run, images = tmp_path / "run", data / "imagesTs"
    ended(begin(processes, go_on, data, run, "adversarial"))
    seconds = ended(begin(processes, predicts, run, images, tmp_path / "whole"))
    wanted = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert len(wanted) == 3
    moments, done, number = chances(kills), 0, 0
    while done < kills:
        number += 1
        folder, finished = tmp_path / f"killed_{number}", False
        while not finished:
            process = begin(processes, predicts, run, images, folder)
            if done < kills:
                finished = not killed(process, moments.uniform(0, seconds), moments)
                done += not finished
            else:
                ended(process)
                finished = True
            there = [f for f in folder.iterdir() if not f.name.startswith(".")] if folder.exists() else []
            assert all(file.read_bytes() == wanted[file.name] for file in there)
        assert {file.name for file in folder.iterdir()} == set(wanted)


def predicts(run: Path, images: Path, output: Path) -> None:
    predict(run, images, output, resume=True, device="cpu")


def test_predictions_that_are_there_stay(data: Path, tmp_path: Path, processes: ForkServerContext) -> None:
    ended(begin(processes, go_on, data, tmp_path / "run", "adversarial"))
    files = predict(tmp_path / "run", data / "imagesTs", tmp_path / "out", device="cpu")
    wanted = files[1].read_bytes()
    files[0].write_bytes(b"mine")
    files[1].unlink()
    assert sorted(predict(tmp_path / "run", data / "imagesTs", tmp_path / "out", device="cpu", resume=True)) == files
    assert files[0].read_bytes() == b"mine"
    assert files[1].read_bytes() == wanted


