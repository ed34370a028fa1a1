# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Files that are whole or not there, whenever the process is killed."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write_tensors", "write_text", "write_whole"]


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a file beside ``path``, see it onto the disk, and put it in place in one step.

    What processes of this machine that no longer live left of earlier writes is removed.

    Args:
        path: file to write; missing folders are made.
        write: makes the file whose path it is given; that path's name does not end as ``path`` does.

    Returns:
        The path.

    Raises:
        OSError: disk full, no permission; an earlier file at ``path`` is as it was.

    >>> import tempfile
    >>> write_whole(Path(tempfile.mkdtemp()) / "a" / "b.txt", lambda file: file.write_text("whole")).read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{platform.node()}."
    _remove_leftovers(path.parent, prefix)
    temporary = path.with_name(f"{prefix}{os.getpid()}.part")
    try:
        write(temporary)
        with temporary.open("rb+") as file:  # its name may reach the disk before its content otherwise
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text in one step.

    >>> import tempfile
    >>> write_text(Path(tempfile.mkdtemp()) / "a.json", "{}").read_text()
    '{}'
    """
    return write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_tensors(
    path: str | os.PathLike[str], content: Any, save: Callable[..., object] | None = None, **options: Any
) -> Path:
    """Write tensors, numbers and strings with ``torch.save`` in one step.

    It is given an open file: to a path it would write the temporary file's name, and so the machine's, into the file.

    Args:
        path: file to write.
        content: what ``torch.load`` gives back.
        save: another function instead of ``torch.save``.
        options: of that function.

    >>> import tempfile, torch
    >>> torch.load(write_tensors(Path(tempfile.mkdtemp()) / "a.pt", {"a": 1}))
    {'a': 1}
    """
    import torch  # here, because most of what is written are texts

    def write(file: Path) -> None:
        with file.open("wb") as opened:
            (save or torch.save)(content, opened, **options)

    return write_whole(path, write)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    for file in folder.iterdir():
        if file.name.startswith(prefix) and file.suffix == ".part":
            process = file.name.removeprefix(prefix).removesuffix(".part")
            if process.isdigit() and not _lives(int(process)):
                file.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)  # signal 0 asks only
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
