# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cells are done once, by whoever is free; what stops, fails or dies leaves the rest alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from compare_helpers import making_up, small_plan, write_result

from monai_autoaug.engines.progress import Listener, Progress
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.evaluation.comparison import Plan, scheduling
from monai_autoaug.evaluation.comparison.cells import Cell, CellFolder
from monai_autoaug.evaluation.comparison.claims import Claim
from monai_autoaug.evaluation.comparison.scheduling import CellError, in_a_process, run_cells, state_of
from monai_autoaug.evaluation.comparison.working import Place

QUICK: dict[str, Any] = {"poll": 0.02, "heartbeat": 0.1}


def test_what_is_done_is_left_alone(tmp_path: Path) -> None:
    own = small_plan(tmp_path)
    seen: list[str] = []
    heard: list[Progress] = []
    assert run_cells(own.cells()[:1], own.place, making_up({}, seen=seen)) == {}
    assert run_cells(own.cells(), own.place, making_up({}, seen=seen), listener=heard.append) == {}
    assert seen == [cell.name for cell in own.cells()]
    assert [p.done for p in heard if p.note is None] == sorted(p.done for p in heard if p.note is None)
    assert heard[-1].done == heard[-1].total == 4
    assert "adversarial, 4 cases, seed 0, equal iterations" in {p.note for p in heard}
    names = {f.name for f in (own.folder / "cells" / "none_4_0").iterdir()}
    assert names == {"config.json", "evaluation.json", "result.json"}  # no claim is left


def test_a_cell_that_fails_leaves_the_others_alone_and_is_tried_again(tmp_path: Path) -> None:
    own = small_plan(tmp_path)

    def fails(cell: Cell) -> None:
        if cell.name == "adversarial_4_0":
            raise CellError("out of memory")

    heard: list[Progress] = []
    failed = run_cells(own.cells(), own.place, making_up({}, fails=fails), listener=heard.append)
    assert failed == {"adversarial_4_0": "out of memory"}
    assert sum(own.place(cell).done for cell in own.cells()) == 3
    assert any(p.note and "failed. out of memory" in p.note for p in heard)
    assert state_of(own.place(own.cells()[1])) == "begun"
    assert run_cells(own.cells(), own.place, making_up({})) == {}


def test_one_without_a_result_has_failed(tmp_path: Path) -> None:
    own = small_plan(tmp_path)
    failed = run_cells(own.cells()[:1], own.place, lambda *given: None)
    assert failed == {"none_4_0": "it ended without a result"}


def test_ctrl_c_gives_the_cell_back(tmp_path: Path) -> None:
    own = small_plan(tmp_path)

    def fails(cell: Cell) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(own.cells(), own.place, making_up({}, fails=fails))
    assert [f.name for f in own.place(own.cells()[0]).path.iterdir()] == ["config.json"]
    assert state_of(own.place(own.cells()[0])) == "begun"
    assert run_cells(own.cells(), own.place, making_up({})) == {}


def test_what_others_work_on_comes_last(tmp_path: Path) -> None:
    own = small_plan(tmp_path)
    first = own.cells()[0]
    folder = own.place(first)
    folder.path.mkdir(parents=True)
    claim = Claim.take(folder.path)
    assert claim is not None
    assert "works on it" in state_of(folder)
    seen: list[str] = []
    assert run_cells(own.cells(), own.place, making_up({}, seen=seen), wait=False) == {}
    assert seen == [cell.name for cell in own.cells()[1:]]

    def other() -> None:
        time.sleep(0.3)
        folder.begin(first)
        write_result(first, folder, 0.0)
        claim.release(all_of_them=True)

    thread = threading.Thread(target=other)
    thread.start()
    run_cells(own.cells(), own.place, making_up({}, seen=seen), **QUICK)
    thread.join()
    assert len(seen) == 3  # waited for, and not done again


def work(own: Plan, log: Path, pause: float, marker: str) -> None:
    def execute(cell: Cell, folder: CellFolder, stop: threading.Event, listener: Listener) -> None:
        with log.open("a") as file:
            file.write(f"{marker} {cell.name}\n")
        time.sleep(pause)
        write_result(cell, folder, 0.0)

    run_cells(own.cells(), own.place, execute, **QUICK)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked, which spares their imports")
def test_processes_share_a_folder_and_one_is_killed(tmp_path: Path) -> None:
    own = small_plan(tmp_path, seeds=(0, 1, 2), counts=(3, 4))
    log = tmp_path / "log.txt"
    fork = multiprocessing.get_context("fork")
    slow = fork.Process(target=work, args=(own, log, 60.0, "slow"))
    slow.start()
    while not log.exists():
        time.sleep(0.01)
    assert slow.pid is not None
    others = [fork.Process(target=work, args=(own, log, 0.02, f"quick{n}")) for n in range(3)]
    for process in others:
        process.start()
    time.sleep(0.5)
    os.kill(slow.pid, signal.SIGKILL)  # kill -9 within its first cell
    slow.join()
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    mine = [name for who, name in lines if who == "slow"]
    done = [name for who, name in lines if who != "slow"]
    assert len(mine) == 1
    assert sorted(done) == sorted(cell.name for cell in own.cells())  # each once, the killed one's again
    assert all(own.place(cell).done for cell in own.cells())


def test_a_cell_that_is_lost_is_left_to_its_new_holder(tmp_path: Path) -> None:
    own = small_plan(tmp_path)
    first = own.cells()[0]

    def execute(cell: Cell, folder: CellFolder, stop: threading.Event, listener: Listener) -> None:
        if cell.name == first.name:
            (folder.path / "claim.2").write_text('{"machine": "elsewhere", "process": 1}')
            assert stop.wait(20)
            raise CellError("stopped")
        write_result(cell, folder, 0.0)

    failed = run_cells(own.cells(), own.place, execute, wait=False, **QUICK)
    assert failed == {}
    assert not own.place(first).done
    assert (own.place(first).path / "claim.2").exists()


def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path / "shared", workers=2)


def test_a_place_goes_to_another_process(tmp_path: Path) -> None:
    own = Place(tmp_path / "data", tmp_path / "shared", "cuda:1", 3, tmp_path / "more")
    assert Place.from_json(own.to_json()) == own
    assert Place.from_json(place(tmp_path).to_json()) == place(tmp_path)


class Child:
    """A process in place of a cell's own, which would take seconds to import anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        popen = scheduling.subprocess.Popen

        def start(command: list[str], **given: Any) -> Any:
            self.command = command
            self.process = popen([sys.executable, "-c", code, command[3]], **given)
            return self.process

        monkeypatch.setattr(scheduling.subprocess, "Popen", start)


HELPERS = "import sys, pathlib, json, time, os; folder = pathlib.Path(sys.argv[1]);"


def one(tmp_path: Path, **given: Any) -> tuple[Plan, dict[str, str]]:
    own = small_plan(tmp_path)
    return own, run_cells(own.cells()[:1], own.place, in_a_process(place(tmp_path), poll=0.02), **given)


def test_a_process_tells_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = HELPERS + (
        "(folder / 'progress.json').write_text(json.dumps({'stage': 'training', 'done': 3, 'total': 9}));"
        "time.sleep(0.5); (folder / 'result.json').write_text('{}'); print('printed')"
    )
    child = Child(monkeypatch, code)
    heard: list[Progress] = []
    own, failed = one(tmp_path, listener=heard.append)
    assert failed == {}
    assert Progress("training", 3, 9) in heard
    assert own.place(own.cells()[0]).log.read_text() == "printed\n"
    assert child.command[1:3] == ["-m", "monai_autoaug.evaluation.comparison.child"]
    assert Place.from_json(child.command[4]) == place(tmp_path)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('error: lr must be below 1\\n  got 3', file=sys.stderr); sys.exit(2)", "lr must be below 1\n  got 3"),
        ("print('one\\ntwo\\nthree\\nfour'); sys.exit(7)",
         "its process ended with code 7; none_4_0/log.txt ends with: two; three; four"),
        ("os.kill(os.getpid(), 9)", "ended with signal 9 (if the machine has too little memory"),
    ],
)  # fmt: skip
def test_why_a_process_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str) -> None:
    Child(monkeypatch, HELPERS + code)
    _, failed = one(tmp_path)
    assert told in failed["none_4_0"]


@pytest.mark.skipif(sys.platform == "win32", reason="groups of processes")
def test_ctrl_c_ends_the_process_and_what_it_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = HELPERS + (
        "import subprocess; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "(folder / 'progress.json').write_text(json.dumps({'stage': str(p.pid), 'done': 0, 'total': 1}));"
        "time.sleep(600)"
    )
    child = Child(monkeypatch, code)
    begun: list[int] = []

    def hear(progress: Progress) -> None:
        if progress.stage.isdigit():
            begun.append(int(progress.stage))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one(tmp_path, listener=hear)
    assert child.process.returncode == -signal.SIGTERM
    end = time.monotonic() + 20
    while Path(f"/proc/{begun[0]}").exists() and "\nState:\tZ" not in Path(f"/proc/{begun[0]}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_ends_with_the_one_that_began_it(tmp_path: Path) -> None:
    """Kill -9 of the command: nobody is left that would go on writing into a cell that others take over."""
    file = Path(scheduling.__file__).with_name("child.py")  # alone: the package around it takes seconds to import
    code = (
        "import importlib.util as i, time;"
        f"s = i.spec_from_file_location('child', {str(file)!r}); m = i.module_from_spec(s); s.loader.exec_module(m);"
        "m._end_with_parent(); print('up', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-c', {code!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE);"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(600)"
    )
    process = scheduling.subprocess.Popen([sys.executable, "-c", parent], stdout=scheduling.subprocess.PIPE)
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while Path(f"/proc/{orphan}").exists() and "State:\tZ" not in Path(f"/proc/{orphan}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_fault_is_a_message_and_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from monai_autoaug.evaluation.comparison import child, working

    def fail(*given: object) -> None:
        raise DataError("holds NaN", file="case_1", remedy="repair it")

    monkeypatch.setattr(child, "_end_with_parent", lambda: None)
    monkeypatch.setattr(working, "work", fail)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert child.main([str(tmp_path), place(tmp_path).to_json()]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: case_1: holds NaN. To do: repair it\n"
    assert not (tmp_path / "progress.json").exists()


def test_what_is_refused_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    own = small_plan(tmp_path)
    last = own.place(own.cells()[-1])
    last.path.mkdir(parents=True)
    last.config.write_text("{}")
    seen: list[str] = []
    with pytest.raises(ConfigError, match="another configuration"):
        run_cells(own.cells(), own.place, making_up({}, seen=seen))
    assert seen == []
