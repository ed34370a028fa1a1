# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's folders for many trainings on parts of one data set: raw, planned and preprocessed once, shared by all.

Each training has a view of the preprocessed data set with a split of its own, in which its fold is 0, and results of
its own. So several machines can train from the same folders at once, and none of them writes where others read.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from monai_autoaug.data import Case, DataList
from monai_autoaug.errors import AutoAugError, ConfigError
from monai_autoaug.nnunet.options import CONFIG_VARIABLE
from monai_autoaug.writing import write_text

__all__ = ["DATASET", "PLANS", "SMALL", "Experiment", "small_configuration", "write_images", "write_raw"]

DATASET, PLANS, SMALL = 900, "nnUNetPlans", "small"
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
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
_PLAN = _TENDED + (
    "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as run; run()"
)


def write_images(folder: Path, case: Case, channels: int, *, link: bool = True) -> None:
    """Put a case's image where nnU-Net looks for it: one file a channel.

    Args:
        folder: ``imagesTr`` or the like.
        case: with a file for each channel, or one that holds all.
        channels: how many.
        link: by links; False: copies. Channels of one file are always written as files of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if len(case.images) == channels:
        for channel, image in enumerate(case.images):
            ending = ".nii.gz" if image.name.endswith(".gz") else ".nii"
            _put(image, folder / f"{case.name}_{channel:04d}{ending}", link)
        return
    whole: Any = nib.load(case.images[0])
    values = np.asanyarray(whole.dataobj)
    for channel in range(channels):
        target = folder / f"{case.name}_{channel:04d}.nii.gz"
        if not target.exists():
            nib.save(nib.Nifti1Image(values[..., channel], whole.affine), target)


def _put(source: Path, target: Path, link: bool) -> None:
    if target.is_symlink() or target.exists():
        target.unlink()
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


def write_raw(folder: Path, datalist: DataList, training: Sequence[Case]) -> Path:
    """A raw data set of nnU-Net: links to images and labels, and ``dataset.json``.

    Args:
        folder: of the data set; what is in it is lost.
        datalist: what the cases hold.
        training: cases with labels.

    Raises:
        ConfigError: some files are compressed and others aren't, which nnU-Net can't read.

    >>> import tempfile
    >>> from monai_autoaug.data import read_datalist, write_phantom
    >>> data = read_datalist(write_phantom(f"{tempfile.mkdtemp()}/data", cases=2, size=16))
    >>> folder = write_raw(Path(tempfile.mkdtemp()) / "Dataset900_tiny", data, data.training[:1])
    >>> [len([*(folder / name).iterdir()]) for name in ("imagesTr", "labelsTr")]
    [1, 1]
    """
    shutil.rmtree(folder, ignore_errors=True)
    channels = len(datalist.channels)
    endings = set()
    for case in training:
        if case.label is None:
            raise ConfigError(f"{case.name} has no label, so nnU-Net can't train on it")
        endings.add(".nii.gz" if case.label.name.endswith(".gz") else ".nii")
        (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
        write_images(folder / "imagesTr", case, channels)
        (folder / "labelsTr" / f"{case.name}{max(endings)}").symlink_to(case.label.resolve())
    endings |= {".nii.gz" if f.name.endswith(".gz") else ".nii" for f in (folder / "imagesTr").iterdir()}
    if len(endings) > 1:
        raise ConfigError("nnU-Net wants all files of a data set to end alike, in .nii.gz or in .nii; convert some")
    labels: dict[str, Any] = {name: list(v) if isinstance(v, tuple) else v for name, v in datalist.labels.items()}
    if datalist.ignore_label is not None:
        labels["ignore"] = datalist.ignore_label
    content: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(datalist.channels)}, "labels": labels,
        "numTraining": len(training), "file_ending": endings.pop(),
    }  # fmt: skip
    if datalist.regions_class_order is not None:
        content["regions_class_order"] = list(datalist.regions_class_order)
    write_text(folder / "dataset.json", json.dumps(content, indent=1) + "\n")
    return folder


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
    ) -> None:
        """Raw data, nnU-Net's plans, preprocessed data; what an interrupted call has left is made again.

        Args:
            datalist: what the cases hold.
            cases: all that any training has, those that validate included.
            configuration: that is preprocessed.
            small: options of `small_configuration`, which is then there by the name `SMALL`.
            processes: of nnU-Net.
            log: what nnU-Net prints.

        Raises:
            AutoAugError: nnU-Net has failed; the message has the end of what it printed.
        """
        shutil.rmtree(self.preprocessed, ignore_errors=True)
        write_raw(self.folder / "raw" / self.name, datalist, cases)
        arguments = ["-d", str(DATASET), "-c", configuration, "-npfp", str(processes), "-np", str(processes)]
        with self.environment(nnUNet_n_proc_DA=str(max(1, processes))):  # planning fails without a process
            _run([sys.executable, "-c", _PLAN, *arguments], log or self.folder / "plan.txt")
        if small is not None:
            file = self.preprocessed / f"{PLANS}.json"
            plans = json.loads(file.read_text(encoding="utf-8"))
            plans["configurations"][SMALL] = small_configuration(plans["configurations"][configuration], **small)
            write_text(file, json.dumps(plans, indent=1) + "\n")
        write_text(self.preprocessed / "prepared", "")

    def prepare_unlabelled(self, cases: Iterable[Case], channels: int, configuration: str) -> None:
        """Preprocess images without labels under the same plans, for methods that learn from these, too.

        Args:
            cases: their labels, if any, are not looked at.
            channels: of their images.
            configuration: as the trainings have it.
        """
        from monai_autoaug.nnunet.unlabelled import preprocess_unlabelled

        done = self.preprocessed / f"unlabelled_{configuration}"
        if done.exists():
            return
        folder = self.folder / "unlabelled"
        shutil.rmtree(folder, ignore_errors=True)
        for case in cases:
            named = replace(case, name=case.name.replace("/", "_"))
            write_images(folder, named, channels, link=False)  # the audit refuses links that lead out of a folder
        with self.environment():
            preprocess_unlabelled(str(DATASET), configuration, folder, plans=PLANS, overwrite=True)
        shutil.rmtree(folder)
        write_text(done, "")

    def view(self, home: Path, train: Sequence[str], validation: Sequence[str]) -> None:
        """A training's view of the preprocessed data, with its cases as fold 0.

        Args:
            home: of the training.
            train: names.
            validation: names.
        """
        folder = home / "preprocessed" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for source in self.preprocessed.iterdir():
            target = folder / source.name
            if source.name == "splits_final.json" or target.exists():
                continue
            if target.is_symlink():  # of another machine, where these folders lie elsewhere
                target.unlink()
            target.symlink_to(os.path.relpath(source, folder), target_is_directory=source.is_dir())
        split = [{"train": sorted(train), "val": sorted(validation)}]
        write_text(folder / "splits_final.json", json.dumps(split, indent=1) + "\n")


def _run(command: Sequence[str], log: Path) -> None:
    """Run a command to its end; it ends, with all that it has begun, when it is no longer waited for."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603  # our own
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, **_OWN_GROUP
        )
        with process:
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C, which does not reach a group of its own
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
                raise
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise AutoAugError(f"nnU-Net could not plan and preprocess the data set; {log.name} ends with\n{tail}")
