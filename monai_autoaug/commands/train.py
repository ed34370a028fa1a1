# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug train``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from monai_autoaug.commands.habits import (
    DEVICES,
    METHODS,
    NETWORKS,
    PRECISIONS,
    Command,
    amp_option,
    chosen_precision,
    key_values,
    offering,
    read_options,
)

if TYPE_CHECKING:
    from monai_autoaug.engines.folder import Run
    from monai_autoaug.engines.progress import Listener

__all__ = ["train"]


def _assignments(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, Any]:
    """`key_values` for an option that is repeated."""
    try:
        return key_values(values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _share(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | float | None:
    """A number of cases, or a share of them."""
    if value is None:
        return None
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no number") from error


_PATH = click.Path(path_type=Path)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--output", "-o", type=_PATH, help="Folder of the run.  [default: runs/METHOD]"),
    click.option("--method", shell_complete=offering(METHODS),
                 help="none, random, adversarial, task_driven, general_adversarial, joint_policy, bilevel, or one that"
                 " another package adds."
                 "  [default: adversarial]"),
    click.option("--method-option", "method_options", multiple=True, callback=_assignments, metavar="KEY=VALUE",
                 help="An option of the method, such as mode=affine; may be repeated."),
    click.option("--epochs", type=int, help="Epochs.  [default: 40]"),
    click.option("--iterations", type=int, help="Iterations an epoch.  [default: 50]"),
    click.option("--batch-size", type=int, help="Patches a batch.  [default: 4]"),
    click.option("--patch-size", type=int, nargs=3, help="Voxels D H W.  [default: from the data]"),
    click.option("--lr", "learning_rate", type=float, help="Learning rate of AdamW.  [default: 0.002]"),
    click.option("--weight-decay", type=float, help="Weight decay of AdamW.  [default: 0.0001]"),
    click.option("--network", shell_complete=offering(NETWORKS), help="unet, segresnet or dynunet.  [default: unet]"),
    click.option("--network-option", "network_options", multiple=True, callback=_assignments, metavar="KEY=VALUE",
                 help="An option of the network, such as channels=[8,16,32]; may be repeated."),
    click.option("--train-cases", type=int, help="Cases to learn from.  [default: all others]"),
    click.option("--validation-cases", callback=_share, help="Number or share of validation cases.  [default: 0.2]"),
    click.option("--meta-cases", callback=_share,
                 help="Number or share of the training cases that policies are learned from (meta-validation)."
                 "  [default: 0.25 with joint_policy, 0.2 with bilevel, else 0]"),
    click.option("--meta-split", metavar="fixed|resampled",
                 help="The same meta-validation cases all the time, or others each epoch."
                 "  [default: resampled with bilevel, else fixed]"),
    click.option("--meta-list", type=_PATH, metavar="FILE",
                 help="The meta-validation cases: a JSON or text list of names, or another data set's folder."),
    click.option("--split", type=_PATH, metavar="FILE",
                 help="JSON lists of names, train and validation, in place of --train-cases and --validation-cases."),
    click.option("--unlabelled", type=_PATH, metavar="DIR",
                 help="Images without labels, for a method that learns from these, too (task_driven)."),
    click.option("--validation-interval", type=int, help="Epochs between validations.  [default: 5]"),
    click.option("--spacing", type=float, nargs=3, help="Voxel size in mm.  [default: the median]"),
    click.option("--normalisation", multiple=True, metavar="auto|ct|zscore|percentile",
                 help="Of intensities, for all channels or repeated for each; auto: ct where a channel is named CT."
                 "  [default: auto]"),
    click.option("--bias-correction", is_flag=True, default=None, help="N4 bias correction of MR images."),
    click.option("--seed", type=int, help="Seed of everything but the split.  [default: 0]"),
    click.option("--split-seed", type=int, help="Seed of the split.  [default: 0]"),
    click.option("--device", shell_complete=offering(DEVICES),
                 help="auto (a GPU if there is one), cpu, cuda or cuda:1.  [default: auto]"),
    amp_option,
    click.option("--precision", shell_complete=offering(PRECISIONS),
                 help="In place of --amp: auto, mixed, float32, bfloat16 or float16.  [default: auto]"),
    click.option("--workers", type=int, help="Processes that cut patches.  [default: 0]"),
    click.option("--cache", type=_PATH, help="Keep preprocessed volumes here instead of in memory."),
    click.option("--tensorboard", is_flag=True, default=None,
                 help="Write scalars and pictures of samples for TensorBoard into the run's folder."),
)  # fmt: skip


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_EXAMPLES = (
    "monai-autoaug train DATA --output runs/learned --epochs 40",
    "monai-autoaug train DATA --method joint_policy --dry-run",
    "monai-autoaug train DATA --method bilevel --method-option update_every=5 --amp",
    "monai-autoaug train --config training.yaml --seed 1 --output runs/seed1",
    "monai-autoaug train --resume --output runs/learned",
)


@click.command(cls=Command, examples=_EXAMPLES, config=False)
@click.argument("data", type=_PATH, required=False)
@_with_options
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="YAML file of options by their names here or in TrainOptions (lr or learning_rate).")  # fmt: skip
@click.option("--resume", is_flag=True, help="Finish the run in --output, wherever it was stopped.")
@click.option("--dry-run", is_flag=True, help="Show the plan, with time and memory by a few real steps; write nothing.")
def train(config: Path | None, resume: bool, dry_run: bool, **given: Any) -> None:
    """Train a segmentation network on the data set in the folder DATA.

    The data set is audited first. The run's folder gets the trained network, the learned augmenters or policies
    (policy.json, drawn in policy.png), a log, the predictions of the validation cases with their Dice, and
    pictures. Options on the command line win over --config.

    Methods: none; random (unlearned control); adversarial (learned transformations that make the task harder);
    task_driven (learned deformations and intensity changes that help the task and look like --unlabelled images);
    general_adversarial (a learned affine map and a U-Net, which two discriminators keep within the class of the patch);
    joint_policy (learns which operations to augment with, for background and foreground, and which views to average at
    test time, from training cases that are set apart for it); bilevel (learns a distribution of transformations that
    lowers the loss on training cases set apart, others in each epoch).

    Two kinds of Dice are told: while training, on volumes resampled for the network (log.jsonl, whose keys
    "python -m pydoc monai_autoaug.engines.log" explains); at the end, on the voxels of the label files
    (validation.json).
    """
    from monai_autoaug.commands.console import bars, console
    from monai_autoaug.commands.results import finish, resume_command, show
    from monai_autoaug.engines.folder import Run
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.engines.run import train as begin
    from monai_autoaug.errors import resumable

    chosen = {name: value for name, value in given.items() if value not in (None, {}, ())}
    options = _resumed(chosen, config) if resume else _options(chosen, config)
    run = Run(Path(options["folder" if resume else "output"]))
    if dry_run:
        _foresee(run, options, resume)
        return
    with resumable(lambda: resume_command(run)), bars() as listener:
        if resume:
            _go_on(run, options, listener)
        else:
            begin(TrainOptions.from_mapping(options), listener=listener)
        evaluation = finish(run, listener=listener)
    show(run, evaluation, console)


def _options(chosen: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Options of the file, then those of the command line."""
    from monai_autoaug.errors import ConfigError

    content = {} if config is None else _from_file(config)
    if {"amp", "precision"} & set(chosen):  # which win over the file's
        content = {name: value for name, value in content.items() if name not in ("amp", "precision")}
    content |= chosen
    precision = chosen_precision(content.get("precision"), content.pop("amp", None))
    content |= {} if precision is None else {"precision": precision}
    if "data" not in content:
        raise ConfigError("which data? Give the folder: monai-autoaug train DATA")
    content.setdefault("output", Path("runs") / str(content.get("method", "adversarial")))
    return content


def _from_file(config: Path) -> dict[str, Any]:
    """The options of a YAML file, by the names of `TrainOptions`; each may be spelt as on the command line too."""
    from monai_autoaug.errors import ConfigError

    names = _spellings()
    found: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for key, value in read_options(config).items():
        name = names.get(key.replace("-", "_"), key)
        if name in spelt:
            raise ConfigError(f"{config}: {spelt[name]} and {key} are one option; give one of them")
        spelt[name] = key
        found[name] = _pairs(config, key, value) if name in ("method_options", "network_options") else value
    return found


def _spellings() -> dict[str, str]:
    """The command line's spelling of each option, with underscores -> its name: ``lr`` is ``learning_rate``."""
    return {
        spelling.removeprefix("--").replace("-", "_"): option.name
        for option in train.params
        for spelling in (*option.opts, option.name or "")
        if option.name is not None
    }


def _pairs(config: Path, key: str, value: Any) -> Any:
    """A table of names and values as it is; ``KEY=VALUE``, or a list of these, as on the command line."""
    from monai_autoaug.errors import ConfigError

    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return value
    try:
        return key_values(texts)
    except ValueError as error:
        raise ConfigError(f"{config}: {key}: {error}") from error


def _resumed(chosen: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """A resumed run has its options already; only where it runs may change."""
    from monai_autoaug.errors import ConfigError

    if "output" not in chosen:
        raise ConfigError("which run? Give its folder: monai-autoaug train --resume --output RUN")
    extra = sorted(set(chosen) - {"output", "device", "workers"}) + (["config"] if config is not None else [])
    if extra:
        raise ConfigError(
            f"a resumed run keeps the options it was started with; leave out {', '.join(extra)}"
            " (only --device and --workers may change)"
        )
    return {"folder": chosen.pop("output"), **chosen}


def _foresee(run: Run, options: dict[str, Any], resume: bool) -> None:
    """Show what would be done."""
    from monai_autoaug.commands.console import bars
    from monai_autoaug.commands.foresight import left_of, show_preview
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.engines.preview import preview

    chosen, done = left_of(run, options) if resume else (TrainOptions.from_mapping(options), 0)
    with bars() as listener:
        found = preview(chosen, done=done, listener=listener)
    show_preview(found, done)


def _go_on(run: Run, options: dict[str, Any], listener: Listener) -> None:
    """Train to the end, unless only the evaluation and the pictures are missing, which are made afterwards."""
    from monai_autoaug.commands.results import missing
    from monai_autoaug.engines.run import resume
    from monai_autoaug.errors import ConfigError

    if not run.summary.exists():
        resume(listener=listener, **options)
    elif not missing(run):
        raise ConfigError(f"{run.folder}: this run has ended and lacks nothing; start another one with more epochs")
