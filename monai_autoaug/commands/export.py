# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug export``."""

from __future__ import annotations

from pathlib import Path

import click

from monai_autoaug.commands.habits import Command

__all__ = ["export"]

# a target and how its files must end, for its library to read them
SUFFIXES = {"monai": (".yaml", ".yml"), "batchgeneratorsv2": (".py",), "torchio": (".py",), "markdown": (".md",)}


_EXAMPLES = (
    "monai-autoaug export runs/policy --to monai --output policy.yaml",
    "monai-autoaug export policy.json --to torchio --output policy.py",
    "monai-autoaug export runs/policy --to markdown",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("policy", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, type=click.Choice(list(SUFFIXES)), help="What to write.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File to write.  [default: standard output]")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there already.")
def export(policy: Path, target: str, output: Path | None, overwrite: bool) -> None:
    """Write POLICY, a policy.json or the folder of a run that has one, as something that runs without this package.

    For monai a configuration of transforms (YAML), for batchgeneratorsv2 and torchio a Python file, for markdown
    tables. What the target does otherwise than this package is printed, and stands at the head of the file.
    """
    from monai_autoaug.commands.console import check_file, console
    from monai_autoaug.errors import ConfigError
    from monai_autoaug.policies import load
    from monai_autoaug.policies.export import export as exported
    from monai_autoaug.writing import write_text

    if policy.is_dir() and not (policy / "policy.json").exists():
        raise ConfigError(f"{policy}: holds no policy.json, which method joint_policy alone learns; give a run of it")
    if output is not None:
        if output.suffix not in SUFFIXES[target]:
            raise ConfigError(
                f"--output: {output} must end in {' or '.join(SUFFIXES[target])}, or {target} can't read it"
            )
        if output.exists() and not output.is_dir() and not overwrite:
            raise ConfigError(
                f"--output: {output} is there already; choose another name, or replace it with --overwrite"
            )
        check_file("--output", output)
    result = exported(load(policy / "policy.json" if policy.is_dir() else policy), target)
    if output is None:
        click.echo(result.text, nl=False)
    else:
        write_text(output, result.text)
        console.print(f"wrote {output}", markup=False)
    if result.limits:
        click.echo("\nWhat to know, and what is otherwise there:", err=output is None)
    for limit in result.limits:
        click.echo(f"- {limit}", err=output is None)
