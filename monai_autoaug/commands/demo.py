# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug demo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

__all__ = ["demo"]

_CASES, _TEST = 24, 2
_UNLABELLED = 8  # images of other subjects, for a method that learns from these, too
# patches smaller than the volumes: 18 cases are few, and cut out at random places they are more
_TRAINING: dict[str, Any] = {
    "epochs": 20,
    "iterations": 30,
    "patch_size": (32, 32, 24),
    "validation_cases": 0.25,
    "validation_interval": 4,
}


@click.command()
@click.option("--output", "-o", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--method", default="adversarial", show_default=True,
              help="none, random, adversarial, task_driven, general_adversarial, joint_policy or bilevel.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of data and training.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option("--cases", default=_CASES, show_default=True, type=click.IntRange(min=8),
              help="Labelled volumes. A quarter of them validate, the others train; of those joint_policy"
              " sets a quarter apart.")  # fmt: skip
@click.option("--size", default=48, show_default=True, type=click.IntRange(min=16), help="Voxels a side.")
@click.option("--epochs", default=_TRAINING["epochs"], show_default=True, type=click.IntRange(min=1), help="Epochs.")
def demo(output: Path, method: str, seed: int, device: str, cases: int, size: int, epochs: int) -> None:
    """Do everything on a synthetic data set: write it, train, predict, evaluate, draw.

    Takes less than five minutes on two CPU cores. Nothing is downloaded.
    """
    from monai_autoaug.commands.console import bars, console, counter
    from monai_autoaug.commands.results import finish, resume_command, show
    from monai_autoaug.data import write_phantom
    from monai_autoaug.engines.folder import Run
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.engines.prediction import predict
    from monai_autoaug.engines.run import train
    from monai_autoaug.errors import ConfigError, resumable

    if Run(output / "run").config.exists():
        raise ConfigError(f"{output} holds a demo already: remove it, or choose another folder with --output")
    options = TrainOptions(
        output / "data", output / "run", method=method, seed=seed, device=device, **_TRAINING | {"epochs": epochs}
    )
    with resumable(lambda: resume_command(Run(options.output))), bars() as listener:
        write_phantom(
            options.data, cases=cases, size=size, seed=seed, test=_TEST, progress=counter(listener, "writing")
        )
        if options.learns_from_unlabelled:
            options = replace(options, unlabelled=output / "unlabelled" / "imagesTs")
            write_phantom(output / "unlabelled", cases=1, size=size, seed=seed + 1, test=_UNLABELLED)
        run = train(options, listener=listener)
        evaluation = finish(run, listener=listener)
    with bars() as listener:
        predict(run.folder, options.data / "imagesTs", output / "predictions", device=device, listener=listener)
    show(run, evaluation, console)
    console.print(f"predictions of {_TEST} images without a label are in {output / 'predictions'}", markup=False)
