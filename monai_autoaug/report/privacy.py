# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""No names of cases and no paths in what a report says, unless they are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["Veil"]

_SHORTEST = 3  # letters of a name that is looked for: shorter ones are words and numbers of their own
_PART = r"[^\s,;:'\"<>|()\\/]"
# from a drive, a home or a share on, or with two folders at least: "</b>" and "1/2" are none
_PATH = re.compile(rf"(?<![\w.])(?:(?:[A-Za-z]:[\\/]|~[\\/]|\\\\)|/{_PART}+/)(?:{_PART}*[\\/])*{_PART}*\w")
# relative ones: a file in a folder, and images by their suffix wherever they are
_FILE = re.compile(
    rf"(?<![\w.])(?:{_PART}+[\\/])+{_PART}*\.[A-Za-z]\w{{0,7}}\b"
    rf"|{_PART}+\.(?:nii\.gz|nii|mha|mhd|nrrd|nhdr|hdr|img|dcm|ima|mgz|mgh|tar\.gz|zip|tar|tgz)\b",
    re.IGNORECASE,
)
_HIDDEN = "\N{HORIZONTAL ELLIPSIS}"


class Veil:
    """Replaces names of cases by "case 1", "case 2", ... and paths by an ellipsis in whatever text it is shown.

    Args:
        names: of cases, in an order that says nothing of them.
        paths: known ones, which may have blanks in them; others are told by their slashes.
        lifted: change nothing.

    >>> veil = Veil(["pat_007", "pat_0071"])
    >>> veil("pat_0071 and pat_007 (/data/x/pat_007.nii.gz) have 7 voxels")
    'case 2 and case 1 (…) have 7 voxels'
    >>> Veil(["pat_007"], lifted=True)("pat_007")
    'pat_007'
    """

    def __init__(self, names: Iterable[str], *, paths: Iterable[str] = (), lifted: bool = False) -> None:
        self.lifted, self._paths = lifted, sorted(paths, key=len, reverse=True)
        self._aliases = {name: f"case {number}" for number, name in enumerate(dict.fromkeys(names), 1)}
        long = sorted((n for n in self._aliases if len(n) >= _SHORTEST), key=len, reverse=True)
        pattern = "|".join(rf"(?<![A-Za-z0-9])(?<!\d\.){re.escape(name)}(?![A-Za-z0-9]|\.\d)" for name in long)
        self._names = re.compile(pattern) if long else None

    def __call__(self, value: Any) -> Any:
        """The same text, or list or dict of texts, without names and paths; numbers stay."""
        if self.lifted:
            return value
        if isinstance(value, str):
            text = value
            for path in self._paths:
                text = text.replace(path, "/known/path")
            if text in self._aliases:  # a short name too, where it is all that is said
                return self._aliases[text]
            text = _FILE.sub(_HIDDEN, _PATH.sub(_HIDDEN, text))
            return text if self._names is None else self._names.sub(lambda found: self._aliases[found[0]], text)
        if isinstance(value, dict):
            return {key: self(content) for key, content in value.items()}
        if isinstance(value, list | tuple):
            return [self(content) for content in value]
        return value

    def case(self, name: str) -> str:
        """What a case is called."""
        return name if self.lifted else self._aliases.get(name, "a case")
