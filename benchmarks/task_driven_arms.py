# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Paper 001's Table 1 in small: ``python benchmarks/task_driven_arms.py DATA --output task_driven.json``.

Every cell (row, labelled volumes, seed) is one ``monai-autoaug train``, and ``predict`` of 20 test cases that no cell
trains on or validates with. As in the paper the test cases, 2 validation cases, 25 unlabelled images and a pool of 10
from which each seed draws its 1 or 3 labelled volumes are chosen once (by ``--split-seed``). Rows are those of
`methods.task_driven_comparisons`, by default the paper's own: none, affine, random elastic, random intensity, learned
deformation, learned intensity, both, Mixup, both + Mixup; those learned without regularisation are rows, too
(``--rows``). Its rows of adversarial training of the segmentation network (Adv Tr SL and SSL) are left out: they are
methods of others, which this package doesn't have.

The network that is deployed is updated equally often in all rows, ``--epochs`` times ``--iterations``; a row with
generators trains longer by ``--generator-length`` times that for each of them, which the column of CPU time shows. A
cell that the output file holds already is not run again, and one that was interrupted goes on. The table has the mean
over seeds of the mean foreground Dice of the test cases, its standard deviation over seeds, and the difference to the
row that the paper compares with, paired by case with a 95 % bootstrap interval over cases, which doesn't cover the
seeds. Further options are handed to ``train``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from arms import COMMAND, difference
from commands import code_version, end_with_me, run

from monai_autoaug import methods
from monai_autoaug.data import Case, read_datalist, split
from monai_autoaug.evaluation import evaluate
from monai_autoaug.methods.task_driven import TaskDriven
from monai_autoaug.methods.task_driven_comparisons import TASK_DRIVEN_COMPARISONS, task_driven_comparison
from monai_autoaug.writing import write_text

ROWS = ("none", "affine", "random_elastic", "random_intensity", "learned_deformation", "learned_intensity", "both",
        "mixup", "both_mixup")  # fmt: skip
# what the paper tests a row against, and else the affine baseline
AGAINST = {
    "learned_deformation": "random_elastic", "learned_deformation_unregularised": "random_elastic",
    "learned_intensity": "random_intensity", "learned_intensity_unregularised": "random_intensity",
    "both": "mixup", "both_mixup": "mixup",
}  # fmt: skip
Cells = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What all cells have in common.

    Args:
        test: cases.
        validation: cases.
        unlabelled: images.
        pool: cases of which labelled ones are drawn.
        split_seed: of these choices.
        epochs: of the phase in which the deployed network trains.
        iterations: an epoch.
        generator_length: length of a generator's phase, the last one's being 1.
        interval: epochs between validations.
    """

    test: int
    validation: int
    unlabelled: int
    pool: int
    split_seed: int
    epochs: int
    iterations: int
    generator_length: float
    interval: int


class Data:
    """Chooses cases, and copies them to where commands look for them."""

    def __init__(self, source: Path, work: Path, setting: Setting) -> None:
        self.work, self.setting = work, setting
        datalist = read_datalist(source)
        self.description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        cases = sorted(datalist.training, key=lambda c: c.name)
        order = np.random.default_rng(setting.split_seed).permutation(len(cases))
        wanted = [setting.test, setting.validation, setting.unlabelled, setting.pool]
        if sum(wanted) > len(cases):
            raise SystemExit(f"{source} holds {len(cases)} cases, but {sum(wanted)} are needed")
        bounds = np.cumsum([0, *wanted])
        groups = [tuple(cases[i] for i in order[a:b]) for a, b in itertools.pairwise(bounds)]
        self.test, self.validation, self.unlabelled, self.pool = groups

    def labelled(self, count: int, seed: int) -> tuple[Case, ...]:
        """The labelled volumes of a seed."""
        chosen = np.random.default_rng([self.setting.split_seed, seed]).permutation(len(self.pool))[:count]
        return tuple(self.pool[i] for i in chosen)

    def images(self, name: str, cases: Sequence[Case]) -> Path:
        """A folder of images."""
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        for case in cases:
            _copy(case.images[0], folder / case.images[0].name)
        return folder

    def dataset(self, name: str, cases: Sequence[Case]) -> Path:
        """A data set of labelled cases."""
        folder = self.work / name
        rows = []
        for case in cases:
            assert case.label is not None  # for the type checker: training cases have one
            for part, file in (("imagesTr", case.images[0]), ("labelsTr", case.label)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                _copy(file, folder / part / file.name)
            rows.append({"image": f"imagesTr/{case.images[0].name}", "label": f"labelsTr/{case.label.name}"})
        content = self.description | {"training": rows, "test": [], "numTraining": len(rows), "numTest": 0}
        write_text(folder / "dataset.json", json.dumps(content, indent=1) + "\n")
        return folder

    def split_seed(self, labelled: Sequence[Case]) -> int:
        """A seed by which ``train`` validates with the cases that are meant for it, and with no other."""
        both, wanted = (*labelled, *self.validation), {c.name for c in self.validation}
        for seed in itertools.count():
            if {c.name for c in split(both, seed=seed, validation=len(wanted)).validation} == wanted:
                return seed
        raise AssertionError  # count() has no end


def _copy(source: Path, target: Path) -> None:
    """A link would lead out of the folder, which the audit refuses."""
    if not target.exists():
        partial = target.with_name(f".{target.name}")
        shutil.copyfile(source, partial)
        partial.rename(target)


def epochs_of(options: dict[str, Any], setting: Setting) -> int:
    """Epochs of all phases of a row."""
    kinds = {"both": 2, "deformation": 1, "appearance": 1}.get(options["augmentation"], 0)
    return round(setting.epochs * (1 + kinds * setting.generator_length))


def run_cell(data: Data, row: str, count: int, seed: int, more: Sequence[str]) -> dict[str, Any]:
    """Train, predict the test cases, score."""
    setting, name = data.setting, f"{row}_{count}_{seed}"
    options = task_driven_comparison(row, generator_length=setting.generator_length)
    labelled = data.labelled(count, seed)
    training = data.dataset(f"data_{count}_{seed}", (*labelled, *data.validation))
    folder = data.work / "runs" / name
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    python = [sys.executable, "-c", COMMAND]
    if not (folder / "validation.json").exists():
        command = [*python, "train", "--resume", "--output", str(folder)]
        if not (folder / "config.json").exists():
            given = [w for k, v in options.items() for w in ("--method-option", f"{k}={_yaml(v)}")]
            command = [
                *python, "train", str(training), "--output", str(folder), "--method", TaskDriven.name, *given,
                "--epochs", str(epochs_of(options, setting)), "--iterations", str(setting.iterations),
                "--validation-cases", str(len(data.validation)), "--validation-interval", str(setting.interval),
                "--seed", str(seed), "--split-seed", str(data.split_seed(labelled)), "--device", "cpu", *more,
            ]  # fmt: skip
            if "unlabelled" in methods.streams(TaskDriven.name, **options):
                command += ["--unlabelled", str(data.images("unlabelled", data.unlabelled))]
        run(command, environment, data.work / "logs" / f"{name}_train.txt")
    predicted = data.work / "predictions" / name
    if predicted.exists():
        shutil.rmtree(predicted)  # of a command that was stopped
    images = data.images("test", data.test)
    run([*python, "predict", str(folder), str(images), str(predicted), "--device", "cpu"], environment,
        data.work / "logs" / f"{name}_predict.txt")  # fmt: skip
    found = evaluate(predicted, data.dataset("test_labels", data.test))
    if len(found.cases) != len(data.test):
        raise RuntimeError(f"{predicted} holds {len(found.cases)} predictions of {len(data.test)}")
    shutil.rmtree(predicted)
    return _read(folder, found) | {"labelled": [c.name for c in labelled]}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]


def _read(folder: Path, found: Any) -> dict[str, Any]:
    """Dice by structure and case, what the training took, and what its generators have become."""
    values = found.values["dice"]
    by_case = dict(zip(found.cases, np.nanmean(values, axis=1).round(6).tolist(), strict=True))
    dice = dict(zip(found.classes, np.nanmean(values, axis=0).tolist(), strict=True))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    last: dict[str, float] = {}
    for line in log:
        last |= {k: v for k, v in line.items() if k.startswith(("deformation_", "appearance_", "discriminator_"))}
    return {
        "dice": dice | {"mean": statistics.fmean(dice.values())},
        "by_case": by_case,
        "best_epoch": summary.get("best_epoch"),
        "cpu_seconds": summary["cpu_seconds"],
        "iterations": summary["iterations"],
        "generators": {name: round(value, 4) for name, value in last.items()},
    }


def summarise(cells: Cells, counts: Sequence[int], rows: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """One line a row and number of labelled volumes, of the seeds that all of them have."""
    lines = []
    for count in counts:
        arms = {row: [cells[f"{row}_{count}_{s}"] for s in range(seeds)] for row in rows}
        for row, own in arms.items():
            means = [c["dice"]["mean"] for c in own]
            against = AGAINST.get(row, "affine")
            lines.append({
                "labelled": count, "row": row, "what": TASK_DRIVEN_COMPARISONS[row].what, "seeds": len(own),
                "dice": statistics.fmean(means), "by_seed": means,
                "sd": statistics.stdev(means) if len(means) > 1 else None,
                "structures": {n: statistics.fmean(c["dice"][n] for c in own) for n in own[0]["dice"] if n != "mean"},
                "cpu_minutes": statistics.median(c["cpu_seconds"] for c in own) / 60,
                "against": against if against in arms and against != row else None,
                "minus": difference(own, arms[against]) if against in arms and against != row else None,
            })  # fmt: skip
    return lines


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The lines as a table."""
    names = list(lines[0]["structures"])
    table = [
        f"| labelled | row | Dice (sd over seeds) | {' | '.join(names)} | minus the paper's control [95 % over cases]"
        " | CPU minutes |",
        "|---" * (5 + len(names)) + "|",
    ]
    for line in lines:
        sd = "" if line["sd"] is None else f" ({line['sd']:.3f})"
        minus = line["minus"]
        versus = "" if minus is None else "{:+.3f} [{:+.3f}, {:+.3f}] to {}".format(
            minus["mean"], *minus["interval_95"], line["against"].replace("_", " "))  # fmt: skip
        parts = " | ".join(f"{line['structures'][n]:.3f}" for n in names)
        table.append(
            f"| {line['labelled']} | {line['row'].replace('_', ' ')} | {line['dice']:.3f}{sd} | {parts} | {versus} |"
            f" {line['cpu_minutes']:.1f} |"
        )
    return "\n".join(table) + "\n"


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command's arguments, and those for ``train``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set in the layout of the Medical Segmentation Decathlon")
    parser.add_argument("--work", type=Path, default=Path("task_driven_arms"), help="folder for all cells")
    parser.add_argument("--output", type=Path, default=Path("task_driven.json"))
    parser.add_argument("--table", type=Path, help="write the table into this file, too")
    parser.add_argument("--rows", default=",".join(ROWS), help=", ".join(TASK_DRIVEN_COMPARISONS))
    parser.add_argument("--labelled", default="1,3", help="numbers of labelled volumes")
    parser.add_argument("--seeds", type=int, default=3)
    for name, default in (("test", 20), ("validation", 2), ("unlabelled", 25), ("pool", 10), ("split-seed", 0),
                          ("epochs", 12), ("iterations", 20), ("interval", 2)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--generator-length", type=float, default=0.5)
    return parser.parse_known_args()


def main() -> None:
    """Run what is missing and print the table."""
    end_with_me()
    arguments, more = parse()
    setting = Setting(**{n: getattr(arguments, n) for n in Setting.__dataclass_fields__})
    settings = json.loads(json.dumps(asdict(setting) | {"train": more}))
    rows, counts = arguments.rows.split(","), [int(n) for n in arguments.labelled.split(",")]
    unknown = [row for row in rows if row not in TASK_DRIVEN_COMPARISONS]
    if unknown:
        raise SystemExit(f"there is no row {unknown[0]!r}; there are {', '.join(TASK_DRIVEN_COMPARISONS)}")
    cells: Cells = {}
    if arguments.output.exists():
        former = json.loads(arguments.output.read_text(encoding="utf-8"))
        if former["settings"] != settings:
            raise SystemExit(f"{arguments.output} is of other settings: {former['settings']}")
        cells = former["cells"]
    data = Data(arguments.data, arguments.work, setting)

    def save(lines: Sequence[dict[str, Any]]) -> None:
        machine = platform.processor() or platform.machine()
        content = {"machine": machine, "settings": settings, "rows": lines, "cells": cells}
        write_text(arguments.output, json.dumps(content, indent=1) + "\n")

    for seed in range(arguments.seeds):  # a whole seed first
        for count, row in itertools.product(counts, rows):
            name = f"{row}_{count}_{seed}"
            if name not in cells:
                cells[name] = run_cell(data, row, count, seed, more) | {"code": code_version()}
                save([])
                print(f"{name}: {cells[name]['dice']['mean']:.3f}", flush=True)
    lines = summarise(cells, counts, rows, arguments.seeds)
    save(lines)
    print(markdown(lines))
    if arguments.table is not None:
        write_text(arguments.table, markdown(lines))


if __name__ == "__main__":
    main()
