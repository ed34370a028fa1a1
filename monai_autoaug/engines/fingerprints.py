# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the files of a training held when it began, so that it goes on with the same ones or not at all.

A file is known by its size and a hash of all its bytes: a copy elsewhere, or of another day, is the same file, and any
other content is another one, even of the same size and time. Each file is read once when a training begins and once
when it is resumed, in blocks of a mebibyte, which takes about a second a gigabyte of one core: less than a tenth of the
audit, which reads the same files, and less still of their preprocessing. Of paths nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_autoaug.data import Case
from monai_autoaug.data.contents import content_hash
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.errors import CheckpointError

__all__ = ["KnownFiles", "check_cases", "fingerprint", "of_cases"]

_VERSION = 1
_SHOWN = 10  # files that a message names

Fingerprint = Mapping[str, Any]
Parts = Mapping[str, Sequence[Case]]


def fingerprint(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Size and content of a file.

    Args:
        file: is read to its end.

    Returns:
        ``bytes``: its size; ``blake2b``: see `data.contents.content_hash`.

    Raises:
        OSError: it can't be read.

    >>> import tempfile
    >>> made = Path(tempfile.mkdtemp()) / "a.nii"
    >>> _ = made.write_bytes(b"voxels")
    >>> fingerprint(made)
    {'bytes': 6, 'blake2b': 'aeab1449176c09710652e2b026f76bcb'}
    """
    return {"bytes": Path(file).stat().st_size, "blake2b": content_hash(file)}


def of_cases(parts: Parts, *, listener: Listener = unheard) -> dict[str, Any]:
    """What the files of a run's cases hold: the content of its ``fingerprints.json``.

    Args:
        parts: cases by what is used of them, such as "cases" and "unlabelled"; names are unique in each.
        listener: hears of each case.

    Returns:
        JSON values: for each part by case the fingerprint of each file, the label's last.

    Raises:
        OSError: a file can't be read.
    """
    found: dict[str, Any] = {"version": _VERSION, **{part: {} for part in parts}}
    for done, (part, case) in enumerate(_each(parts), 1):
        found[part][case.name] = [fingerprint(file) for file in case.files]
        listener(Progress("hashing", done, _count(parts)))
    return found


def check_cases(kept: Mapping[str, Any], parts: Parts, folder: Path, *, listener: Listener = unheard) -> None:
    """See that the files of a run's cases hold what they held when it began.

    Args:
        kept: what `of_cases` gave then.
        parts: the same cases as then, wherever their files are now.
        folder: of the run, for the message.
        listener: hears of each case.

    Raises:
        CheckpointError: files are missing or hold something else; the message names them.
    """
    changed = []
    for done, (part, case) in enumerate(_each(parts), 1):
        known = kept[part].get(case.name, [])
        if len(known) != len(case.files):
            changed.append(f"case {case.name}: expected {len(known)} files, came {len(case.files)}")
        else:
            changed += _changes(case.files, known)
        listener(Progress("hashing", done, _count(parts)))
    _refuse(changed, folder, "start another run with --output")


class KnownFiles:
    """What the files of a training held when it began, as a part of its checkpoint, which knows no paths either.

    Args:
        files: in an order that is the same when the training is resumed; one that is given twice is read once.

    >>> [file.name for file in KnownFiles(["a.nii", "b.nii", "a.nii"]).files]
    ['a.nii', 'b.nii']
    """

    def __init__(self, files: Iterable[str | os.PathLike[str]]) -> None:
        self.files = list(dict.fromkeys(map(Path, files)))
        self.known: list[Fingerprint] | None = None

    def look(self) -> None:
        """Read the files, if what they held isn't known yet.

        Raises:
            OSError: one can't be read.
        """
        if self.known is None:
            self.known = [fingerprint(file) for file in self.files]

    def state_dict(self) -> dict[str, Any]:
        """Numbers and strings only."""
        return {"files": [dict(known) for known in self.known or ()]}

    def check(self, state: Mapping[str, Any], path: Path) -> None:
        """See that the files hold what they held when a checkpoint's training began, and remember it.

        Args:
            state: what ``state_dict`` gave.
            path: of the checkpoint, for the message.

        Raises:
            CheckpointError: they are more or fewer, missing, or hold something else; the message names them.
        """
        known = [{"bytes": int(one["bytes"]), "blake2b": str(one["blake2b"])} for one in state["files"]]
        if len(known) == len(self.files):
            changed = _changes(self.files, known)
        else:  # which are new is known by their contents; which are gone has no name
            changed = [f"expected {len(known)} files, came {len(self.files)}"]
            changed += [phrase for file in self.files if (phrase := _new(file, known))]
        _refuse(changed, path, "start without resume")
        self.known = list(known)


def _each(parts: Parts) -> Iterable[tuple[str, Case]]:
    return ((part, case) for part, cases in parts.items() for case in cases)


def _count(parts: Parts) -> int:
    return sum(map(len, parts.values()))


def _changes(files: Sequence[Path], known: Sequence[Fingerprint]) -> list[str]:
    """A phrase for each file that isn't what it was."""
    return [phrase for file, one in zip(files, known, strict=True) if (phrase := _change(file, one))]


def _change(file: Path, known: Fingerprint) -> str:
    """What has become of a file; "" where it is as it was. One of another size isn't read."""
    try:
        size = file.stat().st_size
        if size != known["bytes"]:
            return f"{file}: expected {known['bytes']} bytes, came {size}"
        came = content_hash(file)
    except OSError as error:
        return f"{file}: expected {known['bytes']} bytes, came no file that can be read ({error.strerror or error})"
    same = came == known["blake2b"]
    return "" if same else f"{file}: expected content of hash {known['blake2b']}, came {came}, of the same size"


def _new(file: Path, known: Sequence[Fingerprint]) -> str:
    """That a file was not among the known ones; "" where it was."""
    try:
        return "" if fingerprint(file) in known else f"{file}: was not among them"
    except OSError as error:
        return f"{file}: can't be read ({error.strerror or error})"


def _refuse(changed: Sequence[str], where: Path, otherwise: str) -> None:
    """Raise what has changed, if anything has."""
    if not changed:
        return
    listed = "".join(f"\n  {phrase}" for phrase in changed[:_SHOWN])
    more = f"\n  and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    raise CheckpointError(
        f"{where}: the data are no longer those that this training began with, so it would not go on as the same"
        f" one:{listed}{more}\nTo do: put these files back as they were, or {otherwise}"
    )
