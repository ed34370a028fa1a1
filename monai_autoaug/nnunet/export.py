# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A trained model without any trace of this package, for an nnU-Net that doesn't have it.

The deployed network is the plain one (its auxiliary norm groups never enter its state): the checkpoint gets the plain
trainer's name and loses what was added to it, the plans lose the key ``autoaug``. Nothing about the prediction changes,
but for learned test-time views, which plain nnU-Net doesn't know: it predicts as with ``MONAI_AUTOAUG_TEA=0``.
"""

from __future__ import annotations

import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json

from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.nnunet.checkpoint import KEY, read_checkpoint
from monai_autoaug.nnunet.test_time import without_views
from monai_autoaug.writing import write_tensors

__all__ = ["export_plain", "plain_checkpoint"]

_COPIED = ("dataset.json", "dataset_fingerprint.json")


def export_plain(model_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str]) -> Path:
    """Write a model folder that plain nnU-Net loads, and that predicts what this one does; it is whole or not there.

    Args:
        model_folder: ``<nnUNet_results>/<dataset>/<trainer>__<plans>__<configuration>``.
        out_folder: where the new model folder is made; ``<nnUNet_results>/<dataset>`` of another machine, for example.

    Returns:
        The new folder, ``<out_folder>/<plain trainer>__<plans>__<configuration>``.

    Raises:
        CheckpointError: a checkpoint is unreadable or was not written by this package's trainers, or there is none.
        ConfigError: the folder is no model folder, or the new one exists already.
    """
    source = Path(model_folder)
    parts = source.resolve().name.split("__")
    if len(parts) != 3:
        raise ConfigError(f"{source}: is no model folder; expected the name <trainer>__<plans>__<configuration>")
    plans, _ = _json(source / "plans.json"), _json(source / "dataset.json")
    files = sorted(source.glob("fold_*/checkpoint_*.pth"))
    target = Path(out_folder) / "__".join([_plain_trainer(source, files), *parts[1:]])
    if target.exists():
        raise ConfigError(f"{target}: exists already; remove it or choose another folder")
    unfinished = target.with_name(f".{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
    try:
        for file in files:
            write_tensors(unfinished / file.parent.name / file.name, plain_checkpoint(read_checkpoint(file)))
        save_json(_plain_plans(plans), str(unfinished / "plans.json"), sort_keys=False)
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copy(source / name, unfinished / name)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"{file.parent}: is no model folder; expected a file {file.name} in it")
    try:
        content: dict[str, Any] = load_json(str(file))
    except ValueError as error:
        raise ConfigError(f"{file}: can't be read ({error}); copy it from nnUNet_preprocessed again") from error
    return content


def _plain_trainer(source: Path, files: list[Path]) -> str:
    """Name of the plain trainer, after seeing that every checkpoint can be exported."""
    if not files:
        raise CheckpointError(f"{source}: holds no fold_*/checkpoint_*.pth; train first")
    names: dict[str, Path] = {}
    for file in files:
        ours = read_checkpoint(file).get(KEY)
        if ours is None:
            raise CheckpointError(f"{file}: was not written by a trainer of monai_autoaug; nothing to export")
        names.setdefault(ours["plain_trainer"], file)
    if len(names) > 1:
        found = ", ".join(f"{name} ({file})" for name, file in names.items())
        raise CheckpointError(f"{source}: its checkpoints are of several trainers: {found}; export them one by one")
    return next(iter(names))


def plain_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's checkpoint as a plain trainer would have written it.

    The optimiser's state goes along, without the auxiliary norms' part, where it is of plain nnU-Net's kind;
    otherwise a fresh one does.

    Args:
        checkpoint: with the key ``autoaug``; not changed.

    Raises:
        CheckpointError: its network has a spatial transformer in front, which plain nnU-Net doesn't know.
    """
    ours = checkpoint[KEY]
    if any(name.startswith("spatial_transformer.") for name in checkpoint["network_weights"]):
        raise CheckpointError(
            "this network has a spatial transformer in front, which plain nnU-Net does not know; predict with"
            " monai_autoaug installed"
        )
    plain = {key: value for key, value in checkpoint.items() if key != KEY}
    plain["network_weights"] = without_views(checkpoint["network_weights"])
    plain["trainer_name"] = ours["plain_trainer"]
    plain["init_args"] = {**checkpoint["init_args"], "plans": _plain_plans(checkpoint["init_args"]["plans"])}
    plain["optimizer_state"] = _plain_optimizer(
        checkpoint["optimizer_state"], ours["parameter_names"], fresh=ours["options"]["optimizer"] is not None
    )
    return plain


def _plain_plans(plans: dict[str, Any]) -> dict[str, Any]:
    plans = deepcopy(plans)
    for configuration in plans["configurations"].values():
        configuration.pop(KEY, None)
    return plans


def _plain_optimizer(state: dict[str, Any], names: list[str], fresh: bool) -> dict[str, Any]:
    """Without the parameters that only auxiliary norms have, the others renumbered in their order."""
    kept = [i for i, name in enumerate(names) if not name.rpartition(".")[2].startswith("auxiliary_")]
    if fresh:  # plain nnU-Net has another optimiser; this one's state says nothing to it
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in kept]
        made = torch.optim.SGD(parameters, 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
        return dict(made.state_dict())
    order = [i for group in state["param_groups"] for i in group["params"]]
    number = {old: new for new, old in enumerate(order[i] for i in kept)}
    return {
        "state": {number[i]: value for i, value in state["state"].items() if i in number},
        "param_groups": [
            {**group, "params": [number[i] for i in group["params"] if i in number]} for group in state["param_groups"]
        ],
    }
