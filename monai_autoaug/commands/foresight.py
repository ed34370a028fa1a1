# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What ``--dry-run`` shows of a training, a prediction or a comparison: its plan, and about what it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monai_autoaug.commands.console import console, size

if TYPE_CHECKING:
    from monai_autoaug.engines.folder import Run
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.engines.prediction_preview import Foresight
    from monai_autoaug.engines.preview import Preview
    from monai_autoaug.evaluation.comparison import Plan

__all__ = ["left_of", "show_cells", "show_foresight", "show_preview"]


def left_of(run: Run, chosen: dict[str, Any]) -> tuple[TrainOptions, int]:
    """The options of a run that was stopped, and how many epochs it has behind it.

    Args:
        run: that is to be resumed.
        chosen: options that change where it runs, and "folder".

    Raises:
        ConfigError: there is no run, or it has ended.
    """
    from monai_autoaug.engines.folder import read_json
    from monai_autoaug.engines.options import TrainOptions
    from monai_autoaug.errors import ConfigError

    config = read_json(run.config)
    if run.summary.exists():
        raise ConfigError(f"{run.folder}: this run has ended; start another one with more epochs")
    changes = {name: value for name, value in chosen.items() if name != "folder"}
    options = TrainOptions.from_mapping(config["options"] | {"output": run.folder} | changes)
    done = len(run.log.read_text(encoding="utf-8").splitlines()) if run.checkpoint.exists() and run.log.exists() else 0
    return options, done


def show_preview(found: Preview, done: int = 0) -> None:
    """Print what a training will be.

    Args:
        found: by `engines.preview`.
        done: epochs that it has behind it.
    """
    plan, options = found.plan, found.plan.options
    margin = f", cut {_by(plan.margin)} larger on each side" if any(plan.margin) else ""
    doubts = sum(finding.severity == "warn" for finding in found.findings)
    rows = {
        "method": options.method,
        "cases": plan.told(),
        "audit": f"{doubts} warning{'s' * (doubts != 1)}" + ("; monai-autoaug check shows them" if doubts else ""),
        "volumes": _volumes(found),
        "patches": f"{options.batch_size} a batch of {_by(plan.patch_size)} voxels{margin}",
        "network": f"{options.network}, {found.parameters / 1e6:.2f} M parameters; {found.device}, {found.precision}",
        "epochs": _epochs(found, done),
        "time": _time(found),
        "memory": _memory(found.host_mib, found.device_mib),
        "output": f"{options.output} (nothing was written)",
    }
    _show(rows)
    for sentence in found.said:
        console.print(sentence, markup=False)


def _by(numbers: Iterable[float]) -> str:
    """Sides of a box."""
    return " x ".join(f"{n:.3g}" if isinstance(n, float) else str(n) for n in numbers)


def _volumes(found: Preview) -> str:
    volumes = found.preprocessing
    outputs = f"{volumes.num_outputs} {'classes' if volumes.regions is None else 'regions'}"
    channels = f"{len(volumes.channels)} channel{'s' * (len(volumes.channels) != 1)}"
    where = "in memory" if found.plan.options.cache is None else "on disk, in the cache"
    return (
        f"{_by(volumes.median_shape)} voxels of {_by(volumes.spacing)} mm (median), {channels}, {outputs};"
        f" {size(found.volumes_mib)} {where}"
    )


def _epochs(found: Preview, done: int) -> str:
    options, left = found.plan.options, sum(found.phases.values())
    behind = f" of {options.epochs}, {done} are done" if done else ""
    phases = ", ".join(f"{name} {epochs}" for name, epochs in found.phases.items())
    interval = options.validation_interval
    often = "each" if interval == 1 else f"every {interval} epochs"
    return f"{left}{behind}; {options.iterations} iterations each, validated {often}" + (
        f"; phases: {phases}" if len(found.phases) > 1 else ""
    )


def _time(found: Preview) -> str:
    from monai_autoaug.engines.pace import STEPS
    from monai_autoaug.evaluation.comparison.tables import duration

    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in found.seconds.items() if seconds >= 0.05)
    by = f"{STEPS} real steps" + (" of each phase" if len(found.phases) > 1 else "")
    return f"about {duration(found.total)}: {stages} (by {by} on this machine; evaluation and pictures come on top)"


def _memory(host: float | None, device: float | None) -> str:
    told = [] if host is None else [f"about {size(host)}"]
    told += [] if device is None else [f"{size(device)} on the GPU"]
    return ", ".join(told) or "unknown: this system doesn't tell"


def show_foresight(found: Foresight) -> None:
    """Print what a prediction will be.

    Args:
        found: by `engines.prediction_preview.foresee`.
    """
    from monai_autoaug.evaluation.comparison.tables import duration

    refused = f"; {len(found.failed)} can't be used" if found.failed else ""
    there = f"; {found.there} are there already" if found.there else ""
    rows = {
        "images": f"{found.cases} to predict{there}{refused}",
        "windows": f"{found.windows} of {_by(found.patch_size)} voxels in an image of {_by(found.shape)}",
        "views": str(found.views),
        "device": f"{found.device}, {found.precision}",
        "time": f"about {duration(found.seconds)} (by the first image and a window)",
        "memory": _memory(found.host_mib, found.device_mib),
        "output": f"{found.output} (nothing was written)",
    }
    _show(rows)


def show_cells(plan: Plan, device: str) -> None:
    """Print the cells of a comparison, in which state they are, and about how long they take.

    Args:
        plan: of the comparison.
        device: that this process would train on.

    Raises:
        ConfigError: an arm can't work, or the folder holds another comparison.
    """
    from rich.markup import escape
    from rich.table import Table

    from monai_autoaug.commands.console import bars
    from monai_autoaug.evaluation.comparison.comparing import check_arms
    from monai_autoaug.evaluation.comparison.estimate import estimate
    from monai_autoaug.evaluation.comparison.notes import counted, power_note
    from monai_autoaug.evaluation.comparison.scheduling import state_of
    from monai_autoaug.evaluation.comparison.tables import duration

    plan.check()
    check_arms(plan)
    with bars() as listener:
        found, parts = estimate(plan, device, listener=listener), plan.parts
    unlabelled = f", {len(plan.unlabelled)} unlabelled" if plan.unlabelled else ""
    console.print(
        f"{counted(len(parts.test), 'test case')}, {counted(len(parts.validation), 'validation case')}{unlabelled},"
        f" {len(parts.pool)} to train on; reference {plan.reference}", markup=False,
    )  # fmt: skip
    table = Table("arm", "cases", "seed", "state", "about")
    cells = plan.cells()
    for cell in cells:
        seconds = found.seconds.get(cell.name)
        state = state_of(plan.place(cell))
        about = "" if state == "done" else "?" if seconds is None else duration(seconds)
        table.add_row(escape(cell.arm.name), str(cell.cases), str(cell.seed), escape(state), about)
    console.print(table)
    done = sum(plan.place(cell).done for cell in cells)
    total = f"about {duration(found.total)} in one process" if found.seconds else "nothing is left to do"
    total = "unknown" if found.unknown and not found.seconds else total
    console.print(f"{len(cells)} cells, {done} done; time: {total}, by {found.basis}", markup=False)
    if found.host_mib is not None:
        gpu = "" if found.device_mib is None else f", {size(found.device_mib)} on the GPU"
        console.print(f"memory: up to about {size(found.host_mib)} a process{gpu}", markup=False)
    if plan.equal_time:
        console.print("Then all arms but the reference train again at equal time, which takes as long as the reference"
                      f" does, for each of them: {_again(plan, found.seconds)}", markup=False)  # fmt: skip
    power = power_note(len(parts.test), (len(plan.arms) - 1) * len(plan.counts) * (2 if plan.equal_time else 1))
    if power:
        console.print(power, style="yellow", markup=False)


def _again(plan: Plan, seconds: Mapping[str, float]) -> str:
    """How long the cells of equal time take, if that is known."""
    from monai_autoaug.evaluation.comparison.tables import duration

    own: Sequence[float] = [
        seconds[cell.name] for cell in plan.cells() if cell.arm.name == plan.reference and cell.name in seconds
    ]
    return f"about {duration(sum(own) * (len(plan.arms) - 1))}" if own else "unknown"


def _show(rows: dict[str, str]) -> None:
    """A line a row, whose name stands out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(text))
    console.print(table)
