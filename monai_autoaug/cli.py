# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The command line: ``monai-autoaug check | train | predict | evaluate | demo | nnunet``."""

from __future__ import annotations

import errno
import warnings
from importlib import import_module
from typing import Any

import click

from monai_autoaug import __version__
from monai_autoaug.errors import AutoAugError, did_you_mean, how_to_go_on

__all__ = ["main"]

# name -> where it is, and what the list of commands says; a command's module is imported when it is called
COMMANDS = {
    "check": ("monai_autoaug.commands.check:check", "Audit a data set: print every fault, refuse what can't be used."),
    "train": ("monai_autoaug.commands.train:train", "Train a network on a folder of NIfTI files."),
    "predict": ("monai_autoaug.commands.predict:predict", "Segment images with a trained run."),
    "evaluate": ("monai_autoaug.commands.evaluate:evaluate", "Compare predictions with labels."),
    "demo": ("monai_autoaug.commands.demo:demo", "Do everything on a synthetic data set, in minutes."),
    "nnunet": ("monai_autoaug.nnunet.cli:nnunet_commands", "Learned augmentation inside nnU-Net."),
}
INTERRUPTED = 130
# what torch says of itself while MONAI and nnU-Net are imported: nothing that a user of a command could do about
TORCH_JIT = r"`torch\.jit\.\w+` is (deprecated|not supported)"


class Failure(click.ClickException):
    """A fault that the user can mend: one message, no traceback."""

    exit_code = 2

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

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; 2 for a fault of options or data, 130 for an interruption."""
        try:
            with warnings.catch_warnings():
                for kind in (FutureWarning, DeprecationWarning):
                    warnings.filterwarnings("ignore", message=TORCH_JIT, category=kind)
                return super().invoke(ctx)
        except AutoAugError as error:
            if ctx.params["debug"]:
                raise
            raise Failure(f"{error}{_then(error)}") from error
        except OSError as error:
            if ctx.params["debug"] or error.errno == errno.EPIPE:  # click ends quietly when nobody reads any more
                raise
            raise Failure(_told(error)) from error
        except KeyboardInterrupt as stop:
            if ctx.params["debug"]:
                raise
            go_on = how_to_go_on(stop)
            click.secho(f"stopped; go on with: {go_on}" if go_on else "stopped", fg="yellow", err=True)
            ctx.exit(INTERRUPTED)


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
def main(debug: bool) -> None:
    """Learned data augmentation for 3D medical image segmentation, with MONAI and nnU-Net.

    Not a medical device: for research only.
    """
