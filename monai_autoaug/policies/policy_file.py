# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies on disk: ``policy.json``, which a person can read and which is refused if anything in it is not as it says.

Operations are stored by name. What a file does not name is not in the policy that is loaded, so operations that later
versions add change nothing; operations that this version lacks are an error that names them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import monai
import torch
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

import monai_autoaug
from monai_autoaug.errors import AutoAugError, ConfigError, PolicyError
from monai_autoaug.policies.description import (
    build_seen,
    build_test_time,
    build_training,
    describe_test_time,
    describe_training,
)
from monai_autoaug.policies.evidence import Seen
from monai_autoaug.policies.schema import FORMAT, SCHEMA, VERSION
from monai_autoaug.policies.test_time import TestTimePolicy
from monai_autoaug.policies.training import TrainingPolicy
from monai_autoaug.reading import MEBIBYTE, leaves, read_json
from monai_autoaug.transforms.registry import Cascade
from monai_autoaug.writing import write_text

__all__ = ["Policies", "load", "save"]

_LARGEST = 16 * MEBIBYTE  # a policy of 100 classes takes one


@dataclass(frozen=True)
class Policies:
    """What a policy file holds.

    Args:
        training: of operations while training; None: the file has none.
        test_time: of views at test time; None: the file has none.
        provenance: where the policies come from: versions, seed, fingerprint of the data.
        seen: what is known of the training policy's operations; None: the file doesn't say.
    """

    training: TrainingPolicy | None = None
    test_time: TestTimePolicy | None = None
    provenance: Mapping[str, str | float | bool | None] = field(default_factory=dict)
    seen: Seen | None = None


def save(
    path: str | os.PathLike[str],
    *,
    training: TrainingPolicy | None = None,
    test_time: TestTimePolicy | None = None,
    provenance: Mapping[str, str | float | bool | None] | None = None,
    seen: Seen | None = None,
) -> Path:
    """Write policies to one file, completely or not at all.

    Args:
        path: file to write, usually ``policy.json``.
        training: what to write; at least one of the two.
        test_time: what to write.
        provenance: how the policies came about, for people: seed, epochs, a fingerprint of the data, but no paths and
            no names of patients. Versions of packages are added.
        seen: what is known of the training policy's operations (`Method.seen`), for people and pictures.

    Returns:
        The path.

    Raises:
        ConfigError: there is nothing to write, or the provenance holds a path.
        PolicyError: a logit is not finite.

    >>> import tempfile
    >>> file = save(Path(tempfile.mkdtemp()) / "policy.json", training=TrainingPolicy.preset("nnunet"))
    >>> load(file).training.classes
    ('background', 'foreground')
    """
    if training is None and test_time is None:
        raise ConfigError("a policy file needs a training-time policy, a test-time policy, or both")
    versions = {"monai_autoaug": monai_autoaug.__version__, "torch": torch.__version__, "monai": monai.__version__}
    notes = {k: str(v) for k, v in versions.items()} | dict(provenance or {})
    for name, value in notes.items():
        if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
            raise ConfigError(f"provenance {name!r} is a path, which tells of the machine and its users: leave it out")
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "provenance": notes}
    if training is not None:
        content["training"] = describe_training(training, seen)
    if test_time is not None:
        content["test_time"] = describe_test_time(test_time)
    _validate(content, path)
    return write_text(path, _pretty(content) + "\n")


def load(path: str | os.PathLike[str], *, cascades: Sequence[Cascade] = ()) -> Policies:
    """Read policies, trainable as fresh ones are.

    Args:
        path: a file that `save` wrote.
        cascades: those that hold one's own operations, which the file names but can't contain.

    Returns:
        The policies, on the CPU.

    Raises:
        PolicyError: the file is missing, too large, no JSON, of a newer version, or names an operation that is not
            there; the message names the file, the field, and what to do.
    """
    try:
        content = _validate(_read(path), path)
    except RecursionError as error:
        raise PolicyError(f"{path}: is no policy file; expected JSON of a few levels, came very many") from error
    training, test_time = content.get("training"), content.get("test_time")
    try:
        return Policies(
            None if training is None else build_training(training, cascades),
            None if test_time is None else build_test_time(test_time),
            content["provenance"],
            None if training is None else build_seen(training),
        )
    except AutoAugError as error:  # unknown operations, names given twice, numbers that don't go together
        raise PolicyError(f"{path}: {error}") from error


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with one operation a line."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    operation = isinstance(value, dict) and "logit" in value
    if operation or not isinstance(value, dict | list) or len(line) <= 100:
        return line
    deeper = indent + " "
    if isinstance(value, dict):
        rows = [f"{deeper}{json.dumps(k, ensure_ascii=False)}: {_pretty(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + _pretty(v, deeper) for v in value) + f"\n{indent}]"


def _read(path: str | os.PathLike[str]) -> Any:
    """JSON of the file, without repeated fields and numbers that are none."""
    try:
        return read_json(path, largest=_LARGEST)
    except OSError as error:
        raise PolicyError(f"{path}: can't be read ({error.strerror}). To do: give the path of a policy.json") from error
    except ValueError as error:  # too large, not UTF-8, no JSON, an integer of very many digits
        raise PolicyError(
            f"{path}: is no policy file; expected JSON as monai_autoaug writes it, came: {error}. To do: copy the file"
            " again, or undo the last edit"
        ) from error


def _validate(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """See that the content is as the schema says.

    Raises:
        PolicyError: it is not; the message names the field.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        came = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise PolicyError(f"{path}: field format: is no policy file; expected {FORMAT!r}, came {_short(came)}")
    version = content.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise PolicyError(
            f"{path}: field version: was written by a newer version; expected at most {VERSION}, came {version}. "
            "To do: update monai_autoaug"
        )
    error = best_match(Draft202012Validator(SCHEMA).iter_errors(content))
    if error is not None:
        what = f"expected {error.validator} {_short(error.validator_value)}, came {_short(error.instance)}"
        if error.validator in ("required", "additionalProperties"):  # the message names the field
            what = error.message
        raise PolicyError(
            f"{path}: field {_field(error.absolute_path)}: is not as it should be; {what}. To do: undo the last edit,"
            " or write the file anew"
        )
    for place, value in leaves(content):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not abs(value) < 1e30:  # true of NaN, too
            raise PolicyError(f"{path}: field {place}: expected a number below 1e30, came {_short(value)}")
    return content


def _field(where: Iterable[str | int]) -> str:
    """Such as ``training.cascades[3].name``."""
    text = "".join(f"[{w}]" if isinstance(w, int) else f".{w}" for w in where)
    return text.lstrip(".") or "(the whole file)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
