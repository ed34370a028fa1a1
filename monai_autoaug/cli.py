# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The command line: ``monai-autoaug check | train | predict | evaluate | compare | export | report | demo | nnunet``.

A command ends with one of ``EXIT_CODES``, and without a traceback unless ``--debug`` is given.
"""

from __future__ import annotations

import errno
import os
import tempfile
import traceback
import warnings
from importlib import import_module
from typing import Any, NoReturn

import click

from monai_autoaug import __version__
from monai_autoaug.commands.habits import DEBUG
from monai_autoaug.errors import AutoAugError, did_you_mean, how_to_go_on

__all__ = ["EXIT_CODES", "main"]

# name -> where it is, and what the list of commands says; a command's module is imported when it is called
COMMANDS = {
    "check": ("monai_autoaug.commands.check:check", "Audit a data set: print every fault, refuse what can't be used."),
    "train": ("monai_autoaug.commands.train:train", "Train a network on a folder of NIfTI files."),
    "predict": ("monai_autoaug.commands.predict:predict", "Segment images with a trained run."),
    "evaluate": ("monai_autoaug.commands.evaluate:evaluate", "Compare predictions with labels."),
    "compare": ("monai_autoaug.commands.compare:compare", "Train methods and baselines, and say which is better."),
    "export": ("monai_autoaug.commands.export:export", "Write a learned policy for another library."),
    "report": ("monai_autoaug.commands.report:report", "Write a page about what a training learned."),
    "demo": ("monai_autoaug.commands.demo:demo", "Do everything on a synthetic data set, in minutes."),
    "nnunet": ("monai_autoaug.nnunet.cli:nnunet_commands", "Learned augmentation inside nnU-Net."),
}
FOUND, FAULT, UNFORESEEN, INTERRUPTED = 1, 2, 3, 130
EXIT_CODES = {
    0: "done",
    FOUND: "done, and some of it is not in order: check found what forbids training, predict or compare could not do "
    "everything",
    FAULT: "not done: an option, a file or a data set can't be used; the message says what to do",
    UNFORESEEN: "not done: an error that nobody has thought of; the message names a file that says where it comes from",
    INTERRUPTED: "stopped by Ctrl-C; the message says how to go on",
}
# what torch says of itself while MONAI and nnU-Net are imported: nothing that a user of a command could do about
TORCH_JIT = r"`torch\.jit\.\w+` is (deprecated|not supported)"


class Failure(click.ClickException):
    """What ends a command: one message, no traceback.

    Args:
        message: for the user.
        exit_code: one of ``EXIT_CODES``.
    """

    def __init__(self, message: str, exit_code: int = FAULT) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # of the class for click, which reads it off the instance

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.secho(f"error: {self.message}", fg="red", err=True)


class Commands(click.Group):
    """Finds subcommands by name, and turns what goes wrong into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say which one may have been meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Exit codes, and how to get completion."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in EXIT_CODES.items()])
        with formatter.section("Completion of commands and options"):
            formatter.write_text(
                'In ~/.bashrc: eval "$(_MONAI_AUTOAUG_COMPLETE=bash_source monai-autoaug)"; in ~/.zshrc the same with'
                " zsh_source; of fish: _MONAI_AUTOAUG_COMPLETE=fish_source monai-autoaug | source"
            )

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and turn what goes wrong into a message and one of ``EXIT_CODES``."""
        try:
            with warnings.catch_warnings():
                for kind in (FutureWarning, DeprecationWarning):
                    warnings.filterwarnings("ignore", message=TORCH_JIT, category=kind)
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt as stop:
            if ctx.meta.get(DEBUG):
                raise
            go_on = how_to_go_on(stop)
            click.secho(f"stopped; go on with: {go_on}" if go_on else "stopped", fg="yellow", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:  # whatever it is, a user gets a message
            if ctx.meta.get(DEBUG) or getattr(error, "errno", None) == errno.EPIPE:  # click ends quietly, unread
                raise
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    """End with a message.

    Raises:
        Failure: always.
    """
    if isinstance(error, AutoAugError):
        raise Failure(f"{error}{_then(error)}") from error
    if isinstance(error, OSError):
        raise Failure(_told(error)) from error
    kind, reason = type(error).__name__, (str(error).strip().splitlines() or ["without a message"])[0]
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error):
        raise Failure(
            f"there is too little memory ({reason}). To do: half precision (--amp) or another --device; in training"
            " smaller patches (--patch-size) or fewer of them (--batch-size): --dry-run tells how much it takes"
        ) from error
    raise Failure(
        f"{kind}: {reason}. This was not foreseen: {_traceback_of(error)} says where it comes from. To do: if options"
        " and data are in order, report it with this file",
        UNFORESEEN,
    ) from error


def _traceback_of(error: Exception) -> str:
    """The file that holds where an error comes from; it is the user's to keep or to remove."""
    opened, name = tempfile.mkstemp(prefix="monai-autoaug-", suffix=".txt")
    with os.fdopen(opened, "w", encoding="utf-8") as file:
        file.write(f"monai_autoaug {__version__}\n")
        file.writelines(traceback.format_exception(error))
    return name


def _told(error: OSError) -> str:
    """Which file, why, and what to do."""
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "free some space"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "choose a file or folder that you may use, or change its permissions"
    else:
        remedy = "see that the path is right and can be used; monai-autoaug --debug shows where this comes from"
    return f"{where}{error.strerror or error}. To do: {remedy}{_then(error)}"


def _then(error: BaseException) -> str:
    """How to go on with what was begun, at the end of what is to be done before."""
    go_on = how_to_go_on(error)
    if not go_on:
        return ""
    told = isinstance(error, OSError) or "To do: " in str(error)  # what is to be done before
    return f"{', then' if told else '. To do: correct that, then'} go on with: {go_on}"


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
@click.version_option(__version__, prog_name="monai-autoaug")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Learned data augmentation for 3D medical image segmentation, with MONAI and nnU-Net.

    Not a medical device: for research only.
    """
    ctx.meta[DEBUG] = debug
