# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Dice of the learned augmentation beside its controls: ``python benchmarks/arms.py DATA --output arms.json``.

Every cell (arm, training cases, seed) is one ``monai-autoaug train`` with the same split and validation cases; cells
that the output file holds already are not run again, one that was interrupted goes on; options that are not this
script's are handed to ``train``. An arm is a method, with options of its own after colons: ``none:epochs=56`` is none
trained for as long as a dearer method takes. The table has the mean over seeds of the mean foreground Dice, its
standard deviation over seeds, each structure's Dice, the process CPU time relative to ``none``, and the difference to
``random`` paired by case with a 95 % bootstrap interval over cases (which does not cover the seeds). "At equal time" is
the last Dice that was measured while training before as much CPU time had passed as ``none`` takes in all with this
seed: with a learning rate that has yet to fall, and on the preprocessed grid, as is that of ``none`` beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from monai_autoaug.writing import write_text

COMMAND = "from monai_autoaug.cli import main; main()"


def run_cell(data: Path, folder: Path, arm: str, cases: int, seed: int, options: list[str]) -> None:
    """Train one cell, or finish it."""
    method, *own = arm.split(":")
    options = [*options, *(word for pair in own for word in f"--{pair}".split("=", 1))]
    if (folder / "validation.json").exists() and (folder / "summary.json").exists():
        return
    what = [sys.executable, "-c", COMMAND, "train"]
    if (folder / "config.json").exists():
        what += ["--resume", "--output", str(folder)]
    else:
        what += [str(data), "--output", str(folder), "--method", method, "--train-cases", str(cases),
                 "--validation-cases", "30", "--seed", str(seed), *options]  # fmt: skip
    subprocess.run(what, check=True)


def read_cell(folder: Path) -> dict[str, Any]:
    """Dice by structure and case, what the training took, and what it ran on."""
    validation = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    course = [[row["epoch"], round(row["cpu_seconds"], 1), round(row["dice"], 6)] for row in log if "dice" in row]
    by_case = {case: round(statistics.fmean(v["dice"].values()), 6) for case, v in validation["cases"].items()}
    return {
        "dice": {name: v["mean"] for name, v in validation["summary"]["dice"].items()},
        "by_case": by_case,
        "course": course,
        "cpu_seconds": summary["cpu_seconds"],
        "iterations": summary["iterations"],
        "parameters": summary["parameters"],
        "versions": config["versions"],
    }


def difference(cells: list[dict[str, Any]], control: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean difference of two arms with the same seeds, paired by case."""
    cases = sorted(cells[0]["by_case"])
    paired = np.array(
        [[a["by_case"][c] - b["by_case"][c] for c in cases] for a, b in zip(cells, control, strict=True)]
    ).mean(0)
    rng = np.random.default_rng(0)
    draws = paired[rng.integers(0, len(paired), (10_000, len(paired)))].mean(1)
    seeds = [a["dice"]["mean"] - b["dice"]["mean"] for a, b in zip(cells, control, strict=True)]
    return {"mean": float(paired.mean()), "interval_95": np.quantile(draws, [0.025, 0.975]).tolist(), "by_seed": seeds}


def at_equal_time(cells: list[dict[str, Any]], plain: list[dict[str, Any]]) -> float:
    """Mean over seeds of the last Dice within the CPU time of the plain training with the same seed."""
    values = []
    for cell, other in zip(cells, plain, strict=True):
        limit = other["course"][-1][1]
        within = [dice for _, seconds, dice in cell["course"] if seconds <= limit]
        values.append(within[-1] if within else float("nan"))
    return statistics.fmean(values)


def summarise(arms: dict[tuple[int, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row an arm."""
    rows = []
    for (cases, method), cells in arms.items():
        means = [c["dice"]["mean"] for c in cells]
        row = {
            "training_cases": cases, "method": method, "seeds": len(cells), "dice": statistics.fmean(means),
            "dice_sd_over_seeds": statistics.stdev(means) if len(means) > 1 else None,
            "structures": {n: statistics.fmean(c["dice"][n] for c in cells) for n in cells[0]["dice"] if n != "mean"},
            "cpu_minutes": statistics.median(c["cpu_seconds"] for c in cells) / 60,
            "iterations": cells[0]["iterations"],
        }  # fmt: skip
        plain, control = arms.get((cases, "none")), arms.get((cases, "random"))
        if plain:
            row["time_ratio"] = statistics.median(c["cpu_seconds"] for c in cells) / statistics.median(
                c["cpu_seconds"] for c in plain
            )
            row["dice_at_equal_time"] = at_equal_time(cells, plain[: len(cells)])
        if control and method != "random" and len(control) >= len(cells):
            row["minus_random"] = difference(cells, control[: len(cells)])  # the same seeds
        rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    names = list(rows[0]["structures"])
    lines = [
        f"| cases | method | Dice (sd over seeds) | {' | '.join(names)} | minus random [95 % over cases] | CPU time"
        " | at equal time |",
        "|---" * (6 + len(names)) + "|",
    ]
    for row in rows:
        sd = "" if row["dice_sd_over_seeds"] is None else f" ({row['dice_sd_over_seeds']:.3f})"
        minus = row.get("minus_random")
        versus = "" if minus is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(minus["mean"], *minus["interval_95"])
        parts = " | ".join(f"{row['structures'][n]:.3f}" for n in names)
        ratio = f" (x {row['time_ratio']:.2f})" if "time_ratio" in row else ""
        lines.append(
            f"| {row['training_cases']} | `{row['method']}` | {row['dice']:.3f}{sd} | {parts} | {versus} |"
            f" {row['cpu_minutes']:.1f} min{ratio} | {row.get('dice_at_equal_time', float('nan')):.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="one folder a cell")
    parser.add_argument("--methods", default="none,random,adversarial", help="arms")
    parser.add_argument("--cases", default="20,100", help="training cases")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("arms.json"))
    arguments, options = parser.parse_known_args()
    arms: dict[tuple[int, str], list[dict[str, Any]]] = {}
    cells: dict[str, Any] = {}
    if arguments.output.exists():
        former = json.loads(arguments.output.read_text(encoding="utf-8"))
        if former["options"] != options:
            parser.error(f"{arguments.output} is of other options: {former['options']}")
        cells = former["cells"]
    for cases in map(int, arguments.cases.split(",")):
        for method in arguments.methods.split(","):
            for seed in range(arguments.seeds):
                name = f"{method}_{cases}_{seed}"
                if name not in cells:
                    run_cell(arguments.data, arguments.runs / name, method, cases, seed, options)
                    cells[name] = read_cell(arguments.runs / name)
                    _write(arguments.output, options, cells, [])
                arms.setdefault((cases, method), []).append(cells[name])
    rows = summarise(arms)
    _write(arguments.output, options, cells, rows)
    print(markdown(rows))


def _write(path: Path, options: list[str], cells: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    content = {"machine": platform.processor() or platform.machine(), "options": options, "arms": rows, "cells": cells}
    write_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
