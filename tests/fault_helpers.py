# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of faults share: processes that begin at once and are killed at any moment, and what is left of them.

A new process of Python spends many seconds on imports. A fork server, which imports once and does nothing else, makes
one in hundredths of a second, so that a hundred trials take minutes.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

PATIENCE = 3600  # seconds that a test waits at most: other work may have nearly all of the machine
needs_kill = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs SIGKILL and /proc")


def server() -> ForkServerContext:
    """The fork server of this test process, which has imported both hosts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([
        "fault_helpers", "monai_autoaug.cli", "monai_autoaug.commands.train", "monai_autoaug.commands.compare",
        "monai_autoaug.engines", "monai_autoaug.evaluation.comparison.child",
        "monai_autoaug.evaluation.comparison.comparing", "monai_autoaug.report.comparison_page",
        "monai_autoaug.nnunet.launcher", "monai_autoaug.nnunet.trainers",
        "nnunetv2.run.run_training", "nnunetv2.inference.predict_from_raw_data",
    ])  # fmt: skip
    return context


def chances(seed: int) -> random.Random:
    """What draws the moments of kills."""
    return random.Random(seed)  # noqa: S311


def quiet(function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    """Run a function in a new process, on one thread and without output."""
    multiprocessing.set_start_method("fork", force=True)  # of its workers, as in a process that a user has begun
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def begin(context: ForkServerContext, function: Callable[..., Any], *arguments: Any, **environment: str) -> BaseProcess:
    process = context.Process(target=quiet, args=(function, arguments, environment))
    process.start()
    return process


def used(pid: int) -> float:
    """Seconds of processor time that a process has had; it counts in hundredths."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def used_by_all(pid: int) -> float:
    """Seconds of processor time that a process has had, and those that it has begun."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
        return own + sum(taken for child in children(pid) if not math.isinf(taken := used_by_all(child)))
    except (FileNotFoundError, ProcessLookupError):
        return math.inf


def waited(
    process: BaseProcess, after: float, moments: random.Random, measure: Callable[[int], float] = used
) -> None:  # fmt: skip
    """Wait until a process has had some seconds of processor time, however busy the machine is, or has ended.

    Args:
        process: just begun.
        after: seconds.
        moments: draws what is finer than the system counts.
        measure: `used`, or `used_by_all`.
    """
    assert process.pid is not None
    deadline = time.monotonic() + PATIENCE
    while process.exitcode is None and measure(process.pid) < after:
        assert time.monotonic() < deadline, "the process does nothing any more"
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.012))


def killed(process: BaseProcess, after: float, moments: random.Random) -> bool:
    """Kill a process when it has had some seconds of processor time, see `waited`; False: it had ended."""
    waited(process, after, moments)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"it ended by itself with {process.exitcode}"
    return bool(process.exitcode)


def ended(process: BaseProcess, measure: Callable[[int], float] = used) -> float:
    """Wait until a process has ended well; the seconds of processor time that it took."""
    assert process.pid is not None
    seconds, deadline = 0.0, time.monotonic() + PATIENCE
    while process.exitcode is None:
        assert time.monotonic() < deadline
        now = measure(process.pid)
        seconds = seconds if math.isinf(now) else now
        time.sleep(0.01)
    assert process.exitcode == 0
    return seconds


def complete(folder: Path) -> None:
    """Every file of a folder is whole, but for temporary ones, and a log's last line."""
    for file in sorted(folder.rglob("*")):
        if file.name.startswith(".") or any(p.name.startswith(".") for p in file.relative_to(folder).parents):
            continue
        if file.suffix in (".pt", ".pth"):
            torch.load(file, weights_only=file.suffix == ".pt", map_location="cpu")
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".jsonl":
            [json.loads(line) for line in file.read_text().splitlines()[:-1]]
        elif file.name.endswith((".nii", ".nii.gz")):
            np.asarray(nib.load(file).dataobj)
        elif file.suffix == ".png":
            assert file.read_bytes().endswith(b"IEND\xaeB`\x82"), file


def temporary(folder: Path) -> list[str]:
    """What killed processes have left."""
    return [file.name for file in folder.rglob(".*") if file.name.endswith(".part")]


def same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, through tables and lists."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b) or torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{number}]")
    else:
        assert a == b or a != a, f"{where}: {a} and {b}"  # or both not a number


def children(pid: int | None = None) -> list[int]:
    """Processes that a process has begun and that have not ended; of this one, but for those that serve the tests."""
    own = pid is None
    pid = os.getpid() if pid is None else pid
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a process, or a thread of it, that has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if alive(child) and not (own and _serves(child))]


def _serves(pid: int) -> bool:
    """Whether it is the fork server, or what watches over it."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"multiprocessing.forkserver" in line or b"multiprocessing.resource_tracker" in line


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie that nobody waits for doesn't)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def of_session(session: int) -> list[int]:
    """Processes of a session that have not ended, whoever their parents are."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def gone(session: int, seconds: float = 60) -> bool:
    """Whether all processes of a session end by themselves."""
    deadline = time.monotonic() + seconds
    while of_session(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not of_session(session)


def without_override() -> None:
    """Let the permissions of files count for this process, also if its user is root, who may do everything."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    header, data = Header(0x20080522, 0), (Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        data[0].effective &= ~(1 << capability)
        data[0].permitted &= ~(1 << capability)
    assert libc.capset(ctypes.byref(header), data) == 0


def command(words: list[str], output: Path, restricted: bool = False) -> None:
    """The command line in a session of its own, as from a terminal; what it says goes into a file."""
    from monai_autoaug.cli import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts the tests may have had it ignored
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    if restricted:
        without_override()
    main(words, prog_name="monai-autoaug")


def run_command(context: ForkServerContext, output: Path, *words: object, **options: Any) -> BaseProcess:
    """Begin a command; options are those of `command`, and what else there is goes into its environment."""
    restricted = options.pop("restricted", False)
    environment = {"COLUMNS": "400"} | options
    return begin(context, command, [str(word) for word in words], output, restricted, **environment)


def said(output: Path) -> str:
    return " ".join(output.read_text().split())


def taken(pid: int | None = None) -> dict[str, float]:
    """What a process and those that it has begun hold: memory of its own in MiB, open files, threads, processes."""
    pids = [os.getpid() if pid is None else pid]
    pids += children(pids[0])
    found = {"memory": 0.0, "files": 0.0, "threads": 0.0, "processes": float(len(pids))}
    for number in pids:
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{number}/status").read_text().splitlines())
            found["files"] += len(os.listdir(f"/proc/{number}/fd"))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        found["memory"] += int(status["RssAnon"].split()[0]) / 1024
        found["threads"] += int(status["Threads"])
    return found


def steady(rows: list[dict[str, float]], memory: float) -> None:
    """Nothing grows: what is held in the last third of a run is what was held in the second.

    Args:
        rows: of `taken`, one at the end of each epoch.
        memory: MiB that the smallest of a third may be larger.
    """
    third = len(rows) // 3
    assert third >= 2
    early, late = rows[third : 2 * third], rows[-third:]
    for name in rows[0]:
        before, after = (min(row[name] for row in part) for part in (early, late))
        assert after <= before + (memory if name == "memory" else 0), f"{name} grew from {before} to {after}: {rows}"
