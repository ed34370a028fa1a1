# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A file is whole or not there, and nothing is left beside it."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from monai_autoaug.writing import _here, write_tensors, write_text, write_whole

_KILLED = """
import os, signal, sys
from pathlib import Path
from monai_autoaug.writing import write_whole

def half(file):
    file.write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), half)
"""


def test_a_failing_write_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.json", "old")

    def half(file: Path) -> None:
        file.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, half)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_write_leaves_the_former_file_and_the_next_write_tidies_up(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.json", "old")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert done.returncode < 0
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2  # what it was writing
    another = "import sys; from monai_autoaug.writing import write_text; write_text(sys.argv[1], 'new')"
    subprocess.run([sys.executable, "-c", another, str(tmp_path / "b.json")], check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_that_nobody_has_waited_for_writes_no_more(tmp_path: Path) -> None:
    """A zombie: for a moment after a kill, and for good in a container whose first process is no init."""
    writer = "import os, pathlib, sys; (pathlib.Path(sys.argv[1]) / sys.argv[2].format(os.getpid())).write_text('ha')"
    name = f".a.json{_here()}{{}}.part"
    process = subprocess.Popen([sys.executable, "-c", writer, str(tmp_path), name])
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (tmp_path / name.format(process.pid)).exists()
    write_text(tmp_path / "b.json", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["b.json"]
    process.wait()


def test_what_a_living_process_or_another_machine_writes_stays(tmp_path: Path) -> None:
    living = tmp_path / f".a.json{_here()}1.part"
    elsewhere = tmp_path / f".a.json@x{_here().removeprefix('@')}999999999.part"
    dead = tmp_path / f".a.json{_here()}999999999.part"
    for file in (living, elsewhere, dead):
        file.write_text("ha")
    write_text(tmp_path / "a.json", "new")
    assert living.exists()
    assert elsewhere.exists()
    assert not dead.exists()


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs namespaces of processes")
def test_what_another_container_of_the_same_name_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes have numbers of their own, which mean nothing here."""
    seen = []

    def look(file: Path) -> None:
        seen.append(file.name)
        file.write_text("ha")

    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", lambda path: "pid:[7]")
        patch.setattr(os, "getpid", lambda: 999999999)
        write_whole(tmp_path / "a.json", look)
        (tmp_path / seen[0]).write_text("ha")
    assert f"@{platform.node()}@7@999999999.part" in seen[0]
    subprocess.run(
        [sys.executable, "-c", "import sys; from monai_autoaug.writing import write_text; write_text(sys.argv[1], 'b')",
         str(tmp_path / "b.json")], check=True,
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.json", "b.json", seen[0]])


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("name", ["x" * 250 + ".json", "é" * 125 + ".json"])
def test_names_as_long_as_a_file_system_takes(tmp_path: Path, name: str) -> None:
    """A temporary name is no longer, and what a killed write has left under one is found again."""
    path = write_text(tmp_path / name, "old")
    assert subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False).returncode < 0
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    another = "import sys; from monai_autoaug.writing import write_text; write_text(sys.argv[1], 'new')"
    subprocess.run([sys.executable, "-c", another, str(path)], check=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert path.read_text() == "new"


def test_files_of_tensors_do_not_tell_which_machine_wrote_them(tmp_path: Path) -> None:
    """torch.save writes a path's name into the file, and a temporary one holds the machine's."""
    path = write_tensors(tmp_path / "a.pt", {"weight": torch.ones(2)})
    assert platform.node().encode() not in path.read_bytes()
    assert torch.load(path, weights_only=True)["weight"].tolist() == [1, 1]
    again = write_tensors(tmp_path / "b.pt", {"weight": torch.ones(2)})
    assert again.read_bytes() == path.read_bytes()


def _fills_up(tmp_path: Path, write: Callable[[], object]) -> OSError:
    """What a write raises where files may have 4 KiB, as a full disk would."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return caught.value


@pytest.mark.parametrize("size", [2000, 10**6])
def test_a_full_disk_is_told_by_file_and_cause(tmp_path: Path, size: int) -> None:
    """torch itself raises a RuntimeError about positions in its archive; one small file fails when it is closed."""
    path = write_tensors(tmp_path / "a.pt", {"weight": torch.ones(2)})
    error = _fills_up(tmp_path, lambda: write_tensors(path, {"weight": torch.ones(size)}))
    assert error.filename == str(path)
    assert torch.load(path, weights_only=True)["weight"].tolist() == [1, 1]
    assert _fills_up(tmp_path, lambda: write_text(tmp_path / "b.json", "x" * 9000)).filename == str(tmp_path / "b.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_an_interruption_of_a_write_of_tensors_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while torch hands its bytes over."""
    path = write_tensors(tmp_path / "a.pt", {"weight": torch.ones(2)})

    class Interrupted(io.FileIO):
        def write(self, data: object) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", lambda self, mode: Interrupted(self, mode))
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, {"weight": torch.ones(10**5)})
    monkeypatch.undo()
    assert torch.load(path, weights_only=True)["weight"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
