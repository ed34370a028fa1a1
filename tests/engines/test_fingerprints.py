# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training goes on with the images and labels that it began with, or says which are others, and not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import loader, loss, network, record
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import methods
from monai_autoaug.data import write_phantom
from monai_autoaug.engines import AutoAugTrainer, TrainingCheckpoint, fingerprints, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import CheckpointError, ConfigError


def flipped(file: Path) -> None:
    """Another content of the same size, name and time."""
    times, content = file.stat(), bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "content": (flipped, "expected content of hash [0-9a-f]{32}, came [0-9a-f]{32}, of the same size"),
    "size": (longer, r"expected \d+ bytes, came \d+"),
    "gone": (Path.unlink, r"expected \d+ bytes, came no file that can be read \(No such file or directory\)"),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, Run]:
    """A data set, a whole run on it, and one that was stopped in its second epoch."""
    root = tmp_path_factory.mktemp("stopped")
    data = write_phantom(root / "data", cases=4, size=16)
    whole = train(options(data, root / "whole", method="none"))
    with pytest.raises(KeyboardInterrupt):
        train(options(data, root / "run", method="none"), listener=stop_at(5))
    return data, whole, Run(root / "run")


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize(("part", "folder"), [("train", "imagesTr"), ("validation", "labelsTr")])
def test_a_run_is_not_resumed_on_other_data(
    stopped: tuple[Path, Run, Run], tmp_path: Path, part: str, folder: str, kind: str
) -> None:
    data, _, run = stopped
    case = json.loads(run.config.read_text())["split"][part][0]
    file, (change, message) = data / folder / f"{case}.nii.gz", CHANGES[kind]
    kept = shutil.copy2(file, tmp_path)
    change(file)
    try:
        with pytest.raises(CheckpointError, match=rf"{case}.nii.gz: {message}\n.*put these files back") as caught:
            resume(run.folder)
    finally:
        shutil.copy2(kept, file)
    assert str(caught.value).count("\n") == 2  # this file alone


def test_a_run_is_resumed_on_the_same_data_of_another_day(stopped: tuple[Path, Run, Run], tmp_path: Path) -> None:
    """Copied again, by programs that don't keep times."""
    data, whole, run = stopped
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"))
    for file in data.rglob("*.nii.gz"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    resume(copy.folder)
    assert rows(copy) == rows(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(copy).values(), weights(whole).values(), strict=True))


def test_what_is_kept_names_cases_and_no_paths(stopped: tuple[Path, Run, Run]) -> None:
    data, whole, _ = stopped
    kept, split = json.loads(whole.fingerprints.read_text()), json.loads(whole.config.read_text())["split"]
    assert kept["unlabelled"] == {}
    assert list(kept["cases"]) == [*split["train"], *split["meta"], *split["validation"]]
    for case, files in kept["cases"].items():
        sizes = [(data / folder / f"{case}.nii.gz").stat().st_size for folder in ("imagesTr", "labelsTr")]
        assert [file["bytes"] for file in files] == sizes
    assert str(data) not in whole.fingerprints.read_text()
    assert ".nii" not in whole.fingerprints.read_text()


def test_many_files_are_counted_and_not_all_named(
    stopped: tuple[Path, Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, run = stopped
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"))
    kept = json.loads(copy.fingerprints.read_text())
    first, *others = kept["cases"]
    kept["cases"][first].pop()
    kept["cases"].update({case: [{"bytes": 1, "blake2b": ""}] * 2 for case in others})
    copy.fingerprints.write_text(json.dumps(kept))
    monkeypatch.setattr(fingerprints, "_SHOWN", 3)
    with pytest.raises(CheckpointError, match=f"case {first}: expected 1 files, came 2\n") as caught:
        resume(copy.folder)
    assert str(caught.value).count("expected 1 bytes") == 2
    assert "\n  and 4 more\n" in str(caught.value)


def test_a_run_of_an_earlier_version_is_resumed_and_a_damaged_file_is_not_trusted(
    stopped: tuple[Path, Run, Run], tmp_path: Path
) -> None:
    _, whole, run = stopped
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"))
    for broken in ({"version": 1, "cases": []}, {"version": 2, "cases": {}, "unlabelled": {}}):
        copy.fingerprints.write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match=r"fingerprints.json: "):
            resume(copy.folder)
    copy.fingerprints.unlink()
    resume(copy.folder)
    assert rows(copy) == rows(whole)


def by_a_handler(folder: Path, epochs: int, *, resume: bool = False, **given: Any) -> list[dict[str, float]]:
    """Train as a bundle does; the figures of all iterations."""
    torch.manual_seed(0)
    net = methods.prepare("none", network())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    handler = TrainingCheckpoint(folder / "run.pt", {"model": net, "optimizer": optimizer}, resume=resume, **given)
    engine = AutoAugTrainer("cpu", epochs, loader(batch_size=4), net, optimizer, loss(), method="none",
                            train_handlers=[handler])  # fmt: skip
    found = record(engine)
    engine.run()
    return found


def test_a_checkpoint_of_an_engine_knows_the_files_too(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.nii" for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode() * 3)
    whole = by_a_handler(tmp_path / "whole", 3, files=files)
    by_a_handler(tmp_path, 1, files=[*files, files[0]])
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert [set(known) for known in content["fingerprints"]["files"]] == [{"bytes", "blake2b"}] * 3
    flipped(files[1])
    told = r"run.pt: the data .*\n  .*b.nii: expected content of hash .*\n.*start without resume"
    with pytest.raises(CheckpointError, match=told):
        by_a_handler(tmp_path, 3, resume=True, files=files)
    flipped(files[1])
    (tmp_path / "d.nii").write_bytes(b"new")
    with pytest.raises(CheckpointError, match=r"expected 3 files, came 4\n  .*d.nii: was not among them\n"):
        by_a_handler(tmp_path, 3, resume=True, files=[*files, tmp_path / "d.nii"])
    with pytest.raises(CheckpointError, match="expected 3 files, came 2\nTo do"):
        by_a_handler(tmp_path, 3, resume=True, files=files[:2])
    with pytest.raises(CheckpointError, match=r"(?s)b.nii: expected content.*a.nii: expected content"):
        by_a_handler(tmp_path, 3, resume=True, files=[files[1], files[0], files[2]])  # another order of training
    moved = [file.rename(tmp_path / "whole" / file.name) for file in files]
    second = by_a_handler(tmp_path, 2, resume=True, files=moved)
    assert torch.load(tmp_path / "run.pt", weights_only=True)["fingerprints"] == content["fingerprints"]
    assert second + by_a_handler(tmp_path, 3, resume=True, files=moved) == whole[len(whole) // 3 :]


def test_a_checkpoint_that_knows_no_files_is_resumed_and_knows_them_then(tmp_path: Path) -> None:
    by_a_handler(tmp_path, 1)
    (tmp_path / "a.nii").write_bytes(b"voxels")
    assert "fingerprints" not in torch.load(tmp_path / "run.pt", weights_only=True)
    by_a_handler(tmp_path, 2, resume=True, files=[tmp_path / "a.nii"])
    (tmp_path / "a.nii").write_bytes(b"VOXELS")
    with pytest.raises(CheckpointError, match="a.nii: expected content of hash"):
        by_a_handler(tmp_path, 3, resume=True, files=[tmp_path / "a.nii"])
    with pytest.raises(ConfigError, match="'fingerprints' are taken"):
        TrainingCheckpoint(tmp_path / "run.pt", {"fingerprints": network()})


def test_a_file_that_is_gone_is_named_also_where_their_number_has_changed(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.nii", "b.nii", "c.nii")]
    for file in files:
        file.write_bytes(file.name.encode())
    known = fingerprints.KnownFiles(files[:2])
    known.look()
    files[1].unlink()
    with pytest.raises(CheckpointError, match=r"expected 2 files, came 3\n.*b.nii: can't be read \(No such") as caught:
        fingerprints.KnownFiles(files).check(known.state_dict(), tmp_path / "checkpoint.pt")
    assert f"{files[2]}: was not among them" in str(caught.value)
    assert str(files[0]) not in str(caught.value)
