# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Trained augmenters on disk: one file of tensors, numbers and strings that loads without pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import monai_autoaug
from monai_autoaug.augmenters.base import Augmenter
from monai_autoaug.augmenters.kinds import find
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.reading import MALFORMED, build, read_tensors
from monai_autoaug.writing import write_tensors

__all__ = ["load", "save"]

_FORMAT, _VERSION = "monai_autoaug.augmenters", 1


def save(path: str | os.PathLike[str], augmenters: Mapping[str, nn.Module]) -> Path:
    """Write augmenters by name to one file, completely or not at all.

    Args:
        path: file to write, usually ``augmenters.pt``.
        augmenters: what `Method.augmenters` gives.

    Returns:
        The path.

    Raises:
        PolicyError: one of them is not an augmenter that `find` finds by its kind.
    """
    content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "package": monai_autoaug.__version__}
    entries = {}
    for name, augmenter in augmenters.items():
        if not _known(augmenter):
            raise PolicyError(
                f"augmenter {name!r} is a {type(augmenter).__name__}, which this file format does not hold: it would"
                " not be found by its kind (see monai_autoaug.augmenters.find)"
            )
        assert isinstance(augmenter, Augmenter)  # noqa: S101  # for the type checker: it is known
        state = {key: tensor.detach().cpu().clone() for key, tensor in augmenter.state_dict().items()}
        entries[name] = {"kind": augmenter.kind, "options": augmenter.options(), "state": state}
    return write_tensors(path, content | {"augmenters": entries})


def _known(augmenter: nn.Module) -> bool:
    """Whether `load` would make an augmenter of the same class."""
    try:
        return isinstance(augmenter, Augmenter) and find(augmenter.kind) is type(augmenter)
    except ConfigError:
        return False


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> dict[str, Augmenter]:
    """Read augmenters, frozen and in evaluation mode.

    Args:
        path: a file that `save` wrote.
        device: where they shall be.

    Returns:
        Augmenters by name.

    Raises:
        PolicyError: the file is missing, unreadable, of another kind or of a newer version.

    >>> import tempfile
    >>> file = save(Path(tempfile.mkdtemp()) / "augmenters.pt", {"affine": find("affine")(2, 1)})
    >>> load(file)["affine"].kind
    'affine'
    """
    try:
        content = read_tensors(path, device=device)
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path}: can't be read as augmenters ({error}). To do: copy the file again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise PolicyError(f"{path}: is not a file of augmenters; expected one that monai_autoaug wrote")
    version, entries = content.get("version"), content.get("augmenters")
    if not isinstance(version, int) or version > _VERSION:
        raise PolicyError(
            f"{path}: was written in format {version}, this version reads {_VERSION}; update monai_autoaug"
        )
    if not isinstance(entries, dict):
        raise PolicyError(f"{path}: holds no table of augmenters. To do: copy the file again")
    return {str(name): _made(path, str(name), entry).to(device) for name, entry in entries.items()}


def _made(path: str | os.PathLike[str], name: str, entry: Any) -> Augmenter:
    """One augmenter, frozen and in evaluation mode."""
    try:
        kind = find(entry["kind"])
    except (ConfigError, *MALFORMED) as error:
        came = repr(entry.get("kind") if isinstance(entry, dict) else entry)[:80]
        raise PolicyError(f"{path}: augmenter {name!r} is of unknown kind {came} ({error})") from error
    try:
        augmenter = build(lambda: kind(**entry["options"]), entry["state"])
    except (ConfigError, *MALFORMED) as error:
        raise PolicyError(
            f"{path}: augmenter {name!r} can't be built ({type(error).__name__}: {error}). To do: copy the file again"
        ) from error
    return augmenter.eval().requires_grad_(False)
