# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Names and places that others have chosen: what can't be a file's name, and which links leave a folder."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

__all__ = ["leaves_folder", "name_fault"]

_LONGEST = 200  # bytes; a file system takes 255, and endings are added
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def name_fault(name: str) -> str:
    r"""Why a text can't name a file, a case or a label; empty where it can.

    Args:
        name: without folders.

    >>> name_fault("case_01"), name_fault("a/case"), name_fault("a\nb")
    ('', 'holds / or \\', 'holds a control character')
    """
    if not name or name.startswith("."):
        return "is empty or begins with a dot"
    if name.startswith("-"):
        return "begins with -, as an option of a program does"
    if set("/\\") & set(name):
        return "holds / or \\"
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
        return "holds a control character"
    if set(name) & _DIRECTION:
        return "holds a sign that turns the direction of writing, so that it reads as another name"
    if any(unicodedata.category(c) == "Cs" for c in name):
        return "is no valid UTF-8"
    if len(name.encode()) > _LONGEST:
        return f"is longer than {_LONGEST} bytes"
    return ""


def leaves_folder(path: Path, folder: Path) -> bool:
    """Whether a file is reached by a link that leads out of the folder it seems to lie in.

    Args:
        path: of the file, which need not be there.
        folder: of the data set; a file that lies elsewhere from the start must not leave its own folder.
    """
    plain = os.path.abspath(path)
    root = os.fspath(folder) if Path(plain).is_relative_to(os.path.abspath(folder)) else os.path.dirname(plain)
    return not Path(os.path.realpath(plain)).is_relative_to(os.path.realpath(root))
