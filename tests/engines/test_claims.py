# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run's folder is one process's, can be claimed at once after a kill, and is left as it was where nothing began."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_helpers import options, stop_at

from monai_autoaug.data import write_phantom
from monai_autoaug.engines import claims, resume, train
from monai_autoaug.engines.claims import LOCK, check_writable, claimed
from monai_autoaug.errors import ConfigError

HOLD = """
import sys
from pathlib import Path
from monai_autoaug.engines.claims import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=4, size=16)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.skipif(claims.fcntl is None, reason="needs locks of the operating system")
def test_a_folder_is_one_process_at_a_time(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    other = holder(folder)
    with monkeypatch.context() as patched:
        patched.setattr("monai_autoaug.engines.run.read_datalist", lambda path: pytest.fail("data was read"))
        with pytest.raises(ConfigError, match=f"run: process {other.pid} on .* is working in it; wait until"):
            train(options(data, folder))
    assert [f.name for f in folder.iterdir()] == [LOCK]
    other.kill()  # nothing can be tidied up
    other.communicate()
    assert [f.name for f in folder.iterdir()] == [LOCK]
    with pytest.raises(KeyboardInterrupt):
        train(options(data, folder, method="none", epochs=1), listener=stop_at(1))
    other = holder(folder)
    with pytest.raises(ConfigError, match=f"process {other.pid} on .* is working in it"):
        resume(folder)
    other.kill()
    other.communicate()
    resume(folder)
    assert not (folder / LOCK).exists()


def test_a_process_does_not_claim_twice(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        with pytest.raises(ConfigError, match="this process is working in it"), claimed(tmp_path / "." / "run"):
            pytest.fail("claimed twice")
        assert (tmp_path / "run" / LOCK).exists()
    assert not (tmp_path / "run").exists()


def test_a_file_removed_while_it_was_opened_is_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder removes it; who has it open already must not take it for the folder's lock."""
    original, calls = claims._take, []

    def take(folder: Path, opened: int) -> None:
        if not calls:
            (folder / LOCK).unlink()
            folder.rmdir()
        calls.append(opened)
        original(folder, opened)

    monkeypatch.setattr(claims, "_take", take)
    with claimed(tmp_path / "run"):
        assert len(calls) == 2
        assert (tmp_path / "run" / LOCK).read_text().startswith("process ")


def test_without_locks_it_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        def lockf(self, *_: object) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(claims, "fcntl", NoLocks())
    with claimed(tmp_path / "run"):
        assert "has no locks (Function not implemented)" in caplog.text


@pytest.mark.parametrize("name", ["output", "cache"])
def test_an_unwritable_folder_is_found_before_data_is_read(
    data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_autoaug.engines.run.read_datalist", lambda path: pytest.fail("data was read"))
    (tmp_path / "file").touch()
    chosen = {"output": tmp_path / "runs" / "a"} | {name: tmp_path / "file" / "here"}
    with pytest.raises(ConfigError, match=f"{name}: .*file/here can't be written .*; choose a folder"):
        train(options(data, **chosen))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_read_only_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for another user's folder; the test may run as one who may write everywhere."""

    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(claims.os, "open", refuse)
    message = "output: .*run can't be written .Permission denied."
    with pytest.raises(ConfigError, match=message), claimed(tmp_path / "run"):
        pytest.fail("claimed")
    with pytest.raises(ConfigError, match="cache: .*run can't be written .Permission denied."):
        check_writable("cache", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_did_not_begin_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "runs" / "a"), listener=stop_at(2, "checking"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("monai_autoaug.engines.run.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        train(options(data, tmp_path / "runs" / "a"))
    assert list(tmp_path.iterdir()) == []
