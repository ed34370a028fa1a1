# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A cell of host "nnunet": nnU-Net's training and prediction with its own commands' arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from monai_autoaug.data import Case, DataList
from monai_autoaug.errors import CheckpointError
from monai_autoaug.evaluation.comparison.cells import CellFolder
from monai_autoaug.nnunet import experiment, launcher
from monai_autoaug.nnunet.options import CONFIG_VARIABLE
from monai_autoaug.writing import write_text

if TYPE_CHECKING:
    from monai_autoaug.evaluation.comparison.working import Place

__all__ = ["PLAN_OPTIONS", "NnunetCell", "configuration_of", "small_of"]

PLAN_OPTIONS = ("configuration", "patch_size")  # not of a trainer
_BATCH = 2
_CHECKPOINTS = 10  # of a short training; nnU-Net keeps one in 50 epochs


def configuration_of(options: Mapping[str, Any]) -> str:
    """The name of nnU-Net's configuration that is trained."""
    return experiment.SMALL if options.get("patch_size") else str(options.get("configuration", "3d_fullres"))


def small_of(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Options of `experiment.small_configuration`, if one is asked for by ``patch_size``."""
    if not options.get("patch_size"):
        return None
    return {
        "patch_size": options["patch_size"], "features": options["features"],
        "batch_size": options.get("batch_size") or _BATCH,
    }  # fmt: skip


class NnunetCell:
    """nnU-Net's part of a cell.

    Args:
        folder: of the cell.
        config: of the cell.
        place: where it is worked on.
        datalist: the data set.
        device: that trains.
    """

    def __init__(
        self, folder: CellFolder, config: Mapping[str, Any], place: Place, datalist: DataList, device: torch.device
    ) -> None:
        self.folder, self.config, self.datalist, self.device = folder, config, datalist, device
        self.place = place
        self.experiment = experiment.Experiment(place.shared / "nnunet", "compare")
        self.configuration = configuration_of(config["options"])
        named = f"{config['trainer']}__{experiment.PLANS}__{self.configuration}"
        self.fold = folder.run / "results" / self.experiment.name / named / "fold_0"

    def _options(self) -> dict[str, Any]:
        """Of the trainer, as its file has them."""
        given = {n: v for n, v in self.config["options"].items() if n not in PLAN_OPTIONS}
        if small_of(self.config["options"]):
            given.pop("features")  # they are in the plans; an arm's own batch size isn't
        given.setdefault("save_every", max(1, min(50, int(given.get("epochs") or 1000) // _CHECKPOINTS)))
        own = {"method": self.config["method"], "seed": self.config["seed"]}
        methods = {"method_options": self.config["method_options"]} if self.config["method_options"] else {}
        return given | own | methods

    def _name(self) -> list[str]:
        return ["-tr", self.config["trainer"], "-p", experiment.PLANS, "-device", self.device.type]

    def train(self) -> bool:
        """Train, or go on with a training that was stopped; one that has ended stays as it is.

        Returns:
            Whether all of it was done now.
        """
        ended = (self.fold / "checkpoint_final.pth").exists()
        begun = (self.fold / "checkpoint_latest.pth").exists()
        if ended:
            return False
        train, validation = self.config["train"], self.config["validation"]
        self.experiment.view(self.folder.run, train, validation, unlabelled=self._unlabelled())
        file = write_text(self.folder.path / "nnunet.yaml", yaml.safe_dump(self._options()))
        arguments = [str(experiment.DATASET), self.configuration, "0", *self._name(), *(["--c"] if begun else [])]
        with self.experiment.environment(self.folder.run, **self._variables() | {CONFIG_VARIABLE: str(file)}):
            launcher.train(arguments)
        return not begun

    def _variables(self) -> dict[str, str]:
        """How many processes nnU-Net begins, if that was said."""
        workers = self.place.workers
        if workers is None:
            return {}
        return {"nnUNet_n_proc_DA": str(workers), "nnUNet_def_n_proc": str(max(1, workers))}

    def _unlabelled(self) -> Path | None:
        """Where the images are that it learns from, too; of those that its configuration names, and no others."""
        if not self.config["unlabelled"]:
            return None
        found = self.experiment.unlabelled(self.configuration, self.config["unlabelled"])
        if not found.is_dir():
            raise CheckpointError("the unlabelled images were not preprocessed; begin the comparison anew")
        return found

    def predict(self, test: Sequence[Case]) -> None:
        """Predict the test cases."""
        images = self.folder.path / "test_images"
        for case in test:
            experiment.write_images(images, case, len(self.datalist.channels))
        arguments = ["-i", str(images), "-o", str(self.folder.predictions), "-d", str(experiment.DATASET), "-c"]
        arguments += [self.configuration, "-f", "0", *self._name(), "-npp", "0", "-nps", "0", "--disable_progress_bar"]
        views: dict[str, str] = {}
        if self.config["setting"]["test_time"] == "none":
            from monai_autoaug.nnunet.test_time import VARIABLE

            arguments, views = [*arguments, "--disable_tta"], {VARIABLE: "0"}
        with self.experiment.environment(self.folder.run, **self._variables() | views):
            launcher.predict(arguments)
        for file in images.iterdir():
            file.unlink()
        images.rmdir()

    def trained(self) -> dict[str, Any]:
        """What the training took, by nnU-Net's own clock of each epoch, whatever interrupted it."""
        from monai_autoaug.nnunet.checkpoint import read_checkpoint

        content = read_checkpoint(self.fold / "checkpoint_final.pth")
        log = content["logging"]
        starts, ends = log["epoch_start_timestamps"], log["epoch_end_timestamps"]
        epochs = len(ends)
        seconds = sum(end - start for start, end in zip(starts, ends, strict=True))
        iterations = self.config["options"].get("iterations_per_epoch") or 250
        return {"seconds": round(float(seconds), 3), "epochs": epochs, "iterations": epochs * iterations}

    def learned(self, names: Sequence[str]) -> dict[str, Any]:
        """What policies have become, in short."""
        log: Path = self.fold / "autoaug.jsonl"
        if not log.exists():
            return {}
        last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        return {name: last[name] for name in names if name in last}

    def warnings(self) -> list[str]:
        """What the training has warned of, with what it learned at its end."""
        from monai_autoaug.nnunet.showing import FACTS

        facts: Path = self.fold / FACTS
        return list(json.loads(facts.read_text(encoding="utf-8"))["warnings"]) if facts.exists() else []
