# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Tiny nnU-Net data sets, planned and preprocessed by nnU-Net's own classes in this process."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

# nnU-Net reads it when it is imported: processes of its pools
os.environ["nnUNet_def_n_proc"] = "1"

Edit = Callable[[dict[str, Any]], None]


@dataclass
class Dataset:
    """A raw data set in nnU-Net's layout, and what nnU-Net made of it."""

    number: int
    name: str
    raw: Path
    preprocessed: Path
    results: Path
    plans: dict[str, Any] = field(default_factory=dict)
    json: dict[str, Any] = field(default_factory=dict)

    def write_plans(self, plans: dict[str, Any], name: str = "nnUNetPlans") -> None:
        (self.preprocessed / self.name / f"{name}.json").write_text(json.dumps(plans | {"plans_name": name}))

    def trainer(
        self, cls: type, configuration: str = "3d_fullres", fold: Any = 0, resume: bool = False, **autoaug: Any
    ) -> Any:
        """A trainer with these options in its plans; ``resume`` as with --c."""
        plans = deepcopy(self.plans)
        options = plans["configurations"][configuration].get("autoaug", {})
        plans["configurations"][configuration]["autoaug"] = options | autoaug
        plans["continue_training"] = resume
        return cls(plans, configuration, fold, deepcopy(self.json), torch.device("cpu"))


def _case(
    rng: np.random.Generator, shape: tuple[int, ...], channels: int, zeros: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """Images with two nested ellipsoids in noise, and the label map 0, 1, 2."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.2, 0.2, 3)[:, None, None, None]
    radius = (((grid - centre) / rng.uniform(0.55, 0.75, 3)[:, None, None, None]) ** 2).sum(0)
    label = (radius < 1).astype(np.uint8) + (radius < 0.35).astype(np.uint8)
    images = []
    for channel in range(channels):
        image = 100 + 60 * label + 20 * channel + rng.normal(0, 12, shape)
        if zeros:
            image[(grid**2).sum(0) > 1.9] = 0
        images.append(image.astype(np.float32))
    return images, label


def write_raw(
    folder: Path, *, labels: dict[str, Any], cases: int = 5, shape: tuple[int, ...] = (24, 28, 24), channels: int = 1,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0), zeros: bool = False, ignore: int | None = None,
    regions_class_order: list[int] | None = None,
) -> None:  # fmt: skip
    rng = np.random.default_rng(7)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(cases):
        images, label = _case(rng, shape, channels, zeros)
        if ignore is not None:
            label[:, : shape[1] // 3] = ignore
        for channel, image in enumerate(images):
            _write(folder / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", image, spacing)
        _write(folder / "labelsTr" / f"case_{number}.nii.gz", label, spacing)
    description = {
        "channel_names": {str(c): "MR" for c in range(channels)}, "labels": labels, "numTraining": cases,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    if regions_class_order:
        description["regions_class_order"] = regions_class_order
    (folder / "dataset.json").write_text(json.dumps(description))


def _write(path: Path, array: np.ndarray, spacing: tuple[float, ...]) -> None:
    # nnU-Net reads axes in reverse order
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([*spacing[::-1], 1.0])), path)


def fingerprint(dataset: Dataset) -> None:
    """What nnUNetv2_extract_fingerprint writes, without its process pool."""
    from batchgenerators.utilities.file_and_folder_operations import save_json
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    extractor = DatasetFingerprintExtractor(dataset.number, 1)
    results = [
        extractor.analyze_case(files["images"], files["label"], SimpleITKIO, 500)
        for files in extractor.dataset.values()
    ]
    intensities = [np.concatenate([r[2][c] for r in results]) for c in range(len(results[0][2]))]
    per_channel = {
        str(c): {
            "mean": float(v.mean()), "median": float(np.median(v)), "std": float(v.std()), "min": float(v.min()),
            "max": float(v.max()), "percentile_99_5": float(np.percentile(v, 99.5)),
            "percentile_00_5": float(np.percentile(v, 0.5)),
        }
        for c, v in enumerate(intensities)
    }  # fmt: skip
    content = {
        "spacings": [r[1] for r in results], "shapes_after_crop": [r[0] for r in results],
        "foreground_intensity_properties_per_channel": per_channel,
        "median_relative_size_after_cropping": float(np.median([r[4] for r in results])),
    }  # fmt: skip
    save_json(content, str(dataset.preprocessed / dataset.name / "dataset_fingerprint.json"))


def plan(dataset: Dataset, planner: str = "ExperimentPlanner", edit: Edit | None = None) -> None:
    """Plan with one of nnU-Net's planners, then make everything tiny."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as resenc

    cls = ExperimentPlanner if planner == "ExperimentPlanner" else getattr(resenc, planner)
    made = cls(dataset.number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")  # planning fails without a process
        made.plan_experiment()
    plans = json.loads((dataset.preprocessed / dataset.name / f"{made.plans_identifier}.json").read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            configuration["batch_size"] = 2
            kwargs = configuration["architecture"]["arch_kwargs"]
            kwargs["features_per_stage"] = [4 * 2**i for i in range(kwargs["n_stages"])]
            for blocks in ("n_conv_per_stage", "n_conv_per_stage_decoder", "n_blocks_per_stage"):
                if blocks in kwargs:
                    kwargs[blocks] = [1] * len(kwargs[blocks])
    for configuration in plans["configurations"].values():
        configuration["autoaug"] = {"epochs": 1, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1}
    if edit is not None:
        edit(plans)
    dataset.plans = plans
    dataset.write_plans(plans, made.plans_identifier)
    shutil.copy(dataset.raw / dataset.name / "dataset.json", dataset.preprocessed / dataset.name)
    dataset.json = json.loads((dataset.raw / dataset.name / "dataset.json").read_text())


def preprocess(dataset: Dataset, *configurations: str) -> None:
    """What nnUNetv2_preprocess writes, without its process pool."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw, folder = dataset.raw / dataset.name, dataset.preprocessed / dataset.name
    shutil.copytree(raw / "labelsTr", folder / "gt_segmentations", dirs_exist_ok=True)
    manager = PlansManager(deepcopy(dataset.plans))
    for configuration in configurations:
        settings = manager.get_configuration(configuration)
        preprocessor = settings.preprocessor_class(verbose=False)
        output = folder / settings.data_identifier
        output.mkdir()
        for case, files in get_filenames_of_train_images_and_targets(str(raw), dataset.json).items():
            preprocessor.run_case_save(
                str(output / case), files["images"], files["label"], manager, settings, dataset.json
            )


@pytest.fixture(scope="session", autouse=True)
def nnunet_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's three folders, and no worker processes."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.delenv("nnUNet_extTrainer", raising=False)
        patch.delenv("MONAI_AUTOAUG_CONFIG", raising=False)
        yield root


@pytest.fixture(scope="session")
def make_dataset(nnunet_folders: Path) -> Callable[..., Dataset]:
    """Write, plan and preprocess a tiny data set."""
    numbers = iter(range(501, 600))

    def make(*configurations: str, planner: str = "ExperimentPlanner", edit: Edit | None = None, **raw: Any) -> Dataset:
        number = next(numbers)
        dataset = Dataset(
            number,
            f"Dataset{number}_Tiny",
            nnunet_folders / "raw",
            nnunet_folders / "preprocessed",
            nnunet_folders / "results",
        )
        write_raw(dataset.raw / dataset.name, **raw)
        (dataset.preprocessed / dataset.name).mkdir()
        fingerprint(dataset)
        plan(dataset, planner, edit)
        preprocess(dataset, *(configurations or ("3d_fullres",)))
        return dataset

    return make


@pytest.fixture(scope="session")
def tiny(make_dataset: Callable[..., Dataset]) -> Dataset:
    """One channel, two classes, isotropic; 3d_fullres."""
    return make_dataset(labels={"background": 0, "shell": 1, "core": 2})


@pytest.fixture(scope="session")
def forked_pools() -> Callable[[], AbstractContextManager[None]]:
    """Within the block nnU-Net's pools fork: a spawned process spends many seconds on imports."""
    original = multiprocessing.get_context

    @contextmanager
    def within() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(multiprocessing, "get_context", lambda method=None: original("fork"))
            yield

    return within


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches come from this process unless a test says otherwise, and nnU-Net draws no huge progress.png."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    """Trainers whose workers end whatever happens."""
    trainers: list[Any] = []
    yield trainers
    for trainer in trainers:
        trainer._close_streams()
