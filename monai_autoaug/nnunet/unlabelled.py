# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Images without labels for nnU-Net: preprocessed under a data set's own plans, kept beside it, served in patches."""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import pickle
import shutil
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from monai_autoaug.data import Case, DataList, read_images
from monai_autoaug.data.audit import audit
from monai_autoaug.data.findings import refusal, sentence
from monai_autoaug.data.nifti import SUFFIXES
from monai_autoaug.errors import AutoAugWarning, ConfigError, DataError
from monai_autoaug.nnunet.labelled import LabelledCases
from monai_autoaug.nnunet.loading import Recorder, RecordingLoader
from monai_autoaug.writing import write_text

__all__ = ["preprocess_unlabelled", "read_note", "unlabelled_loader"]

_KEYS = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name", "resampling_fn_data",
    "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip


def _folder(dataset: Path, configuration: ConfigurationManager) -> Path:
    """Where a configuration's unlabelled cases are."""
    return dataset / f"{configuration.data_identifier}_unlabelled"


def _note(folder: Path) -> Path:
    """The note of what is in the folder, beside it: without the note the folder counts for nothing."""
    return folder.with_name(folder.name + ".json")


def _fingerprint(plans: PlansManager, configuration: ConfigurationManager) -> str:
    """Of all that decides what preprocessing makes of an image."""
    content = {key: configuration.configuration.get(key) for key in _KEYS} | {
        "transpose": plans.transpose_forward,
        "intensities": plans.foreground_intensity_properties_per_channel,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def preprocess_unlabelled(
    dataset: str,
    configuration: str,
    folder: str | Path,
    *,
    plans: str = "nnUNetPlans",
    overwrite: bool = False,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Path:
    """Preprocess images without labels as nnU-Net has preprocessed a data set: same plans, spacing, normalisation.

    They are audited first, as `data.audit` does it. An image that the data set holds with a label is refused, whatever
    its file, because it would be among the validation cases of a fold; and so is one whose axes point otherwise than
    those of all labelled images, since nnU-Net reorients nothing. What is written replaces nothing before it is
    complete.

    Args:
        dataset: number or name, already planned and preprocessed by nnU-Net.
        configuration: such as ``3d_fullres``.
        folder: of NIfTI files named as nnU-Net's: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz`` ... a channel.
        plans: name of the plans.
        overwrite: whether unlabelled images that were preprocessed before are replaced.
        processes: that work side by side.
        progress: called with the number of cases done and of all.
        warn: called with each sentence that the audit warns by; None: they become warnings of Python.

    Returns:
        The folder that the trainers read.

    Raises:
        ConfigError: there is no such data set, or nothing of it was preprocessed with these plans; or the folder is
            there already.
        DataError: an image can't be used; the message names it.
    """
    name = _dataset_name(dataset)
    home = Path(str(nnUNet_preprocessed)) / name
    manager, description = _read_plans(home, plans)
    if configuration not in manager.available_configurations:
        raise ConfigError(
            f"the plans {plans} of {name} have no configuration {configuration!r}; they have"
            f" {', '.join(manager.available_configurations)}"
        )
    settings = manager.get_configuration(configuration)
    target = _folder(home, settings)
    if target.is_dir() and _note(target).is_file() and not overwrite:
        raise ConfigError(f"{target} holds preprocessed images already; give --overwrite to replace them")
    labelled = LabelledCases(home / settings.data_identifier)
    cases = _examined(Path(folder), description, name, _python_warning if warn is None else warn)
    note = {
        "plans": plans, "configuration": configuration, "fingerprint": _fingerprint(manager, settings),
        "cases": [case.name for case in cases], "content": _content(cases),
    }  # fmt: skip
    partial_ = target.with_name(target.name + ".partial")
    shutil.rmtree(partial_, ignore_errors=True)  # of a command that was killed
    partial_.mkdir(parents=True)
    try:
        run = partial(_preprocess, manager, configuration, description, partial_)
        with closing(_mapped(run, cases, processes)) as finished:
            for done, case in enumerate(cases, start=1):
                next(finished)
                labelled.check(partial_, case.name, case.images[0].name)
                if progress is not None:
                    progress(done, len(cases))
        _note(target).unlink(missing_ok=True)  # a command that is killed from here on leaves nothing that is believed
        shutil.rmtree(target, ignore_errors=True)
        partial_.rename(target)
    finally:
        shutil.rmtree(partial_, ignore_errors=True)
    write_text(_note(target), json.dumps(note, indent=1) + "\n")
    return target


def _dataset_name(dataset: str) -> str:
    """A data set's name by its number or name."""
    if not nnUNet_preprocessed.is_set():
        raise ConfigError("nnUNet_preprocessed is not set; export nnUNet_preprocessed=<folder> (see nnunet doctor)")
    try:
        return str(maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"there is no data set {dataset!r} in {nnUNet_preprocessed}; give its number, or its whole name"
            " Dataset004_Hippocampus"
        ) from error


def _python_warning(sentence_: str) -> None:
    warnings.warn(sentence_, AutoAugWarning, stacklevel=3)


def _read_plans(home: Path, plans: str) -> tuple[PlansManager, dict[str, Any]]:
    files = home / f"{plans}.json", home / "dataset.json"
    for file in files:
        if not file.is_file():
            raise ConfigError(
                f"{file} is not there: plan and preprocess the data set first (nnUNetv2_plan_and_preprocess)"
            )
    return PlansManager(str(files[0])), json.loads(files[1].read_text(encoding="utf-8"))


def _examined(folder: Path, description: Mapping[str, Any], name: str, warn: Callable[[str], None]) -> tuple[Case, ...]:
    """The cases of a folder, each file read to its end.

    Raises:
        DataError: one can't be used.
    """
    ending = description["file_ending"]
    if ending not in SUFFIXES:
        raise ConfigError(f"{name} has {ending} files, but unlabelled images are read as NIfTI; convert the data set")
    channels = [str(c) for c in description["channel_names"].values()]
    cases = read_images(folder, channels=len(channels))
    if len(channels) == 1:  # nnU-Net's names end in _0000
        cases = tuple(Case(c.name.removesuffix("_0000"), c.images) for c in cases)
    for case in cases:
        if len(case.images) != len(channels) or not case.images[0].name.endswith(ending):
            raise DataError(
                "is not as the data set's own images are", file=case.images[0].name,
                expected=f"{len(channels)} files *_0000{ending} ...", came=[f.name for f in case.images],
            )  # fmt: skip
    findings = audit(DataList.of_images(cases, channels=channels, folder=folder), progress=None)
    wrong = refusal(findings, folder)
    if wrong is not None:
        raise wrong
    for finding in findings:
        if finding.severity == "warn":
            warn(sentence(finding))
    return cases


def _content(cases: Sequence[Case]) -> str:
    """Of all files: what tells a resumed training that images are no longer those that it began with."""
    digest = hashlib.sha256()
    for case in cases:
        for image in case.images:
            with image.open("rb") as file:
                for block in iter(partial(file.read, 1 << 20), b""):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _mapped(run: Callable[[Case], None], cases: Sequence[Case], processes: int) -> Generator[None, None, None]:
    if processes <= 1:
        yield from map(run, cases)
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(run, cases)
    finally:
        pool.shutdown(cancel_futures=True)


def _preprocess(plans: PlansManager, configuration: str, description: dict[str, Any], folder: Path, case: Case) -> None:
    """What nnU-Net writes of a case, with a label that is background wherever there is an image."""
    settings = plans.get_configuration(configuration)
    preprocessor = settings.preprocessor_class(verbose=False)
    files = [str(file) for file in case.images]
    preprocessor.run_case_save(str(folder / case.name), files, None, plans, settings, description)
    properties = folder / f"{case.name}.pkl"
    content = pickle.loads(properties.read_bytes())  # noqa: S301  # nnU-Net's own, written a moment ago
    # nnU-Net's loader looks them up whether it needs them or not
    properties.write_bytes(pickle.dumps(content | {"class_locations": {}}))


def read_note(trainer: Any) -> dict[str, Any] | None:
    """What is known of a trainer's unlabelled images; None: there are none.

    Args:
        trainer: nnU-Net's.
    """
    folder = _folder(Path(trainer.preprocessed_dataset_folder_base), trainer.configuration_manager)
    if not (folder.is_dir() and _note(folder).is_file()):
        return None
    note: dict[str, Any] = json.loads(_note(folder).read_text(encoding="utf-8"))
    return note


def unlabelled_loader(trainer: Any, training: RecordingLoader) -> RecordingLoader:
    """A loader of patches of the unlabelled images, with the size and base augmentation of training patches.

    Args:
        trainer: nnU-Net's.
        training: its loader of training patches, prepared.

    Raises:
        ConfigError: none were preprocessed, or with other plans; or the trainer is of a cascade.
    """
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    command = f"monai-autoaug nnunet preprocess-unlabelled {plans.dataset_name} {trainer.configuration_name} FOLDER"
    command += f" -p {plans.plans_name}" if plans.plans_name != "nnUNetPlans" else ""
    if trainer.is_cascaded:
        raise ConfigError(
            "unlabelled images have no segmentation of the stage before, which this configuration of a cascade needs;"
            " use 3d_fullres, or the method option that leaves them out (of task_driven unlabelled: false)"
        )
    note = read_note(trainer)
    if note is None:
        raise ConfigError(f"method {trainer.method.name!r} learns from unlabelled images, too; first run: {command}")
    if note["fingerprint"] != _fingerprint(plans, configuration):
        raise ConfigError(f"the unlabelled images were preprocessed with other plans; run again: {command} --overwrite")
    folder = _folder(Path(trainer.preprocessed_dataset_folder_base), configuration)
    loader = copy.copy(training.loader)
    loader._data = trainer.dataset_class(str(folder))
    loader.indices, loader.sampling_probabilities = loader._data.identifiers, None
    loader.has_ignore, loader.oversample_foreground_percent = False, 0.0
    loader.get_do_oversample = loader._oversample_last_XX_percent  # of this object, not of the one it is copied from
    loader.transforms = Recorder(training.loader.transforms.transforms)
    return RecordingLoader(loader)
