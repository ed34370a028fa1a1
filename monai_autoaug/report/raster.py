# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pixels of slices, as PNG in data URIs, and the colours that lie over them."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_autoaug.report.style import BRIGHTER, DARKER

__all__ = ["heat", "png", "refined", "tinted"]

Array = NDArray[Any]
_FINE, _MOST = 144, 4  # pixels a side that a slice should have; how often it is refined at most


def png(pixels: Array) -> str:
    """A data URI of a PNG of (height, width) grey values or (height, width, 4) colours, uint8.

    >>> png(np.zeros((2, 3), np.uint8))[:30]
    'data:image/png;base64,iVBORw0K'
    """
    height, width = pixels.shape[:2]
    raw = np.zeros((height, 1 + pixels[0].size), np.uint8)  # a row begins with its filter: none
    raw[:, 1:] = np.ascontiguousarray(pixels).reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 6, 0, 0, 0)
    packed = zlib.compress(raw.tobytes(), 9)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def refined(part: Array) -> Array:
    """A slice with so many pixels that no square is seen."""
    factor = min(_MOST, -(-_FINE // max(part.shape)))
    if factor < 2:
        return part
    return np.asarray(ndimage.zoom(part, factor, order=3, mode="nearest", grid_mode=True))


def tinted(change: Array, largest: float) -> Array:
    """Colours (n, m, 4) of a change: darker blue, brighter orange, the less the more transparent.

    >>> tinted(np.full((200, 200), -2.0), 1.0)[0, 0].tolist()
    [63, 140, 255, 178]
    """
    share = np.clip(refined(change) / largest, -1, 1)
    colours = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (BRIGHTER, DARKER)]
    rgb = np.where(share[..., None] > 0, *colours)
    alpha = (np.abs(share) * 0.7 * 255)[..., None]
    return np.concatenate([rgb, alpha], -1).astype(np.uint8)


def heat(length: Array, largest: float) -> Array:
    """Colours (n, m, 4) of a length from 0, transparent, to ``largest``: one hue, ever brighter."""
    share = np.clip(refined(length) / max(largest, 1e-6), 0, 1)[..., None]
    low, high = np.array([20, 60, 110]), np.array([255, 214, 120])
    return np.concatenate([low + share * (high - low), 40 + share * 160], -1).astype(np.uint8)
