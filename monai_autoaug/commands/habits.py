# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What all commands have in common: examples in their help, options from a file, ``--debug``, ``--amp``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

__all__ = [
    "DEBUG", "DEVICES", "METHODS", "NETWORKS", "PRECISIONS", "WORDS", "Command", "amp_option", "chosen_precision",
    "device_option", "key_values", "offering", "read_options",
]  # fmt: skip

# in the context's memory: whether an error is shown with where it comes from, and what the command was called with
DEBUG, WORDS = "monai_autoaug.debug", "monai_autoaug.words"
# what a shell offers; the packages that know better take seconds to import
METHODS = ("none", "random", "adversarial", "task_driven", "general_adversarial", "joint_policy", "bilevel")
NETWORKS = ("unet", "segresnet", "dynunet")
PRECISIONS = ("auto", "mixed", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
_NEVER = {"config", "debug", "help", "dry_run", "list_arms", "resume"}  # what one call does differently from another


class Command(click.Command):
    """A command whose help shows examples, and that takes ``--config`` and ``--debug``.

    Args:
        arguments: of ``click.Command``.
        examples: calls, as they are typed.
        config: whether options are read from a file as they stand here; False: the command reads it itself.
        options: of ``click.Command``.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), config: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)
        if config:
            self.params.append(
                click.Option(
                    ["--config"], type=click.Path(path_type=Path), metavar="FILE", is_eager=True, expose_value=False,
                    callback=_from_file, help="YAML file of arguments and options by their names here.",
                )
            )  # fmt: skip
        self.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show where an error comes from.")
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words, to say how the command can be called again; ``--debug`` counts from the first error on."""
        ctx.meta[WORDS] = list(args)
        ctx.meta[DEBUG] = ctx.meta.get(DEBUG, False) or "--debug" in args
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, at the end."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def key_values(texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are read as YAML, so that numbers are numbers and ``[8, 16]`` is a list.

    Raises:
        ValueError: a text is no such pair.

    >>> key_values(["mode=affine", "width=8"])
    {'mode': 'affine', 'width': 8}
    """
    import yaml

    from monai_autoaug.yaml_values import parse

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key.strip()] = parse(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{text!r} is no key=value ({error})") from error
        if not equals or not key.strip():
            raise ValueError(f"{text!r} is no key=value")
    return found


def read_options(file: Path) -> dict[str, Any]:
    """What a YAML file of options holds, by the names that it gives them.

    Args:
        file: whose names may be written with hyphens or underscores.

    Raises:
        ConfigError: it can't be read, or holds something else.
    """
    import yaml

    from monai_autoaug.errors import ConfigError
    from monai_autoaug.reading import MEBIBYTE, read_text
    from monai_autoaug.yaml_values import parse

    try:
        content: Any = parse(read_text(file, largest=MEBIBYTE)) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: can't be read as YAML ({error})") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{file}: must hold options by name, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _from_file(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Take the options of a file as defaults, so that those on the command line win."""
    from monai_autoaug.errors import ConfigError, did_you_mean

    if value is None or ctx.resilient_parsing:  # a shell asks what could be typed next
        return
    names = {
        spelling.removeprefix("--").replace("-", "_"): known
        for known in ctx.command.params
        for spelling in (*known.opts, known.name or "")
        if known.name not in _NEVER and (spelling.startswith("--") or spelling == known.name)
    }
    found: dict[str, Any] = {}
    for key, given in read_options(value).items():
        known = names.get(key.replace("-", "_"))
        if known is None or known.name is None:
            raise ConfigError(
                f"{value}: there is no option {key!r}; there are {', '.join(names)}{did_you_mean(key, names)}"
            )
        if known.name in found:
            raise ConfigError(f"{value}: {key} is given twice, under two names of one option")
        if given is not None:
            found[known.name] = _as_typed(known, given, f"{value}: {key}")
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _as_typed(parameter: click.Parameter, value: Any, where: str) -> Any:
    """A value of a YAML file as someone would have typed it.

    Raises:
        ConfigError: nobody could have.
    """
    import yaml

    from monai_autoaug.errors import ConfigError

    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, got {value!r}")
        return value
    several = getattr(parameter, "multiple", False)
    if isinstance(value, Mapping) and several:
        return [f"{k}={yaml.safe_dump(v, default_flow_style=True).split(chr(10))[0]}" for k, v in value.items()]
    if isinstance(value, list) and not any(isinstance(word, list | Mapping) for word in value):
        if several or parameter.nargs != 1:
            return [str(word) for word in value]
        if isinstance(parameter.type, click.types.StringParamType):
            return ",".join(map(str, value))  # what is typed with commas
    if isinstance(value, list | Mapping):
        raise ConfigError(f"{where} takes one value, got {value!r}")
    return [str(value)] if several else str(value)


def offering(words: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """What completes a value in a shell; others may be given all the same.

    Args:
        words: that are offered.
    """
    return lambda ctx, parameter, begun: [word for word in words if word.startswith(begun)]


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--device``."""
    return click.option(
        "--device", default="auto", show_default=True, shell_complete=offering(DEVICES),
        help="auto (a GPU if there is one), cpu, cuda or cuda:1.",
    )(command)  # fmt: skip


def amp_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--amp``."""
    return click.option(
        "--amp/--no-amp", default=None,
        help="Mixed precision in the half precision that suits the device, or none.  [default: on a GPU]",
    )(command)  # fmt: skip


def chosen_precision(precision: str | None, amp: bool | None) -> str | None:
    """What ``--precision`` and ``--amp`` say together; None: neither was given.

    Raises:
        ConfigError: both were given.

    >>> chosen_precision(None, True), chosen_precision("float32", None)
    ('mixed', 'float32')
    """
    from monai_autoaug.errors import ConfigError

    if amp is None:
        return precision
    if not isinstance(amp, bool):
        raise ConfigError(f"amp must be true or false, got {amp!r}")
    if precision is not None:
        raise ConfigError(f"--precision and --{'' if amp else 'no-'}amp both choose the precision; give one of them")
    return "mixed" if amp else "float32"
