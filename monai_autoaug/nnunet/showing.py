# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a trainer keeps for people beside its checkpoints: facts, samples, the policies' course, TensorBoard's files."""

from __future__ import annotations

import json
import math
import pickle
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

import monai_autoaug
from monai_autoaug.methods import Method
from monai_autoaug.methods.montage import show
from monai_autoaug.methods.samples import Samples
from monai_autoaug.nnunet import journal
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.orientation import orientation_of_case
from monai_autoaug.nnunet.patches import PatchLayout, label_names
from monai_autoaug.policies.course import course_interval, course_line, course_scalars
from monai_autoaug.precision import skip_warnings
from monai_autoaug.writing import write_text

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["COURSE", "FACTS", "SAMPLES", "ShowingMixin"]

FACTS, SAMPLES, COURSE, BOARD = "autoaug.json", "samples.pt", "policy.jsonl", "tensorboard"
_PACKAGES = ("torch", "monai", "nnunetv2", "numpy")


class ShowingMixin(_Host):
    """The part of `AutoAugMixin` that keeps what ``monai-autoaug report`` and TensorBoard show."""

    autoaug: Options
    autoaug_base: ClassVar[Any]
    method: Method
    layout: PatchLayout
    run_seed: int
    _split: Any
    _cases: dict[str, int]
    _fingerprint: Any
    _samples: Samples | None
    _board: Any
    _line: dict[str, Any] | None

    def _begin_showing(self) -> None:
        """Open the files; those of an earlier training in this folder are begun anew."""
        folder, fresh = Path(self.output_folder), self.current_epoch == 0
        names = label_names(self.dataset_json)[1:]
        if not self.disable_checkpointing:
            self._samples = Samples(
                folder / SAMPLES, self.num_epochs, structures=names, regions=self.layout.regions, fresh=fresh
            )
        if (folder / COURSE).exists():
            journal.cut(folder / COURSE, self.current_epoch + 1)  # its epochs are counted from 1
        if self.autoaug.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / BOARD), purge_step=self.current_epoch + 1)
        self._write_facts()

    def _write_facts(self, **more: Any) -> None:
        """What this training is, in JSON values, without names of cases and paths."""
        cases = dict(self._cases)
        if self._split is not None:
            cases["meta"] = len(self._split.meta(self.current_epoch))
            cases["train"] -= cases["meta"]
        options = self.autoaug.as_dict()
        if isinstance(options.get("meta_cases"), list):
            options["meta_cases"] = len(options["meta_cases"])
        content = {
            "version": 1, "method": self.method.name, "options": options, "trainer": type(self).__name__,
            "plain_trainer": self.autoaug_base.__name__, "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name, "fold": str(self.fold), "seed": self.run_seed,
            "epochs": self.num_epochs, "iterations": self.num_epochs * self.num_iterations_per_epoch,
            "batch_size": self.batch_size, "patch_size": [int(n) for n in self.configuration_manager.patch_size],
            "spacing": list(self.layout.spacing), "margin": list(self.layout.margin),
            "structures": list(label_names(self.dataset_json)[1:]), "cases": cases,
            "parameters": sum(p.numel() for p in self.task.network.parameters()), "device": self.device.type,
            "precision": str(self.task.precision.dtype).removeprefix("torch."),
            "data_fingerprint": self._fingerprint(),
            "versions": {"monai_autoaug": monai_autoaug.__version__, "python": platform.python_version()}
            | {name: version(name) for name in _PACKAGES},
        } | more  # fmt: skip
        write_text(Path(self.output_folder) / FACTS, json.dumps(content, indent=1) + "\n")

    def _offer_patch(self, raw: Mapping[str, Any]) -> None:
        """Take the patch that is shown from the first batches."""
        if self.local_rank != 0 or self._samples is None or self._samples.begun:
            return
        if not self.method.augmenters() and "training" not in self.method.policies():
            return
        batch = self.layout.batch(dict(raw), torch.device("cpu"))
        # which way the axes of a patch run is not known any more where it has been mirrored
        mirrored = self.autoaug.base_augmentation != "none" or ("operations" in raw and batch.plain is None)
        self._samples.orientation = self._orientation(batch.case[0]) if batch.case and not mirrored else ""
        self._samples.offer(batch)

    def _orientation(self, case: str) -> str:
        """The directions in which the axes of a case's patches increase; "" where it isn't known."""
        file = Path(self.preprocessed_dataset_folder) / f"{case}.pkl"
        if not file.is_file():
            return ""
        with file.open("rb") as stream:
            properties = pickle.load(stream)  # noqa: S301  # nnU-Net's own file, which it reads so, too
        dims = len(self.configuration_manager.patch_size)
        return orientation_of_case(properties, self.plans_manager.transpose_forward)[-dims:]

    def _keep_showing(self, line: Mapping[str, Any]) -> None:
        """What has become of the augmentation in the epoch that has ended."""
        folder, number = Path(self.output_folder), self.current_epoch + 1
        learned, row = self.method.policies(), {}
        last = number == self.num_epochs
        if learned and (last or number % course_interval(self.num_epochs) == 0):
            row = course_line(number, learned)
            journal.append(folder / COURSE, row)
        made = self._samples.keep(number, self.method) if self._samples and self._samples.wants(number) else ()
        if self._board is None:
            return
        for name, value in line.items():
            if name != "epoch" and isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"training/{name}", value, number)
        for name, value in course_scalars(row):
            self._board.add_scalar(name, value, number)
        if made and self._samples is not None:
            show(self._board, number, self._samples.patch, made)

    def _doubts(self) -> list[str]:
        """What the method warns of, and updates that were skipped."""
        precision = self.task.precision
        return [*self.method.warnings(), *skip_warnings(precision.skipped, self.method.steps, precision.dtype)]

    def _end_showing(self) -> None:
        """The time that the training took, its warnings and its peak memory."""
        begun, ended = (self.logger.get_value(f"epoch_{name}_timestamps", step=None) for name in ("start", "end"))
        seconds = sum(b - a for a, b in zip(begun, ended, strict=False))
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        self._write_facts(seconds=round(float(seconds), 1), warnings=self._doubts(), gpu_memory_bytes=memory)
        if self._board is not None:
            self._board.close()
