# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What tells the content of a file from others, wherever the file lies and whenever it was written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["content_hash"]

_BLOCK = 1 << 20  # bytes read at once


def content_hash(path: str | os.PathLike[str]) -> str:
    """BLAKE2b of all bytes of a file, which is read once, to its end: about a second a gigabyte of one core.

    Args:
        path: the file.

    Returns:
        128 bits as 32 hexadecimal digits.

    Raises:
        OSError: it can't be read.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.nii"
    >>> _ = file.write_bytes(b"voxels")
    >>> content_hash(file)
    'aeab1449176c09710652e2b026f76bcb'
    """
    found = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as opened:
        for block in iter(lambda: opened.read(_BLOCK), b""):
            found.update(block)
    return found.hexdigest()
