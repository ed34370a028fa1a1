# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Names of cascades and operations as people say them; `policy.json` and options keep the short ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["headings", "readable", "readable_cascade"]

_NAME = re.compile(r"(?P<what>[a-z_]+?)(_(?P<low>[+-]?\d[\d.]*)(_(?P<high>\d[\d.]*))?)?$")
_PLANE = re.compile(r"rotate_([dhw])([dhw])$")
_MIRROR = re.compile(r"flip_([dhw]+)$")
# what an operation is called and how its amount is written
_OPERATIONS = {
    "scale": ("scale", "×{}"),
    "gamma": ("gamma", "{}"),
    "inverted_gamma": ("inverted gamma", "{}"),
    "brightness_add": ("brightness", "{} SD"),
    "brightness_multiply": ("brightness", "×{}"),
    "contrast": ("contrast", "×{}"),
    "blur": ("blur", "{} voxels"),
    "sharpen": ("sharpen", "{} voxels"),
    "noise": ("noise", "{} SD"),
    "low_resolution": ("resolution", "×{}"),
    "elastic": ("elastic", "{} voxels"),
    "bias_field": ("bias field", "{}"),
    "gibbs": ("Gibbs ringing", "{}"),
    "channel_scale": ("channels", "×{}"),
}
_CASCADES = {
    "rotF": "rotate H-W",
    "rotS": "rotate D-W",
    "rotL": "rotate D-H",
    "mirrorS": "mirror D",
    "mirrorF": "mirror H",
    "mirrorA": "mirror W",
    "invgamma": "inverted gamma",
    "badd": "brightness +",
    "bmul": "brightness ×",
    "sharpen": "blur, sharpen",
    "simulow": "low resolution",
    "bias_field": "bias field",
    "gibbs": "Gibbs ringing",
    "channel_scale": "channels",
}


def readable_cascade(name: str) -> str:
    """A cascade as people say it; D, H and W are the axes of the volume. A user's own keeps its name.

    >>> readable_cascade("rotS"), readable_cascade("badd"), readable_cascade("mine")
    ('rotate D-W', 'brightness +', 'mine')
    """
    return _CASCADES.get(name, name)


def readable(name: str) -> str:
    """An operation as people say it; a user's own keeps its name.

    >>> readable("rotate_dw_90"), readable("rotate_hw_0_10"), readable("flip_dhw")
    ('rotate 90° D-W', 'rotate 0–10° H-W', 'mirror D, H, W')
    >>> readable("brightness_add_+0.05"), readable("contrast_1.00_1.10"), readable("no rotS"), readable("mine")
    ('brightness +0.05 SD', 'contrast ×1–1.1', 'no rotate D-W', 'mine')
    """
    if name.startswith("no "):
        return f"no {readable_cascade(name.removeprefix('no '))}"
    parts = _parts(name)
    if parts is None:
        return name
    words, amount, plane = parts
    return " ".join(text for text in (words, amount, plane) if text)


def headings(names: Sequence[str]) -> list[str]:
    """What stands above the columns of one cascade's operations: their amounts, where these tell them apart.

    >>> headings(["rotate_hw_0_10", "rotate_hw_90"]), headings(["flip_d"])
    (['0–10°', '90°'], ['mirror D'])
    >>> headings(["blur_0.4_0.6", "sharpen_0.8_1.0"])
    ['blur 0.4–0.6', 'sharpen 0.8–1']
    """
    found = [_parts(name) for name in names]
    same = len({parts and (parts[0], parts[2]) for parts in found}) == 1
    told = []
    for name, parts in zip(names, found, strict=True):
        if parts is None or not parts[1]:
            told.append(readable(name))
        else:
            told.append(parts[1] if same else f"{parts[0]} {parts[1].removesuffix(' voxels').removesuffix(' SD')}")
    return told


def _parts(name: str) -> tuple[str, str, str] | None:
    """What it does, how much of it, and in which plane; or None for what isn't of the catalogue."""
    if name == "identity":
        return "as it is", "", ""
    if mirror := _MIRROR.match(name):
        return f"mirror {', '.join(mirror[1].upper())}", "", ""
    match = _NAME.match(name)
    if match is None or match["low"] is None:
        return None
    amount = _amount(match["low"], match["high"])
    if plane := _PLANE.match(match["what"]):
        return "rotate", f"{amount}\N{DEGREE SIGN}", f"{plane[1]}-{plane[2]}".upper()
    if match["what"] not in _OPERATIONS:
        return None
    words, form = _OPERATIONS[match["what"]]
    if match["what"] == "brightness_add" and match["high"]:
        form = f"\N{PLUS-MINUS SIGN}{form}"  # in training of either sign
    return words, form.format(amount), ""


def _amount(low: str, high: str | None) -> str:
    """A number with its sign, or a range, without zeros at the end."""
    sign = low[0] if low[0] in "+-" else ""
    numbers = [f"{float(n.lstrip('+-')):g}" for n in (low, high) if n]
    return sign.replace("-", "\N{MINUS SIGN}") + "\N{EN DASH}".join(numbers)
