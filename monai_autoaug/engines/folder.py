# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a training run leaves on disk: one folder, every file of which is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from torch import nn

from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines.folder_schema import SCHEMAS
from monai_autoaug.engines.segmentation import build_network
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.networks import expect_spatial_transformer
from monai_autoaug.reading import MALFORMED, build, check_content, read_tensors
from monai_autoaug.reading import read_json as read_json_file
from monai_autoaug.writing import write_tensors, write_text

__all__ = ["Run", "read_json", "write_json"]

_FORMAT, _VERSION = "monai_autoaug.model", 1


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON object."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    return write_text(path, text)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run.

    Raises:
        ConfigError: it is missing or damaged, or lacks what such a file holds.
    """
    try:
        content = read_json_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read ({error}); give the folder of a training run") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no JSON object; give the folder of a training run")
    fault = best_match(Draft202012Validator(SCHEMAS.get(path.name, {})).iter_errors(content))
    if fault is not None:
        field = fault.json_path.removeprefix("$").lstrip(".") or "(the whole file)"
        raise ConfigError(
            f"{path}: field {field}: is not as it should be; {fault.message[:200]}. To do: copy the run's folder again,"
            " or undo the last edit"
        )
    return content


@dataclass(frozen=True)
class Run:
    """A run's folder.

    ``config.json`` the options, the split and the versions; ``fingerprints.json`` what the files of its cases held when
    it began (`engines.fingerprints`); ``audit.json``; ``preprocessing.json``; ``log.jsonl`` one line an epoch
    (`engines.log` says what its keys mean); ``checkpoint.pt`` what ``--resume`` needs; ``model.pt`` the
    plain segmentation network; ``augmenters.pt`` and ``policy.json`` what was learned, the latter with the evidence for
    it; ``policy.jsonl`` the policies' course and ``samples.pt`` what the augmentation made of one training patch, from
    epoch to epoch; ``tensorboard/`` if it was asked for; ``summary.json``; ``validation/`` the predictions of the
    validation cases, and ``validation.json`` their Dice, which `commands.finish` writes, as it does the pictures. Where
    views were learned, ``validation_without_views`` is the same without them. While a process works in it, ``.lock``
    names that process (`engines.claims`).

    Args:
        folder: where it is.

    >>> Run(Path("run")).model.name
    'model.pt'
    """

    folder: Path

    @property
    def config(self) -> Path:
        """Options, split, versions."""
        return self.folder / "config.json"

    @property
    def fingerprints(self) -> Path:
        """What the files of the cases held at the beginning; missing in runs of earlier versions."""
        return self.folder / "fingerprints.json"

    @property
    def preprocessing(self) -> Path:
        """How volumes are prepared."""
        return self.folder / "preprocessing.json"

    @property
    def audit(self) -> Path:
        """What the audit of the data found."""
        return self.folder / "audit.json"

    @property
    def log(self) -> Path:
        """One JSON object an epoch."""
        return self.folder / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The state at the end of the last epoch."""
        return self.folder / "checkpoint.pt"

    @property
    def model(self) -> Path:
        """The trained network."""
        return self.folder / "model.pt"

    @property
    def augmenters(self) -> Path:
        """The learned augmenters; missing where the method learns none."""
        return self.folder / "augmenters.pt"

    @property
    def policy(self) -> Path:
        """The learned policies, as of the last validation; missing where the method learns none."""
        return self.folder / "policy.json"

    @property
    def course(self) -> Path:
        """What has become of the policies, one JSON object an epoch; missing where the method learns none."""
        return self.folder / "policy.jsonl"

    @property
    def samples(self) -> Path:
        """What the augmentation made of one training patch over the epochs; missing where nothing is learned."""
        return self.folder / "samples.pt"

    @property
    def board(self) -> Path:
        """TensorBoard's files, if they were asked for."""
        return self.folder / "tensorboard"

    @property
    def summary(self) -> Path:
        """What the run took and gave."""
        return self.folder / "summary.json"

    @property
    def evaluation(self) -> Path:
        """Dice of the predictions of the validation cases; written by `commands.finish`, as the pictures are."""
        return self.folder / "validation.json"

    @property
    def validation(self) -> Path:
        """Predictions of the validation cases."""
        return self.folder / "validation"

    @property
    def plain_validation(self) -> Path:
        """Where views were learned: predictions of the validation cases without them."""
        return self.folder / "validation_without_views"

    @property
    def plain_evaluation(self) -> Path:
        """Dice of these; written by `commands.finish`."""
        return self.folder / "validation_without_views.json"

    def save_checkpoint(self, content: Mapping[str, Any]) -> None:
        """Write the checkpoint: tensors, numbers and strings.

        Raises:
            CheckpointError: it could not be loaded again; the file is as it was.
        """
        _save(self.checkpoint, content)

    def load_checkpoint(self) -> dict[str, Any]:
        """Read the checkpoint, without pickle, onto the CPU.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        return _load(self.checkpoint, "there is nothing to resume: start the run without --resume")

    def save_model(
        self, network: nn.Module, *, name: str, inputs: int, outputs: int, options: Mapping[str, Any]
    ) -> None:
        """Write the plain network with what is needed to build it.

        Raises:
            CheckpointError: it could not be loaded again; nothing is written.
        """
        options = {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()}
        content = {
            "format": _FORMAT, "version": _VERSION, "name": name, "inputs": inputs, "outputs": outputs,
            "options": options, "state": {k: v.detach().cpu() for k, v in network.state_dict().items()},
        }  # fmt: skip
        _save(self.model, content)

    def load_model(self) -> nn.Module:
        """Build the network and load its weights, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: the file is missing, damaged or of another version.
        """
        content = _load(self.model, "train first, wait until training has ended, or finish a stopped one with --resume")
        if content.get("format") != _FORMAT or content.get("version") != _VERSION:
            raise CheckpointError(f"{self.model}: is no model of this package, or one of another version")
        try:
            network = build(lambda: _network(content), content["state"])
        except MALFORMED as error:
            why = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{self.model}: its network can't be built ({why}); copy the file again") from error
        return network.eval()

    def load_preprocessing(self) -> Preprocessing:
        """How this run's volumes are prepared."""
        return Preprocessing.load(self.preprocessing)


def _network(content: Mapping[str, Any]) -> nn.Module:
    """The untrained network that a model file describes."""
    network = build_network(content["name"], content["inputs"], content["outputs"], **content["options"])
    expect_spatial_transformer(network, content["state"])
    return network


def _save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of tensors, numbers and strings, if it is one that `_load` would read."""
    try:
        check_content(content)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: is not written, since it could not be read again ({error}); the last good one stays. To do: lower"
            " the learning rate, clip the gradient, or train in float32; where none of that is at fault, report this"
        ) from error
    write_tensors(path, content)


def _load(path: Path, missing: str) -> dict[str, Any]:
    """Read a file of tensors, numbers and strings."""
    if not path.is_file():
        raise CheckpointError(f"{path}: is not there; {missing}")
    try:
        content = read_tensors(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}). To do: copy the file again, or train anew") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no checkpoint of this package")
    return content
