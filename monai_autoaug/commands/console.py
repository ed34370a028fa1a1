# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the commands show: a progress bar for every stage, and tables."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from monai_autoaug.errors import AutoAugWarning

if TYPE_CHECKING:
    from monai_autoaug.engines.progress import Listener, Progress
    from monai_autoaug.evaluation import Evaluation

__all__ = ["bars", "check_file", "console", "counter", "dice_table", "epoch_line", "make_console", "size"]



def make_console() -> Console:
    """The terminal's, or one for text that is kept: in a file, a pipe or the cell of a notebook.

    Jupyter sets FORCE_COLOR and gives commands a terminal, but its cells show each frame of a bar below the last one;
    and what is kept has no width of its own.
    """
    if sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ:
        return Console(highlight=False)
    return Console(highlight=False, width=120, force_terminal=False, force_jupyter=False)


console = make_console()


class _State(ProgressColumn):
    """Epoch, loss and Dice, as far as there are any."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("state", "")), style="cyan")


@contextmanager
def bars() -> Iterator[Listener]:
    """A listener that draws one progress bar a stage."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(bar_width=10), MofNCompleteColumn(),
        _State(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with warnings.catch_warnings(), Bars(*columns, console=console) as drawn:
        # one line an import and the same for everyone: MONAI says which of its own kernels it found
        warnings.filterwarnings("ignore", message=".*Using PyTorch native grid_sample.*")
        warnings.showwarning = _warn
        tasks: dict[str, int] = {}

        def hear(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = drawn.add_task(progress.stage, total=progress.total)
            if progress.note is not None:
                console.print(escape(progress.note))
            if progress.ended is not None and progress.ended.dice:
                console.print(epoch_line(progress), markup=False, soft_wrap=True)
            task = tasks[progress.stage]
            drawn.update(task, completed=progress.done, total=progress.total, state=_state(progress))  # type: ignore[arg-type]  # rich's TaskID is an int

        yield hear


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Our own warnings in one line on stderr, those of others as Python shows them."""
    if issubclass(category, AutoAugWarning):
        click.secho(f"warning: {message}", fg="yellow", err=True)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def check_file(option: str, path: Path) -> None:
    """Refuse, before any work, a file that couldn't be written after it.

    Args:
        option: that names the file.
        path: need not exist.

    Raises:
        ConfigError: it is a folder, or its folder can't be made or written.
    """
    from monai_autoaug.engines.claims import check_writable
    from monai_autoaug.errors import ConfigError

    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder; give the name of a file")
    check_writable(option, path.parent)


def counter(listener: Listener, stage: str) -> Callable[[int, int], None]:
    """What tells a listener of a stage that is counted.

    Args:
        listener: of `bars`.
        stage: its name.
    """
    from monai_autoaug.engines.progress import Progress

    return lambda done, total: listener(Progress(stage, done, total))


def _state(progress: Progress) -> str:
    """What is known of a training run, in a few words."""
    words = []
    if progress.epochs:
        words.append(f"epoch {progress.epoch}/{progress.epochs}")
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.3f}")
    if progress.dice is not None:
        words.append(f"Dice {progress.dice:.3f}")
    return " ".join(words)


def epoch_line(progress: Progress) -> str:
    """What is known of a validated epoch that has ended, in a line.

    Args:
        progress: with ``ended``.

    >>> from monai_autoaug.engines.progress import Ended, Progress
    >>> ended = Ended(12.34, 2080.0, None, 0.4213, {"head": 0.81, "body": 0.79}, {"foreground": 0.97})
    >>> epoch_line(Progress("training", 10, 20, 5, 10, dice=0.8, ended=ended))
    'epoch 5/10: Dice 0.800 (head 0.810, body 0.790), loss 0.421, policy entropy foreground 0.97, 12.3 s, 2.0 GiB'
    """
    ended = progress.ended
    assert ended is not None  # noqa: S101  # for the type checker: the caller has looked

    def each(values: Mapping[str, float], digits: int) -> str:
        return ", ".join(f"{name} {'-' if v != v else f'{v:.{digits}f}'}" for name, v in values.items())

    words = [f"Dice {_figure(progress.dice)} ({each(ended.dice, 3)})", f"loss {_figure(ended.loss)}"]
    words += [f"policy entropy {each(ended.entropy, 2)}"] if ended.entropy else []
    words += [f"{ended.seconds:.1f} s"]
    words += [] if ended.memory is None else [size(ended.memory)]
    words += [] if ended.device_memory is None else [f"{size(ended.device_memory)} on the GPU"]
    return f"epoch {progress.epoch}/{progress.epochs}: {', '.join(words)}"


def _figure(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def size(mib: float) -> str:
    """Memory, for people.

    >>> size(812.4), size(20480.0)
    ('812 MiB', '20.0 GiB')
    """
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def dice_table(evaluation: Evaluation, title: str, metric: str = "dice") -> Table:
    """Mean and 95 % interval of each structure; what has no interval, because of too few cases, says so."""
    from monai_autoaug.evaluation import LEAST_CASES, METRICS

    unit = METRICS[metric].unit
    heading = {"dice": "Dice", "hd95": "HD95"}[metric] + (f" in {unit}" if unit else "")
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    for name in ("structure", heading, "95 % interval", "cases"):
        table.add_column(name, justify="left" if name == "structure" else "right")
    for name, value, count in evaluation.rows(metric):
        style = "bold" if name == "mean" else None
        bounds = f"{value.low:.3f} to {value.high:.3f}" if value.low == value.low else "-"
        mean = f"{value.mean:.3f}" if value.mean == value.mean else "-"
        table.add_row(escape(name), mean, bounds, str(count), style=style)
        if bounds == "-":
            table.caption = f"no interval of fewer than {LEAST_CASES} cases"
    return table
