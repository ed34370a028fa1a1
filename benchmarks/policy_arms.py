# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned policies in nnU-Net beside their controls: ``python benchmarks/policy_arms.py DATA --output arms.json``.

Every cell (arm, seed) is one plain ``nnUNetv2_train`` of nnU-Net's network in a small size on patches that are smaller
than the images, and ``nnUNetv2_predict`` of cases that no arm and no seed has seen. The seed chooses the training cases
among the rest, and the initial weights; arms with one seed have the same of both. Cases for meta-validation are a part
of the training cases. Arms:

- none: no augmentation; stock: nnU-Net's own trainer and pipeline; reseeded: the same, but each worker has random
  numbers of its own;
- preset: the policy that others start from, in our operations, frozen; all cases train;
- learned: one policy for all patches; class_specific: one for background and one for foreground; joint: the same with
  views learned for test time; further rows of the paper's tables by their names in `methods.comparisons`.

Options of an arm follow after colons, options of the method by their name: ``joint:meta_split=resampled:views=4``.
Cells that the output file holds already are not run again. Nothing is averaged at test time but for "views" (learned,
joint only) and "mirroring" (nnU-Net's, eight predictions, of every arm). ``--equal-time`` trains each arm again for as
many iterations as take the CPU time of stock, by the median over seeds of what the first trainings have taken.
Differences are paired by case; their 95 % bootstrap interval is over cases, which does not cover the seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from commands import end_with_me, stop
from nnunet_host import STOCK, Host, Model, add_setting, setting_of
from policy_table import EQUAL, markdown, summarise

from monai_autoaug import policies
from monai_autoaug.evaluation import evaluate
from monai_autoaug.methods.comparisons import COMPARISONS, comparison
from monai_autoaug.methods.policy_schedule import PolicySchedule
from monai_autoaug.nnunet.options import Options
from monai_autoaug.writing import write_text

POLICY, PLAIN = "nnUNetTrainerAutoAug", "nnUNetTrainerAutoAugNone"
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": (PLAIN, {"base_augmentation": "none"}),
    "stock": (STOCK, {}),
    "reseeded": (PLAIN, {}),
}
ARMS = HOSTS | {
    name: (POLICY, {"method_options": comparison(row)})
    for name, row in ({name: name for name in COMPARISONS} | {"preset": "heuristic_all_cases"}).items()
}
DEFAULT = ("none", "stock", "reseeded", "preset", "learned", "class_specific", "joint")
FIGURES = ("policy_updates", "policy_moved", "entropy_all", "entropy_background", "entropy_foreground", "entropy_views",
           "views_gain", "train_loss")  # fmt: skip
Cells = dict[str, dict[str, Any]]


def model_of(arm: str, seed: int, iterations: int, *, shortened: int | None = None) -> Model:
    """The training that an arm is.

    Args:
        arm: a name of ``ARMS``, with options after colons.
        seed: of the training.
        iterations: in all.
        shortened: in place of ``iterations``; policies are updated as often as if there were those, because the default
            is a number of updates, and a shorter training with as many takes no less time.
    """
    name, *given = arm.split(":")
    if name not in ARMS:
        raise SystemExit(f"there is no arm {name!r}; there are {', '.join(ARMS)}")
    trainer, options = ARMS[name]
    options = {**options, "method_options": dict(options.get("method_options", {}))}
    hosts = [f.name for f in fields(Options)]
    for pair in given:
        option, _, value = pair.partition("=")
        (options if option in hosts else options["method_options"])[option] = yaml.safe_load(value)
    if shortened is not None and trainer == POLICY:
        options["method_options"].setdefault("update_every", PolicySchedule(iterations).update_every)
    if not options["method_options"]:
        del options["method_options"]
    if shortened is not None:
        return Model(arm + EQUAL, trainer, options, seed, shortened)
    return Model(arm, trainer, options, seed, iterations)


def dice_of(folder: Path, host: Host) -> dict[str, dict[str, float | None]]:
    """Dice of each structure and case; None where neither label nor prediction has the structure."""
    found = evaluate(folder, host.data)
    missing = {c.name for c in host.test} - set(found.cases)
    if missing:
        raise RuntimeError(f"{folder} lacks {len(missing)} predictions, the first of {sorted(missing)[0]}")
    return {
        name: {
            case: None if np.isnan(v) else round(float(v), 6)
            for case, v in zip(found.cases, found.values["dice"][:, column], strict=True)
        }
        for column, name in enumerate(found.classes)
    }


def run_cell(host: Host, model: Model, mirroring: bool) -> dict[str, Any]:
    """Train, predict without and with what is averaged at test time, and score."""
    training = host.train(model)
    ways: dict[str, dict[str, Any]] = {"plain": {}}
    if model.trainer != STOCK and host.has_views(model):
        ways["views"] = {"views": True}
    if mirroring:
        ways["mirroring"] = {"mirroring": True}
    predictions = {}
    for way, options in ways.items():
        output = host.work / "predictions" / f"{model.name.replace(':', '_')}_{way}"
        spent = host.predict(model, output, **options)
        predictions[way] = asdict(spent) | {"dice": dice_of(output, host)}
        shutil.rmtree(output)
    return {"training": training, "predictions": predictions, **learned(host.folder(model))}


def learned(folder: Path) -> dict[str, Any]:
    """What an arm's policies have become, in short."""
    found: dict[str, Any] = {}
    log = folder / "autoaug.jsonl"
    if log.exists():
        last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        found["figures"] = {name: round(last[name], 5) for name in FIGURES if name in last}
    if (folder / "policy.json").exists():
        views = policies.load(folder / "policy.json").test_time
        if views is not None:
            operations, weights = views.top(views.z)
            found["views"] = {o.name: round(w, 4) for o, w in zip(operations, weights.tolist(), strict=True)}
    return found


def run_all(
    host: Host, todo: list[Model], arguments: argparse.Namespace, keep: Callable[[str, dict[str, Any]], None]
) -> None:
    """Run cells, some side by side, and keep each as soon as it is there."""
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {pool.submit(run_cell, host, model, arguments.mirroring): model.name for model in todo}
        try:
            for done in as_completed(running):
                keep(running[done], done.result())
                print(f"{running[done]} done", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def equal_iterations(cells: Cells, arm: str, seeds: int, epochs: int) -> int:
    """Iterations of an arm that take the CPU time of stock: whole epochs, at least one iteration each."""
    pairs = [(cells[f"{arm}_{s}"], cells[f"stock_{s}"]) for s in range(seeds)]
    ratio = statistics.median(b["training"]["cpu_seconds"] / a["training"]["cpu_seconds"] for a, b in pairs)
    return max(1, round(pairs[0][0]["training"]["iterations"] * ratio / epochs)) * epochs


def parse() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("policy_arms"), help="folder for all that nnU-Net writes")
    parser.add_argument("--output", type=Path, default=Path("policy_arms.json"))
    parser.add_argument("--table", type=Path, help="write the tables into this file, too")
    parser.add_argument("--arms", default=",".join(DEFAULT), help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2500, help="of a training")
    parser.add_argument("--equal-time", action="store_true", help="then train again with the CPU time of stock")
    parser.add_argument("--workers", type=int, default=2, help="augmentation processes of a training")
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side")
    parser.add_argument("--no-mirroring", dest="mirroring", action="store_false", help="saves most of the prediction")
    add_setting(parser)
    return parser.parse_args()


def main() -> None:
    """Run what is missing and print the tables."""
    end_with_me()
    arguments = parse()
    setting = setting_of(arguments)
    if arguments.iterations % setting.epochs:
        raise SystemExit(f"--iterations must be a multiple of --epochs ({setting.epochs}), got {arguments.iterations}")
    settings = json.loads(json.dumps(asdict(setting)))
    settings |= {"iterations": arguments.iterations, "workers": arguments.workers}
    cells: Cells = {}
    if arguments.output.exists():
        former = json.loads(arguments.output.read_text(encoding="utf-8"))
        if any(former["settings"].get(name) != value for name, value in settings.items()):
            raise SystemExit(f"{arguments.output} is of other settings: {former['settings']}")
        cells = former["cells"]
    host = Host(arguments.data, arguments.work, setting, arguments.workers)
    host.prepare(arguments.seeds)

    def save(rows: list[dict[str, Any]]) -> None:
        machine = platform.processor() or platform.machine()
        content = {"machine": machine, "settings": settings, "rows": rows, "cells": cells}
        write_text(arguments.output, json.dumps(content, indent=1) + "\n")

    def keep(name: str, cell: dict[str, Any]) -> None:
        cells[name] = cell
        save([])

    names, seeds = arguments.arms.split(","), range(arguments.seeds)
    todo = [model_of(arm, seed, arguments.iterations) for seed in seeds for arm in names]  # a whole seed first
    run_all(host, [m for m in todo if m.name not in cells], arguments, keep)
    if arguments.equal_time:
        counts = {arm: equal_iterations(cells, arm, arguments.seeds, setting.epochs) for arm in names}
        others = [a for a in names if a != "stock"]
        todo = [model_of(a, s, arguments.iterations, shortened=counts[a]) for s in seeds for a in others]
        run_all(host, [m for m in todo if m.name not in cells], arguments, keep)
    known = dict.fromkeys(name.rsplit("_", 1)[0] for name in cells)
    found = {arm: [cells[f"{arm}_{s}"] for s in seeds if f"{arm}_{s}" in cells] for arm in known}
    rows = summarise({arm: own for arm, own in found.items() if len(own) == arguments.seeds})
    save(rows)
    print(markdown(rows))
    if arguments.table is not None:
        write_text(arguments.table, markdown(rows))


if __name__ == "__main__":
    main()
