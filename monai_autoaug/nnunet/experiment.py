# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's folders for many trainings on parts of one data set: raw, planned and preprocessed once, shared by all.

Each training has a view of the preprocessed data set with a split of its own, in which its fold is 0, and results of
its own. So several machines can train from the same folders at once, and none of them writes where others read. What
all share is made in a folder of its own and put in place in one step, so that of two processes that make it (one of
which was away for so long that the other one took over) neither harms what the other one makes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_autoaug.child_processes import OWN_GROUP, end
from monai_autoaug.data import Case, DataList
from monai_autoaug.errors import AutoAugError
from monai_autoaug.nnunet.options import CONFIG_VARIABLE
from monai_autoaug.nnunet.raw_data import write_images, write_raw
from monai_autoaug.writing import write_text

__all__ = ["DATASET", "PLANS", "SMALL", "Experiment", "small_configuration", "write_images", "write_raw"]

DATASET, PLANS, SMALL = 900, "nnUNetPlans", "small"
# standard input is a pipe whose other end only the parent holds; were the parent killed, a process that goes on would
# write where the next one begins anew
_TENDED = """
import os, signal, threading
def end():
    while os.read(0, 1024):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
threading.Thread(target=end, daemon=True).start()
"""
_PREPARING = "preparing_"
_POLL = 0.3  # seconds between two looks at whether to stop
_PLAN = _TENDED + (
    "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as run; run()"
)


def small_configuration(
    planned: Mapping[str, Any], *, features: Sequence[int], patch_size: Sequence[int], batch_size: int
) -> dict[str, Any]:
    """A configuration with fewer stages and channels, on smaller patches of the same preprocessed data.

    Args:
        planned: nnU-Net's ``3d_fullres``.
        features: channels of each stage; a stage halves all axes, but the first.
        patch_size: voxels.
        batch_size: patches.
    """
    stages = len(features)
    architecture = deepcopy(planned["architecture"])
    architecture["arch_kwargs"] |= {
        "n_stages": stages, "features_per_stage": list(features), "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }  # fmt: skip
    blocks = "n_blocks_per_stage" if "n_blocks_per_stage" in architecture["arch_kwargs"] else "n_conv_per_stage"
    architecture["arch_kwargs"][blocks] = [2] * stages
    return {
        "inherits_from": "3d_fullres", "architecture": architecture, "patch_size": list(patch_size),
        "batch_size": batch_size,
    }  # fmt: skip


class Experiment:
    """nnU-Net's folders of one experiment.

    Args:
        folder: that holds them; made if need be.
        title: of the data set, letters and digits.

    >>> Experiment(Path("work"), "liver").name
    'Dataset900_liver'
    """

    def __init__(self, folder: Path, title: str) -> None:
        self.folder = folder.resolve()
        self.name = f"Dataset{DATASET}_{''.join(c for c in title if c.isascii() and c.isalnum()) or 'data'}"

    @property
    def preprocessed(self) -> Path:
        """What all trainings share."""
        return self.folder / "preprocessed" / self.name

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has ended."""
        return (self.preprocessed / "prepared").exists()

    @contextmanager
    def environment(self, home: Path | None = None, **more: str) -> Iterator[None]:
        """Within the block nnU-Net finds these folders.

        Args:
            home: of one training, with its view of the preprocessed data and its results; None: of none.
            more: further variables.
        """
        given = {
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str((home or self.folder) / "preprocessed"),
            "nnUNet_results": str((home or self.folder) / "results"),
        } | more
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            Path(given[name]).mkdir(parents=True, exist_ok=True)
        before = {name: os.environ.get(name) for name in (*given, CONFIG_VARIABLE)}
        os.environ.pop(CONFIG_VARIABLE, None)
        os.environ.update(given)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def prepare(
        self,
        datalist: DataList,
        cases: Sequence[Case],
        *,
        configuration: str = "3d_fullres",
        small: Mapping[str, Any] | None = None,
        processes: int = 1,
        log: Path | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Raw data, nnU-Net's plans, preprocessed data; nothing is changed where they are there already.

        Args:
            datalist: what the cases hold.
            cases: all that any training has, those that validate included.
            configuration: that is preprocessed.
            small: options of `small_configuration`, which is then there by the name `SMALL`.
            processes: of nnU-Net.
            log: what nnU-Net prints.
            stop: once it is set, the work ends soon.

        Raises:
            AutoAugError: nnU-Net has failed, and the message has the end of what it printed; or it was to stop.
        """
        with self._apart() as own:
            write_raw(own.folder / "raw" / self.name, datalist, cases)
            arguments = ["-d", str(DATASET), "-c", configuration, "-npfp", str(processes), "-np", str(processes)]
            with own.environment(nnUNet_n_proc_DA=str(max(1, processes))):  # planning fails without a process
                _run([sys.executable, "-c", _PLAN, *arguments], log or self.folder / "plan.txt", stop)
            if small is not None:
                file = own.preprocessed / f"{PLANS}.json"
                plans = json.loads(file.read_text(encoding="utf-8"))
                plans["configurations"][SMALL] = small_configuration(plans["configurations"][configuration], **small)
                write_text(file, json.dumps(plans, indent=1) + "\n")
            write_text(own.preprocessed / "prepared", "")
            _go_on(stop)
            if not self.prepared:
                shutil.rmtree(self.preprocessed, ignore_errors=True)  # it holds nothing that is used
                _put_in_place(own.preprocessed, self.preprocessed)

    def unlabelled(self, configuration: str, names: Sequence[str]) -> Path:
        """Where `prepare_unlabelled` puts images; it is there when that has ended.

        Args:
            configuration: as the trainings have it.
            names: of the images, or a digest of them: what tells them from others.
        """
        key = hashlib.sha256(json.dumps([configuration, *names]).encode()).hexdigest()[:16]
        return self.folder / "unlabelled" / key

    def prepare_unlabelled(
        self,
        cases: Iterable[Case],
        channels: int,
        configuration: str,
        names: Sequence[str],
        *,
        stop: threading.Event | None = None,
    ) -> None:
        """Preprocess images without labels under the same plans, for methods that learn from these, too.

        Args:
            cases: their labels, if any, are not looked at.
            channels: of their images.
            configuration: as the trainings have it.
            names: what tells these images from others, see `unlabelled`.
            stop: as for `prepare`.

        Raises:
            AutoAugError: an image can't be used; or it was to stop.
        """
        from monai_autoaug.nnunet.unlabelled import preprocess_unlabelled

        done = self.unlabelled(configuration, names)
        if done.exists():
            return
        with self._apart() as own:
            images, made = own.folder / "images", own.folder / "made"
            for case in cases:
                named = replace(case, name=case.name.replace("/", "_"))
                write_images(images, named, channels, link=False)  # the audit refuses links that lead out of a folder
            self.view(own.folder, (), ())
            with own.environment():
                folder = preprocess_unlabelled(
                    str(DATASET), configuration, images, plans=PLANS, progress=lambda done, total: _go_on(stop)
                )
            made.mkdir()
            for part in (folder, folder.with_name(f"{folder.name}.json")):
                part.rename(made / part.name)
            _put_in_place(made, done)

    @contextmanager
    def _apart(self) -> Iterator[Experiment]:
        """Folders of the same data set that are this process's alone, until the block ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_PREPARING, dir=self.folder))
        own = Experiment(folder, "")
        own.name = self.name
        try:
            yield own
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what processes that were killed while they prepared something have left; nothing may be prepared."""
        for folder in self.folder.glob(f"{_PREPARING}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def view(
        self, home: Path, train: Sequence[str], validation: Sequence[str], *, unlabelled: Path | None = None
    ) -> None:
        """A training's view of the preprocessed data, with its cases as fold 0.

        Args:
            home: of the training.
            train: names.
            validation: names.
            unlabelled: images that it learns from, too, see the method `unlabelled`; None: none.
        """
        folder = home / "preprocessed" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for source in (*self.preprocessed.iterdir(), *(unlabelled.iterdir() if unlabelled is not None else ())):
            target = folder / source.name
            if source.name == "splits_final.json" or target.exists():
                continue
            if target.is_symlink():  # of another machine, where these folders lie elsewhere
                target.unlink()
            target.symlink_to(os.path.relpath(source, folder), target_is_directory=source.is_dir())
        split = [{"train": sorted(train), "val": sorted(validation)}]
        write_text(folder / "splits_final.json", json.dumps(split, indent=1) + "\n")


def _put_in_place(made: Path, target: Path) -> None:
    """Move a folder to where it belongs, in one step, unless another process has been faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _go_on(stop: threading.Event | None) -> None:
    """Raise if the work is to end."""
    if stop is not None and stop.is_set():
        raise AutoAugError("the data are no longer prepared here: another process has taken that over")


def _run(command: Sequence[str], log: Path, stop: threading.Event | None = None) -> None:
    """Run a command to its end, or until it is to stop; all that it has begun ends with our wait."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603  # our own
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, **OWN_GROUP
        )
        try:
            while process.poll() is None:
                _go_on(stop)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
        finally:
            end(process)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        why = "could not plan and preprocess the data set"
        if process.returncode < 0:
            why = f"was killed by signal {-process.returncode} while it planned and preprocessed the data set"
            if process.returncode == -signal.SIGKILL:
                why += ", as a machine without memory left does it; fewer --workers take less"
            why += "; the same command begins that anew"
        raise AutoAugError(f"nnU-Net {why}; {log.name} ends with\n{tail}")
