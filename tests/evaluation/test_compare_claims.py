# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cells that several processes want: one gets each, and a dead one's is taken over."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_autoaug.evaluation.comparison import claims
from monai_autoaug.evaluation.comparison.claims import Claim, holder

# loads the module alone: the package around it takes seconds to import
LOAD = (
    "import importlib.util, sys, time, pathlib;"
    f"spec = importlib.util.spec_from_file_location('claims', {claims.__file__!r});"
    "claims = importlib.util.module_from_spec(spec); sys.modules['claims'] = claims; spec.loader.exec_module(claims);"
)


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.02)


def written(folder: Path, number: int = 1, **changes: object) -> Path:
    file = folder / f"claim.{number}"
    file.write_text(json.dumps({**claims._myself(), **changes}))
    return file


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    """Eight processes that start together, each for all of twenty folders."""
    for number in range(20):
        (tmp_path / str(number)).mkdir()
    code = LOAD + (
        "root = pathlib.Path(sys.argv[1]);"
        "[time.sleep(0.001) for _ in iter(lambda: (root / 'go').exists(), True)];"
        "got = [f.name for f in sorted(root.iterdir()) if f.is_dir() and claims.Claim.take(f)];"
        "print(*got, flush=True); sys.stdin.read()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    got = [process.stdout.readline().split() for process in processes if process.stdout]
    for process in processes:
        process.communicate()
    assert sorted(int(name) for names in got for name in names) == list(range(20))


def test_a_killed_process_is_followed_at_once(tmp_path: Path) -> None:
    code = LOAD + "claim = claims.Claim.take(pathlib.Path(sys.argv[1])); print('mine', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert Claim.take(tmp_path) is None
    assert holder(tmp_path) == f"process {process.pid} on {platform.node()}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert holder(tmp_path) is None
    claim = Claim.take(tmp_path)
    assert claim is not None
    assert claim.path.name == "claim.2"
    claim.release(all_of_them=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_that_nobody_has_waited_for(tmp_path: Path) -> None:
    """A zombie works on nothing; in a container whose first process is no init it stays."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    written(tmp_path, process=process.pid, begun=claims._begun(process.pid))
    assert holder(tmp_path) == f"process {process.pid} on {platform.node()}"
    process.kill()
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert holder(tmp_path) is None
    process.wait()


def test_of_another_machine_age_alone_counts(tmp_path: Path) -> None:
    file = written(tmp_path, machine="elsewhere", process=1)
    assert Claim.take(tmp_path, stale=60) is None
    old = time.time() - 61
    os.utime(file, (old, old))
    claim = Claim.take(tmp_path, stale=60)
    assert claim is not None
    claim.release()


def test_another_process_with_the_number_of_a_dead_one(tmp_path: Path) -> None:
    written(tmp_path, begun="1")  # this test's own number, but begun at another time
    claim = Claim.take(tmp_path)
    assert (claim is not None) == (claims._begun(os.getpid()) is not None)
    if claim is not None:
        claim.release()


def test_of_a_process_that_cannot_be_seen_age_alone_counts(tmp_path: Path) -> None:
    """A container with the same name of the machine: its processes have numbers of their own."""
    written(tmp_path, space="another", process=2**22 + 1)
    assert Claim.take(tmp_path) is None


def test_what_is_just_being_written_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "claim.1").touch()
    assert Claim.take(tmp_path) is None
    assert holder(tmp_path) == "another process"


def test_of_a_process_that_was_killed_before_it_wrote(tmp_path: Path) -> None:
    """A claim that says nothing is followed long before one whose process may only be slow."""
    file = tmp_path / "claim.1"
    file.touch()
    old = time.time() - claims.UNWRITTEN - 1
    os.utime(file, (old, old))
    assert old > time.time() - claims.STALE
    claim = Claim.take(tmp_path)
    assert claim is not None
    claim.release(all_of_them=True)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others would wait for it."""

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*claim.1'"):
        Claim.take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_beats(tmp_path: Path) -> None:
    claim = Claim.take(tmp_path, heartbeat=0.05)
    assert claim is not None
    os.utime(claim.path, (1, 1))
    until(lambda: time.time() - claim.path.stat().st_mtime < 5)
    claim.release()
    assert not claim.path.exists()


def test_who_was_away_for_long_has_lost_it(tmp_path: Path) -> None:
    lost = threading.Event()
    claim = Claim.take(tmp_path, lost=lost.set, heartbeat=0.05)
    assert claim is not None
    written(tmp_path, 2, machine="elsewhere")
    assert lost.wait(10)
    assert claim.is_lost
    claim.release()
    assert [f.name for f in tmp_path.iterdir()] == ["claim.2"]  # the other's stays


def test_what_is_done_is_not_claimed(tmp_path: Path) -> None:
    assert Claim.take(tmp_path, done=lambda: True) is None
    answers = iter([False, True])  # done by another process, between looking and creating
    assert Claim.take(tmp_path, done=lambda: next(answers)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_higher_number_that_appears_meanwhile(tmp_path: Path) -> None:
    answers = iter([False, False])

    def done() -> bool:
        written(tmp_path, 5, machine="elsewhere", process=1)
        return next(answers)

    assert Claim.take(tmp_path, done=done) is None
    assert [f.name for f in tmp_path.iterdir()] == ["claim.5"]


def test_a_claim_that_is_released_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sees it as it goes and another one sees none, and is done looking before the first one creates its own."""
    first = Claim.take(tmp_path)
    assert first is not None
    now = claims._now
    got: list[Claim | None] = []

    def while_looking(folder: Path) -> float:
        monkeypatch.setattr(claims, "_now", now)
        first.release()
        return now(folder)

    def between() -> bool:
        if not got:
            got.append(Claim.take(tmp_path))
        return False

    monkeypatch.setattr(claims, "_now", while_looking)
    assert Claim.take(tmp_path, done=between) is None
    assert got[0] is not None
    assert [f.name for f in tmp_path.iterdir()] == ["claim.1"]
    assert got[0].path.name == "claim.1"
    got[0].release()


def test_a_stale_claim_that_is_removed_before_the_next_is_created(tmp_path: Path) -> None:
    """Another process has taken it over, ended and removed all of them, and a third one has begun at 1 again."""
    old = time.time() - 61
    os.utime(written(tmp_path, machine="elsewhere", process=1), (old, old))
    got: list[Claim | None] = []

    def between() -> bool:
        if not got:
            second = Claim.take(tmp_path, stale=60)
            assert second is not None
            assert second.path.name == "claim.2"
            second.release(all_of_them=True)
            got.append(Claim.take(tmp_path, stale=60))
        return False

    assert Claim.take(tmp_path, done=between, stale=60) is None
    assert got[0] is not None
    assert [f.name for f in tmp_path.iterdir()] == [got[0].path.name] == ["claim.1"]
    got[0].release()


def test_a_claim_that_is_listed_but_not_there_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As network file systems do for a while."""
    monkeypatch.setattr(claims, "_highest", lambda folder: 3)
    assert Claim.take(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_nobody_works_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") is None
