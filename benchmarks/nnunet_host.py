# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's plain commands on one small configuration, a fold for each seed, and what each command cost.

All that nnU-Net writes lies in one working folder. The test cases are nnU-Net's ``imagesTs``: no fold has them. Each
command is a process of its own with one thread, whose CPU time is that of it and of all its children.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from commands import ROOT, Cost, code_version, run

from monai_autoaug.data import read_datalist, split
from monai_autoaug.data.datalist import DataList
from monai_autoaug.nnunet.experiment import small_configuration, write_images, write_raw
from monai_autoaug.nnunet.launcher import ext_path
from monai_autoaug.nnunet.options import CONFIG_VARIABLE
from monai_autoaug.nnunet.test_time import STATE, VARIABLE
from monai_autoaug.writing import write_text, write_whole

DATASET, CONFIGURATION, PLANS = 4, "small", "nnUNetPlans"
STOCK = "nnUNetTrainerShort"
_VALIDATION_CASES, _VALIDATION_ITERATIONS = 2, 5  # nnU-Net wants some; nothing is chosen by them


@dataclass(frozen=True)
class Setting:
    """What all trainings have in common.

    Args:
        patch: voxels.
        batch_size: patches.
        features: channels of each stage of nnU-Net's PlainConvUNet.
        epochs: steps of nnU-Net's learning rate schedule.
        train_cases: of each fold, those of meta-validation included.
        test_cases: that no fold has.
    """

    patch: tuple[int, ...] = (24, 24, 24)
    batch_size: int = 2
    features: tuple[int, ...] = (8, 16, 32)
    epochs: int = 10
    train_cases: int = 20
    test_cases: int = 40


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Options of a command for what all its trainings have in common."""
    for field in fields(Setting):
        many: dict[str, Any] = {"nargs": "+"} if isinstance(field.default, tuple) else {}
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default, **many)


def setting_of(arguments: argparse.Namespace) -> Setting:
    """What these options say."""
    given: dict[str, Any] = {f.name: getattr(arguments, f.name) for f in fields(Setting)}
    return Setting(**given | {name: tuple(v) for name, v in given.items() if isinstance(v, list)})


@dataclass(frozen=True)
class Model:
    """A training: which trainer with which options, in which results folder.

    Args:
        arm: names the results folder.
        trainer: a class that nnU-Net finds.
        options: of a trainer of this package, see `monai_autoaug.nnunet.options.Options`.
        seed: of the initial weights, and the fold.
        iterations: in all, a multiple of the number of epochs.
    """

    arm: str
    trainer: str
    options: Mapping[str, Any]
    seed: int
    iterations: int

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm}_{self.seed}"


class Host:
    """nnU-Net's folders of one experiment.

    Args:
        data: a data set with labels (see `monai_autoaug.data.read_datalist`).
        work: the working folder; made if need be.
        setting: what all trainings have in common.
        workers: nnU-Net's augmentation processes of a training.

    Raises:
        ValueError: the folder is of another setting.
    """

    def __init__(self, data: Path, work: Path, setting: Setting, workers: int) -> None:
        self.work, self.setting, self.workers = work.resolve(), setting, workers
        self.data: DataList = read_datalist(data)
        self.name = f"Dataset{DATASET:03d}_{data.resolve().name.split('_')[-1]}"
        held = split(self.data.training, seed=0, validation=setting.test_cases)
        self.test, self.pool = held.validation, held.train
        file = self.work / "setting.json"
        wanted = json.loads(json.dumps(asdict(setting)))
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) != wanted:
            raise ValueError(f"{work} is of another setting ({file.read_text(encoding='utf-8').strip()}): name another")
        write_text(file, json.dumps(wanted) + "\n")

    def fold(self, seed: int) -> dict[str, list[str]]:
        """The cases of a seed, as nnU-Net's file of splits has them."""
        chosen = split(self.pool, seed=seed + 1, validation=_VALIDATION_CASES, train=self.setting.train_cases)
        return {"train": sorted(c.name for c in chosen.train), "val": sorted(c.name for c in chosen.validation)}

    def environment(self, **more: str) -> dict[str, str]:
        """Of every command: one thread, nnU-Net's folders, this code."""
        own = (CONFIG_VARIABLE, VARIABLE, "BENCHMARK_COURSE")
        found = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_") and k not in own}
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        found |= dict.fromkeys(threads, "1")
        found |= {
            "nnUNet_raw": str(self.work / "raw"), "nnUNet_preprocessed": str(self.work / "preprocessed"),
            "nnUNet_results": str(self.work / "results"), "nnUNet_n_proc_DA": str(self.workers),
            "nnUNet_def_n_proc": "1", "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks" / "one_core"))),
        }  # fmt: skip
        return found | more

    def command(self, name: str, *arguments: str, environment: Mapping[str, str], log: str) -> Cost:
        """One of nnU-Net's commands."""
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        found = shutil.which(name, path=beside)
        if found is None:
            raise RuntimeError(f"there is no command {name} beside {sys.executable} or on the PATH")
        return run([found, *arguments], environment, self.work / "logs" / f"{log}.log")

    def prepare(self, seeds: int) -> None:
        """Raw data, plans with the small configuration, preprocessed data, and a fold for each seed."""
        folder = self.work / "preprocessed" / self.name
        plans_file = folder / f"{PLANS}.json"
        if not (folder / "prepared").exists():
            shutil.rmtree(folder, ignore_errors=True)
            self._write_raw()
            environment = self.environment(nnUNet_n_proc_DA="1")  # planning fails without a process
            arguments = ["-d", str(DATASET), "-c", "3d_fullres", "-npfp", "1", "-np", "1"]
            self.command("nnUNetv2_plan_and_preprocess", *arguments, environment=environment, log="plan")
            plans = json.loads(plans_file.read_text(encoding="utf-8"))
            plans["configurations"][CONFIGURATION] = self._configuration(plans["configurations"]["3d_fullres"])
            write_text(plans_file, json.dumps(plans, indent=1) + "\n")
            write_text(folder / "prepared", "")
        write_text(folder / "splits_final.json", json.dumps([self.fold(s) for s in range(seeds)], indent=1) + "\n")

    def _write_raw(self) -> None:
        """Links to the images in nnU-Net's layout."""
        folder = self.work / "raw" / self.name
        write_raw(folder, self.data, self.pool)
        for case in self.test:
            write_images(folder / "imagesTs", case, len(self.data.channels))

    def _configuration(self, planned: Mapping[str, Any]) -> dict[str, Any]:
        """nnU-Net's network with fewer stages and channels, on smaller patches of the same preprocessed data."""
        setting = self.setting
        return small_configuration(
            planned, features=setting.features, patch_size=setting.patch, batch_size=setting.batch_size
        )

    def results(self, model: Model) -> Path:
        """nnU-Net's results folder of an arm."""
        return self.work / "results" / model.arm.replace(":", "_")

    def folder(self, model: Model) -> Path:
        """The folder of a training's fold."""
        named = f"{model.trainer}__{PLANS}__{CONFIGURATION}"
        return self.results(model) / self.name / named / f"fold_{model.seed}"

    def train(self, model: Model) -> dict[str, Any]:
        """Train, or tell what it cost when it was done; one that was interrupted begins anew."""
        folder = self.folder(model)
        done = folder / "training.json"
        what: dict[str, Any] = {"iterations": model.iterations, "options": dict(model.options)}
        if done.exists():
            found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            if found.items() >= what.items():
                return found
        shutil.rmtree(folder, ignore_errors=True)
        course = {
            "epochs": self.setting.epochs, "iterations_per_epoch": model.iterations // self.setting.epochs,
            "val_iterations_per_epoch": _VALIDATION_ITERATIONS, "seed": model.seed,
        }  # fmt: skip
        environment = self.environment(nnUNet_results=str(self.results(model)), nnUNet_extTrainer=_finds(model))
        if model.trainer == STOCK:
            environment["BENCHMARK_COURSE"] = json.dumps(course)
        else:
            config = self.work / "configs" / f"{model.name}.yaml"
            environment[CONFIG_VARIABLE] = str(write_text(config, yaml.safe_dump(course | dict(model.options))))
        version = code_version()
        arguments = [str(DATASET), CONFIGURATION, str(model.seed), "-tr", model.trainer, "-p", PLANS, "-device", "cpu"]
        cost = self.command("nnUNetv2_train", *arguments, environment=environment, log=f"train_{model.name}")
        found = what | asdict(cost) | {"code": version}
        write_text(done, json.dumps(found) + "\n")
        return found

    def predict(
        self,
        model: Model,
        output: Path,
        *,
        views: bool = False,
        mirroring: bool = False,
        folds: Sequence[int] = (),
        probabilities: bool = False,
    ) -> Cost:
        """Predict the test cases.

        Args:
            model: trained.
            output: folder; what is in it is lost.
            views: average the learned views, if the model has some.
            mirroring: nnU-Net's mirroring along all axes, whether or not the trainer switches it off.
            folds: of the same arm, to be averaged; none: the model's own.
            probabilities: keep them.
        """
        shutil.rmtree(output, ignore_errors=True)
        environment = self.environment(nnUNet_results=str(self.results(model)), nnUNet_extTrainer=_finds(model))
        arguments = ["-i", str(self.work / "raw" / self.name / "imagesTs"), "-o", str(output), "-d", str(DATASET)]
        arguments += ["-c", CONFIGURATION, "-tr", model.trainer, "-p", PLANS, "-device", "cpu"]
        arguments += ["-f", *map(str, folds or (model.seed,)), "-npp", "0", "-nps", "0", "--disable_progress_bar"]
        arguments += ["--save_probabilities"] if probabilities else []
        if not views:
            environment[VARIABLE] = "0"
        if mirroring:
            arguments += ["-chk", _mirrored(self.folder(model)).name]
        else:
            arguments += ["--disable_tta"]
        return self.command("nnUNetv2_predict", *arguments, environment=environment, log=f"predict_{output.name}")

    def has_views(self, model: Model) -> bool:
        """Whether a trained network has learned views."""
        return STATE in _checkpoint(self.folder(model))["network_weights"]


def _finds(model: Model) -> str:
    """The folder by which nnU-Net finds a trainer; its own doesn't see this package."""
    return str(ROOT / "benchmarks" / "stock") if model.trainer == STOCK else str(ext_path())


def _checkpoint(folder: Path) -> dict[str, Any]:
    """nnU-Net's checkpoint, which this script's own command has written."""
    found: dict[str, Any] = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    return found


def _mirrored(folder: Path) -> Path:
    """The final checkpoint without views, with mirroring along all axes allowed."""
    content = _checkpoint(folder)
    content["inference_allowed_mirroring_axes"] = (0, 1, 2)
    content["network_weights"].pop(STATE, None)
    mirrored: Path = write_whole(folder / "checkpoint_mirrored.pth", lambda file: torch.save(content, file))
    return mirrored
