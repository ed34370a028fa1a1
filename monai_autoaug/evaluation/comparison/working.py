# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Training, prediction and evaluation of one cell, by either host, and what they took."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from monai_autoaug.data import Case, DataList, SplitFile, read_datalist
from monai_autoaug.engines.claims import claimed
from monai_autoaug.engines.folder import Run, read_json, write_json
from monai_autoaug.engines.options import TrainOptions, find_device, find_precision
from monai_autoaug.engines.prediction import learned_views, predict_cases
from monai_autoaug.engines.progress import Listener, Progress
from monai_autoaug.engines.run import resume, train
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.evaluation.comparison.cells import VERSION, CellFolder
from monai_autoaug.evaluation.comparison.setting import read_kept
from monai_autoaug.evaluation.evaluator import evaluate
from monai_autoaug.evaluation.metrics import decided
from monai_autoaug.memory import peak_memory
from monai_autoaug.precision import Precision
from monai_autoaug.writing import write_text

__all__ = ["Place", "Spent", "telling", "work"]

_FIGURES = ("policy_updates", "policy_moved", "entropy_all", "entropy_background", "entropy_foreground",
            "entropy_views", "views_gain", "augmenter_updates")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a cell is worked on; nothing of this decides its result, but for the precision of a device.

    Args:
        data: the data set's folder.
        shared: what the comparison's cells share.
        device: "auto", "cpu", "cuda" or "cuda:1".
        workers: processes that cut patches (nnU-Net: that augment); None: the host's own number, none with MONAI. Only
            nnU-Net's own loader (arm "nnunet") makes other batches of another number.
        unlabelled: a folder of images without labels.
    """

    data: Path
    shared: Path
    device: str = "auto"
    workers: int | None = None
    unlabelled: Path | None = None

    def to_json(self) -> str:
        """For another process."""
        return json.dumps({n: None if v is None else str(v) if n != "workers" else v for n, v in asdict(self).items()})

    @classmethod
    def from_json(cls, text: str) -> Place:
        """What `to_json` wrote."""
        content = json.loads(text)
        paths = {n: Path(content[n]) for n in ("data", "shared", "unlabelled") if content[n] is not None}
        return cls(**content | paths)


@dataclass
class Spent:
    """Time that passed within a ``with`` block.

    Attributes:
        seconds: on the wall.
        cpu_seconds: of this process and those of its children that have ended.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    _begun: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __enter__(self) -> Spent:
        self._begun = (time.perf_counter(), _cpu())
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = round(time.perf_counter() - self._begun[0], 3)
        self.cpu_seconds = round(_cpu() - self._begun[1], 3)

    def to_dict(self) -> dict[str, float]:
        """JSON values."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def work(folder: CellFolder, place: Place, listener: Listener) -> None:
    """Do all that a cell is, or what is left of it; its ``result.json`` is written last.

    Args:
        folder: of the cell, begun.
        place: where it is worked on.
        listener: hears where the work is.

    Raises:
        ConfigError: an option can't work.
        DataError: the data set can't be used.
    """
    config = read_kept(folder.config)
    datalist = read_datalist(place.data)
    by_name = {case.name: case for case in datalist.training}
    test = [by_name[name] for name in config["test"]]
    shutil.rmtree(folder.predictions, ignore_errors=True)  # of a process that was stopped
    host = _monai if config["setting"]["host"] == "monai" else _nnunet
    spent = host(folder, config, place, datalist, test, listener)
    judged = replace(datalist, training=tuple(test))
    found = evaluate(
        folder.predictions, judged, metrics=decided(config["setting"]["tolerance"]),
        progress=lambda done, total: listener(Progress("evaluating", done, total)),
    )  # fmt: skip
    if len(found.cases) != len(test):
        raise DataError(
            "lacks predictions", file=folder.predictions, expected=f"{len(test)} cases", came=len(found.cases)
        )
    found.save(folder.evaluation)
    shutil.rmtree(folder.predictions)
    Run(folder.run).checkpoint.unlink(missing_ok=True)  # nobody resumes what has ended, and it is large
    write_json(folder.result, {"version": VERSION, "hash": config["hash"], **spent})


def _machine(device: torch.device) -> dict[str, str]:
    """What the times were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"kind": device.type, "name": name}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    packages = ("monai_autoaug", "torch", "monai", "nnunetv2", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _told(peaks: Sequence[Mapping[str, float | None]], device: torch.device, **more: Any) -> dict[str, Any]:
    """The parts of a result that all hosts have."""
    highest: dict[str, float | None] = {}
    for name in peaks[0]:
        known = [p for peak in peaks if (p := peak[name]) is not None]
        highest[name] = max(known) if known else None
    return {"peak_memory": highest, "device": _machine(device), "versions": _versions(), **more}


def _monai(
    folder: CellFolder, config: Mapping[str, Any], place: Place, datalist: DataList, test: Sequence[Case],
    listener: Listener,
) -> dict[str, Any]:  # fmt: skip
    """The MONAI host: `engines.train`, or `engines.resume`, then predictions of the test cases."""
    run = Run(folder.run)
    _wait_until_free(run.folder)
    options = _train_options(folder, config, place)
    if not run.summary.exists():
        if run.config.exists():
            _here(run, options)
            resume(run.folder, device=place.device, workers=place.workers or 0, listener=listener)
        else:
            train(options, listener=listener)
    summary = read_json(run.summary)
    device = find_device(place.device)
    peaks = [peak_memory(device)]
    precision = Precision(device, find_precision(options.precision, device))
    network, files = run.load_model().to(device), [folder.predictions / f"{case.name}.nii.gz" for case in test]
    has_views = run.policy.exists() and config["setting"]["test_time"] == "own"
    with Spent() as spent:
        predict_cases(
            network, run.load_preprocessing(), test, files, patch_size=read_json(run.config)["patch_size"],
            precision=precision, views=learned_views(run) if has_views else None, listener=listener,
        )  # fmt: skip
    keys = ("iterations", "epochs", "seconds", "cpu_seconds", "parameters", "best_epoch")
    last = json.loads(run.log.read_text(encoding="utf-8").splitlines()[-1])
    return _told(
        [*peaks, peak_memory(device)], device,
        training={key: summary[key] for key in keys if key in summary},
        inference=spent.to_dict() | {"cases": len(test)},
        learned={name: last[name] for name in _FIGURES if name in last}, warnings=summary["warnings"],
    )  # fmt: skip


def _train_options(folder: CellFolder, config: Mapping[str, Any], place: Place) -> TrainOptions:
    split = SplitFile(*(tuple(config[part]) for part in ("train", "validation")))
    own = [name for name in config["unlabelled"] if not name.startswith("digest ")]
    if place.unlabelled is None and own:
        split = replace(split, unlabelled=tuple(own))
    file = folder.path / "split.json"
    split.save(file)
    return TrainOptions(
        data=place.data, output=folder.run, method=config["method"], method_options=config["method_options"],
        seed=config["seed"], split=file, split_seed=config["setting"]["split_seed"], device=place.device,
        workers=place.workers or 0, unlabelled=place.unlabelled if config["unlabelled"] else None, **config["options"],
    )  # fmt: skip


def _here(run: Run, options: TrainOptions) -> None:
    """Let a run that another machine began find data and split where they lie on this one."""
    config = read_json(run.config)
    paths = {name: getattr(options, name) for name in ("data", "split", "unlabelled")}
    here = {name: str(path.resolve()) for name, path in paths.items() if path is not None}
    if not here.items() <= config["options"].items():
        write_json(run.config, config | {"options": config["options"] | here})


def _wait_until_free(folder: Path, seconds: float = 30.0) -> None:
    """Until a process that was killed, or the one that it began, is gone."""
    end = time.monotonic() + seconds
    while True:
        try:
            with claimed(folder):
                return
        except ConfigError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _nnunet(
    folder: CellFolder, config: Mapping[str, Any], place: Place, datalist: DataList, test: Sequence[Case],
    listener: Listener,
) -> dict[str, Any]:  # fmt: skip
    """nnU-Net: its own training and prediction, in this process."""
    from monai_autoaug.evaluation.comparison.nnunet_work import NnunetCell

    device = find_device(place.device)
    cell = NnunetCell(folder, config, place, datalist, device)
    listener(Progress("training", 0, 1))
    with Spent() as spent:
        fresh = cell.train()
    peaks = [peak_memory(device)]
    listener(Progress("predicting", 0, len(test)))
    with Spent() as predicting:
        cell.predict(test)
    training = cell.trained() | ({"cpu_seconds": spent.cpu_seconds} if fresh else {})
    return _told(
        [*peaks, peak_memory(device)], device, training=training, inference=predicting.to_dict() | {"cases": len(test)},
        learned=cell.learned(_FIGURES), warnings=cell.warnings(),
    )  # fmt: skip


@contextlib.contextmanager
def telling(file: Path, every: float = 1.0) -> Iterator[Listener]:
    """A listener that writes where the work is, now and then, for others to read.

    Args:
        file: small, and whole whenever it is read.
        every: seconds between two writes; the end of a stage and notes are always written.
    """
    last = [float("-inf")]

    def hear(progress: Progress) -> None:
        now = time.monotonic()
        if progress.note is None and progress.done < progress.total and now - last[0] < every:
            return
        last[0] = now
        write_text(file, json.dumps(asdict(replace(progress, ended=None))))

    try:
        yield hear
    finally:
        file.unlink(missing_ok=True)
