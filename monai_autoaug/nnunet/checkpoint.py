# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is added to nnU-Net's checkpoint, and writing it so that a killed process leaves the last good file.

nnU-Net's keys stay as they are. One top-level key, ``autoaug``, is added; plain nnU-Net ignores it. It holds tensors,
numbers, strings, lists and dicts only.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_autoaug.errors import CheckpointError
from monai_autoaug.writing import dump_tensors, write_whole

__all__ = [
    "KEY",
    "VERSION",
    "parameter_names",
    "random_states",
    "read_checkpoint",
    "restore_random_states",
    "write_atomically",
]

KEY = "autoaug"
VERSION = 3  # 2: with the settings that decide the course of a training; 3: as they are in effect, with the plans'


def random_states(device: torch.device) -> dict[str, Any]:
    """States of the global random numbers of numpy, torch and Python, and of the GPU that trains.

    >>> states = random_states(torch.device("cpu"))
    >>> first = torch.rand(2); restore_random_states(states); bool((torch.rand(2) == first).all())
    True
    """
    kind, words, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002  # nnU-Net draws from it
    version, internal, gauss_next = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.random.get_rng_state(),
        "numpy": {
            "kind": str(kind), "words": torch.from_numpy(np.asarray(words).astype(np.int64)), "position": int(position),
            "has_gauss": int(has_gauss), "gauss": float(gauss),
        },
        "python": {"version": version, "internal": list(internal), "gauss": gauss_next},
    }  # fmt: skip
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Restore what `random_states` gave."""
    torch.random.set_rng_state(states["torch"].cpu())
    kept = states["numpy"]
    words = kept["words"].cpu().numpy().astype(np.uint32)
    state = (kept["kind"], words, kept["position"], kept["has_gauss"], kept["gauss"])
    np.random.set_state(state)  # noqa: NPY002
    python = states["python"]
    random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


class _NothingWritten(Exception):
    """A trainer that writes no checkpoints, as nnU-Net's benchmarks do."""


def write_atomically(write: Callable[[str], None], addition: Mapping[str, Any], filename: str) -> None:
    """Let nnU-Net write its checkpoint to a temporary file, add one key, and put it in place in one step.

    Args:
        write: writes nnU-Net's checkpoint to the path it is given, or nothing.
        addition: what the key ``autoaug`` shall hold.
        filename: where the checkpoint belongs.

    Raises:
        CheckpointError: nnU-Net could not write it; an earlier file is as it was.
        OSError: the same, later on.
    """

    def complete(file: Path) -> None:
        file.touch()  # torch would tell of a missing permission in its own words, as of a full disk
        try:
            write(str(file))
        except RuntimeError as error:  # what torch makes of a full disk; it doesn't tell the system's reason
            if not any(word in str(error) for word in ("inline_container", "PytorchStreamWriter")):
                raise
            raise CheckpointError(
                f"{filename}: can't be written ({str(error).splitlines()[0]}). To do: see whether the disk is full; the"
                " last checkpoint is as it was, and training goes on from it with --c"
            ) from error
        if not file.stat().st_size:
            raise _NothingWritten
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)  # nnU-Net's own, written a moment ago
        dump_tensors(file, checkpoint | {KEY: dict(addition)})

    with contextlib.suppress(_NothingWritten):
        write_whole(filename, complete)


def read_checkpoint(filename: str | os.PathLike[str]) -> dict[str, Any]:
    """nnU-Net's checkpoint as a dict on the CPU.

    Raises:
        CheckpointError: the file is missing, incomplete or no checkpoint.
    """
    path = Path(filename)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        # nnU-Net's checkpoints hold numpy numbers and plans, so they are read as nnU-Net reads them
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # torch raises many kinds; the user needs the file's name and the reason
        raise CheckpointError(
            f"{path}: can't be read ({type(error).__name__}: {error}); resume from another"
        ) from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise CheckpointError(f"{path}: is no nnU-Net checkpoint: it has no network_weights")
    return checkpoint


def parameter_names(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimiser's parameters in its own order, by which its state can be read without the network.

    >>> net = nn.Linear(1, 1)
    >>> parameter_names(net, torch.optim.SGD(net.parameters(), 0.1))
    ['weight', 'bias']
    """
    names = {id(p): name for name, p in network.named_parameters()}
    return [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
