# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""One process at a time works in a run's folder, and whether it can write there is known before any data is read."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_autoaug.errors import ConfigError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["LOCK", "check_writable", "claimed"]

LOCK = ".lock"
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # file systems without locks, among them some of clusters
_held: set[Path] = set()  # a process may lock twice what it has locked, so it has to remember


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is not there, against every other process that would claim it.

    A file ``.lock`` in it, which names the process and its machine, is locked by the operating system, which frees it
    when the process ends, however it ends: after a kill the folder can be claimed at once, and a file that stayed
    behind means nothing. Where the file system has no locks, which is logged, and on Windows, processes are not kept
    apart. Afterwards the file is removed, and the folders made for it too if they are empty.

    Args:
        folder: of the run.

    Raises:
        ConfigError: another process holds it, or it can't be written.

    >>> folder = Path(tempfile.mkdtemp()) / "run"
    >>> with claimed(folder):
    ...     [file.name for file in folder.iterdir()]
    ['.lock']
    >>> folder.exists()
    False
    """
    name = folder.resolve()
    if name in _held:
        raise _taken(folder, "this process")
    made: list[Path] = []
    opened: int | None = None
    _held.add(name)
    try:
        try:
            opened = _lock(folder, made)
            _write_something(folder)  # a lock file that is there already says nothing of others
        except OSError as error:
            raise _unwritable("output", folder, error) from error
        yield
    finally:
        if opened is not None:
            _free(folder / LOCK, opened)
        _remove(made)
        _held.discard(name)


def check_writable(name: str, folder: Path) -> None:
    """Refuse a folder that can't be made or written; it is left as it was.

    Args:
        name: of the option that holds it.
        folder: need not exist.

    Raises:
        ConfigError: it can't be written.

    >>> check_writable("cache", Path(tempfile.mkdtemp()) / "cache")
    """
    made: list[Path] = []
    try:
        _make(folder, made)
        _write_something(folder)
    except OSError as error:
        raise _unwritable(name, folder, error) from error
    finally:
        _remove(made)


def _write_something(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it, and note which were made."""
    for path in (*reversed(folder.parents), folder):
        with contextlib.suppress(FileExistsError):  # of another process that makes it too, or long there
            if not path.is_dir():
                path.mkdir()
                made.append(path)


def _remove(made: list[Path]) -> None:
    for path in reversed(made):
        with contextlib.suppress(OSError):  # something is in it
            path.rmdir()


def _lock(folder: Path, made: list[Path]) -> int:
    """The locked file; its predecessor may be removed by its holder between our opening and our locking it."""
    while True:
        _make(folder, made)
        try:
            opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            if folder.is_dir():
                raise
            continue  # another process has just removed the folder that it had made
        try:
            _take(folder, opened)
            if _is_at(folder / LOCK, opened):
                os.truncate(opened, 0)
                os.write(opened, f"process {os.getpid()} on {platform.node()}\n".encode())
                return opened
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)


def _take(folder: Path, opened: int) -> None:
    """Lock an opened file, or say who has."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _taken(folder, os.read(opened, 200).decode(errors="replace").strip()) from error
        if error.errno not in _UNKNOWN:
            raise
        logging.getLogger(__name__).warning(
            f"{folder}: this file system has no locks ({error.strerror}): see that no other run writes there"
        )


def _is_at(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _free(path: Path, opened: int) -> None:
    if fcntl is None:  # Windows does not remove what is open
        os.close(opened)
    with contextlib.suppress(OSError):  # a leftover means nothing
        path.unlink()  # while it is locked: afterwards it may be another process's
    if fcntl is not None:
        os.close(opened)


def _taken(folder: Path, holder: str) -> ConfigError:
    who = holder or "another process"
    return ConfigError(f"{folder}: {who} is working in it; wait until it has ended, or choose another folder")


def _unwritable(name: str, folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{name}: {folder} can't be written ({error.strerror or error}); choose a folder that can be made and written"
    )
