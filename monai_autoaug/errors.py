# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The errors a user meets: one class for each kind of fault, one sentence pattern for all of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

__all__ = [
    "AutoAugError",
    "AutoAugWarning",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "PolicyError",
    "WorkerError",
    "did_you_mean",
    "how_to_go_on",
    "printable",
    "resumable",
]


class AutoAugError(Exception):
    r"""Base of every error that this package raises on purpose; the command line prints it without a traceback.

    What a terminal would obey and not show, such as a name that someone put into a file, is written out (`printable`).

    Args:
        message: what was expected, what came, what to do; it may have several lines.

    >>> print(AutoAugError("there is no case " + chr(27) + "[2J"))
    there is no case \x1b[2J
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("\n".join(printable(line) for line in str(message).split("\n")))


class AutoAugWarning(UserWarning):
    """Something that works and may not be what was meant; the command line prints it as one line on stderr.

    >>> issubclass(AutoAugWarning, UserWarning)
    True
    """


class DataError(AutoAugError):
    """A file or data set that can't be used as it is.

    Args:
        message: what is wrong, in one sentence.
        file: the file or case it is about.
        expected: what was expected.
        came: what came instead.
        remedy: what the user can do.

    >>> print(DataError("label and image differ in shape", file="case_03", expected=(3, 4, 5), came=(3, 4, 4),
    ...                 remedy="resample the label"))
    case_03: label and image differ in shape; expected (3, 4, 5), came (3, 4, 4). To do: resample the label
    """

    def __init__(
        self, message: str, *, file: object = None, expected: object = None, came: object = None, remedy: str = ""
    ) -> None:
        text = message if file is None else f"{printable(file)}: {message}"
        if expected is not None or came is not None:
            text += f"; expected {expected}, came {printable(came)}"
        if remedy:
            # after a list, on a line of its own
            text += f"To do: {remedy}" if text.endswith("\n") else f". To do: {remedy}"
        super().__init__(text)
        self.message, self.file, self.expected, self.came, self.remedy = message, file, expected, came, remedy


class ConfigError(AutoAugError):
    """An option or a combination of options that can't work, said before training starts.

    >>> raise ConfigError("accumulation_steps must be at least 1, got 0")
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: accumulation_steps must be at least 1, got 0
    """


class PolicyError(AutoAugError):
    """A policy or augmenter file that can't be read, or does not fit what it is applied to.

    >>> issubclass(PolicyError, AutoAugError)
    True
    """


class CheckpointError(AutoAugError):
    """A checkpoint that is incomplete, of another configuration, or can't be written.

    >>> issubclass(CheckpointError, AutoAugError)
    True
    """


class WorkerError(AutoAugError):
    """A process that makes patches has died or failed; what was trained until the last checkpoint is in it.

    >>> issubclass(WorkerError, AutoAugError)
    True
    """


def printable(value: object) -> str:
    r"""A value as text that can be shown: what a terminal would obey, and not show, is written out.

    Args:
        value: a file's name, for example, which may hold any character.

    >>> printable("a" + chr(27) + "[2J.nii")
    'a\\x1b[2J.nii'
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that is most like it, if any is.

    Args:
        name: as it was given.
        known: the names there are.

    >>> did_you_mean("epoch", ["epochs", "lr"]), did_you_mean("magic", ["epochs", "lr"])
    ("; did you mean 'epochs'?", '')
    """
    close = get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextmanager
def resumable(command: Callable[[], Sequence[str] | None]) -> Iterator[None]:
    """Within the block, Ctrl-C and what comes from outside carry the command that goes on.

    Args:
        command: gives its words, or None where nothing has begun; called only then.

    >>> try:
    ...     with resumable(lambda: ["continue", "my run"]):
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt as stop:
    ...     print(how_to_go_on(stop))
    continue 'my run'
    """
    try:
        yield
    except (KeyboardInterrupt, OSError, DataError, WorkerError) as error:
        words = command()
        if words is not None:
            error.__dict__["go_on"] = shlex.join(words)
        raise


def how_to_go_on(error: BaseException) -> str | None:
    """The command that `resumable` has given to an error, if any."""
    return error.__dict__.get("go_on")
