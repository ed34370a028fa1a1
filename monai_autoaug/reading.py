# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Files that others may have written, read without pickle and without trust: their size first, then what they hold.

JSON is refused where Python's parser would be lenient: a field given twice, NaN, numbers that don't fit a float, many
levels. Files of tensors are torch's zip archives of uncompressed records whose checksums are compared before anything
is unpacked; they may hold tensors, numbers, strings and tables of these, and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "MALFORMED", "MEBIBYTE", "build", "check_archive", "check_content", "leaves", "read_json", "read_tensors",
    "read_text",
]  # fmt: skip

Module = TypeVar("Module", bound="nn.Module")
MEBIBYTE = 2**20
# what building something from a file of the right kind but with other content may raise, besides our own errors
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError, OverflowError)
_DIGITS = 300  # of a whole number; a float holds no more


def read_text(path: str | os.PathLike[str], *, largest: int) -> str:
    """UTF-8 text of a file.

    Args:
        path: the file.
        largest: bytes; a larger file is not read.

    Raises:
        OSError: it can't be opened.
        ValueError: it is larger, or no UTF-8 text.
    """
    with Path(path).open("rb") as file:  # no more than may be there, whatever the file system says of its size
        raw = file.read(largest + 1)
    if len(raw) > largest:
        raise ValueError(f"it is too large: expected at most {largest} bytes, came more")
    return raw.decode("utf-8")


def read_json(path: str | os.PathLike[str], *, largest: int = 64 * MEBIBYTE) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        largest: bytes; a larger file is not read.

    Raises:
        OSError: it can't be opened.
        ValueError: it is larger, no UTF-8 text, no JSON, gives a field twice, holds NaN or numbers that are not
            finite, or has very many levels.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.json"
    >>> _ = file.write_text('{"a": 1, "a": 2}')
    >>> read_json(file)
    Traceback (most recent call last):
    ValueError: a field is given twice: 'a'
    """
    text = read_text(path, largest=largest)
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("expected JSON of a few levels, came very many") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)  # the file may hold very many
        raise ValueError(f"a field is given twice: {min(n for n, count in counts.items() if count > 1)!r}")
    return found


def _refuse(number: str) -> float:
    raise ValueError(f"{number} is no number")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _whole(number: str) -> int:
    if len(number) > _DIGITS:
        raise ValueError(f"a number has {len(number)} digits")
    return int(number)


def check_archive(path: str | os.PathLike[str]) -> None:
    """See that a file is an archive as torch writes them: whole by its checksums, and nothing in it is compressed.

    A compressed record could be far larger in memory than the file is on disk.

    Args:
        path: what ``torch.save`` wrote.

    Raises:
        OSError: it can't be opened.
        ValueError: it is none; the message says why.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            packed = [r.filename for r in records if r.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise ValueError(f"its record {packed[0]!r} is compressed, which torch never does")
            if sum(r.file_size for r in records) > Path(path).stat().st_size:
                raise ValueError("its records are larger than the file: they overlap")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no archive that torch.save wrote, or is damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"it is damaged: the checksum of its record {damaged!r} is another")


def read_tensors(path: str | os.PathLike[str], *, device: Any = "cpu", finite: bool = True) -> Any:
    """The content of a file of tensors, numbers and strings, which no code of the file's is run for.

    Args:
        path: what ``torch.save`` wrote.
        device: where its tensors shall be.
        finite: refuse NaN and infinity in tensors; a number, such as a figure that is not defined, may be NaN.

    Raises:
        OSError: it can't be opened.
        ValueError: it is damaged, or holds something else; the message says what, and where in the file.

    >>> import tempfile, torch
    >>> file = Path(tempfile.mkdtemp()) / "a.pt"
    >>> torch.save({"weights": [torch.tensor([1.0, float("nan")])]}, file)
    >>> read_tensors(file)
    Traceback (most recent call last):
    ValueError: weights[0] holds 1 values that are not finite
    """
    import torch  # here, because most of what is read are texts

    check_archive(path)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds; what matters is the reason
        raise ValueError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    check_content(content, finite=finite)
    return content


def check_content(content: Any, *, finite: bool = True, meant: Mapping[str, torch.Tensor] | None = None) -> None:
    """See that there are tensors, numbers and strings only, and tensors finite: of what was read or is to be written.

    Args:
        content: of a file of tensors.
        finite: see `read_tensors`.
        meant: tensors by their place as somebody else's network has made them: what is infinite there, as in masks of
            attention, may be so.

    Raises:
        ValueError: what it is that doesn't belong there, and where.

    >>> import torch
    >>> check_content({"weights": [torch.ones(1), 2.0, "three"]})
    """
    import torch

    for where, value in leaves(content):
        if isinstance(value, torch.Tensor):
            count = int((~torch.isfinite(value)).sum()) if finite and value.is_floating_point() else 0
            made = None if not count or meant is None else meant.get(where)
            if count and (made is None or not torch.equal(made, value.to(made))):
                raise ValueError(f"{where} holds {count} values that are not finite")
        elif not isinstance(value, str | int | float | bool | bytes | None):
            raise ValueError(f"{where} is a {type(value).__name__}; expected tensors, numbers and strings only")


def build(make: Callable[[], Module], state: Mapping[str, Any]) -> Module:
    """A module with its saved state; none is built whose tensors are not those of the state.

    What a file says of sizes is tried without memory first, so that what is built takes no more than the file holds.

    Args:
        make: builds the module, as the file describes it.
        state: its tensors by name.

    Returns:
        The module, on the CPU.

    Raises:
        ValueError: the tensors' names or shapes are others.

    >>> import torch
    >>> build(lambda: torch.nn.Linear(10**12, 10**6), {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    Traceback (most recent call last):
    ValueError: its tensor weight has shape (2, 2), expected (1000000, 1000000000000)
    """
    import torch

    with torch.device("meta"):  # tensors without memory
        expected = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    came = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if other := sorted(set(expected) ^ set(came)):
        raise ValueError(f"its tensors are others than expected: {', '.join(other[:5])}")
    for name, shape in expected.items():
        if came[name] != shape:
            raise ValueError(f"its tensor {name} has shape {came[name]}, expected {shape}")
    module = make()
    module.load_state_dict(state)
    return module


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that holds no others, and the way to it, such as ``training.cascades[3].name``.

    Args:
        value: tables, lists and what they hold.
        where: the way to ``value`` itself.

    >>> list(leaves({"a": [1, {"b": 2}]}))
    [('a[0]', 1), ('a[1].b', 2)]
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple | set):
        for place, inner in enumerate(value):
            yield from leaves(inner, f"{where}[{place}]")
    else:
        yield where or "the whole file", value
