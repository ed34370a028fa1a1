# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Files that are whole or not there, whenever the process is killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["dump_tensors", "remove_leftovers", "write_tensors", "write_text", "write_together", "write_whole"]


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a file beside ``path``, see it onto the disk, and put it in place in one step.

    What processes of this machine, and of this container, that no longer live left of earlier writes is removed.

    Args:
        path: file to write; missing folders are made.
        write: makes the file whose path it is given; that path's name does not end as ``path`` does.

    Returns:
        The path.

    Raises:
        OSError: disk full, no permission; it names ``path``, where an earlier file is as it was.

    >>> import tempfile
    >>> write_whole(Path(tempfile.mkdtemp()) / "a" / "b.txt", lambda file: file.write_text("whole")).read_text()
    'whole'
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        write(temporary)
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a write that fails on a full disk names no file by itself
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_together(folder: str | os.PathLike[str], write: Callable[[Path], object], *, last: str = "") -> list[Path]:
    """Let ``write`` make files in a folder of their own, see them onto the disk, and put each in place in one step.

    For writers of others, which are given a folder and name their files themselves.

    Args:
        folder: where the files belong; it is made if need be.
        write: makes files, and no folders, in the folder that it is given.
        last: the end of the name of that file whose presence says that all of them are there.

    Returns:
        The files, in the order in which they were put in place.

    Raises:
        OSError: disk full, no permission.

    >>> import tempfile
    >>> made = write_together(tempfile.mkdtemp(), lambda own: (own / "a.txt").write_text("whole"))
    >>> [file.name for file in made], made[0].read_text()
    (['a.txt'], 'whole')
    """
    folder = Path(folder)
    own = _temporary(folder / "files")
    try:
        own.mkdir()
        write(own)
        made = sorted(own.iterdir(), key=lambda file: (bool(last) and file.name.endswith(last), file.name))
        for file in made:
            _to_disk(file)
        return [file.replace(folder / file.name) for file in made]
    finally:
        shutil.rmtree(own, ignore_errors=True)


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

    Args:
        path: file to write.
        content: what ``torch.load`` gives back.
        save: another function instead of ``torch.save``.
        options: of that function.

    >>> import tempfile, torch
    >>> torch.load(write_tensors(Path(tempfile.mkdtemp()) / "a.pt", {"a": 1}))
    {'a': 1}
    """
    return write_whole(path, lambda file: dump_tensors(file, content, save, **options))


def dump_tensors(file: Path, content: Any, save: Callable[..., object] | None = None, **options: Any) -> None:
    """Write tensors, numbers and strings into a temporary file of `write_whole`.

    ``torch.save`` is given an open file: to a path it would write the file's name, and so the machine's, into it.

    Args:
        file: the temporary file.
        content: what ``torch.load`` gives back.
        save: another function instead of ``torch.save``.
        options: of that function.

    Raises:
        OSError: the disk is full, or the like.
    """
    import torch  # here, because most of what is written are texts

    with file.open("wb") as opened:
        try:
            (save or torch.save)(content, opened, **options)
        except RuntimeError as error:
            # torch ends its archive whatever has happened, and raises that it is shorter than it should be instead
            reason = error.__context__
            if isinstance(reason, OSError | KeyboardInterrupt):
                raise reason from None
            raise


_cleaned: set[Path] = set()
_LONGEST = 255  # bytes of a name


def _temporary(path: Path) -> Path:
    """A name beside ``path`` that says who writes there; what others have left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    ending = f"{_here()}{os.getpid()}.part"
    name = path.name
    if len(os.fsencode(f".{name}{ending}")) > _LONGEST:  # the file's own may be as long as a file system takes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return path.with_name(f".{name}{ending}")


def _to_disk(path: Path) -> None:
    """Its name may reach the disk before its content otherwise."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _here() -> str:
    """Whose numbers of processes are meant: containers may share a machine's name, but see none of each other's."""
    try:
        space = "".join(c for c in os.readlink("/proc/self/ns/pid") if c.isdigit())
    except (OSError, AttributeError):  # no Linux
        space = ""
    return f"@{platform.node()}@{space}@"


def _remove_leftovers(folder: Path) -> None:
    """Once a process and folder, because a folder may hold very many files."""
    folder = folder.resolve()
    if folder not in _cleaned:
        _cleaned.add(folder)
        remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that have ended were writing into a folder.

    Args:
        folder: that holds files which were written by this module.

    >>> import tempfile
    >>> remove_leftovers(Path(tempfile.mkdtemp()))
    """
    leftover = re.compile(rf"{re.escape(_here())}([0-9]+)\.part$")
    for file in folder.iterdir():
        found = leftover.search(file.name)
        if found and not _lives(int(found[1])):
            with contextlib.suppress(OSError):  # another user's, in a folder whose files only their owners may remove
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if process == os.getpid() or os.name == "nt":  # there, signal 0 is no question but Ctrl-C
        return True
    try:
        os.kill(process, 0)  # signal 0 asks only
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether it has ended and nobody has asked how: briefly after a kill, for ever in a container without init."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no such file system, or it has just gone
        return False
    return state in ("Z", "X")
