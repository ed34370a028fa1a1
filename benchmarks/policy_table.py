# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Cells of `policy_arms` as rows and as a table."""

from __future__ import annotations

import statistics
from typing import Any

from arms import difference

CONTROLS = ("stock", "preset")
EQUAL = "@equal_time"


def _means(cells: list[dict[str, Any]], way: str) -> dict[str, list[float]]:
    """Mean Dice over cases for each cell, by structure and "mean" over structures."""
    found: dict[str, list[float]] = {"mean": []}
    for cell in cells:
        dice = cell["predictions"][way]["dice"]
        means = {name: statistics.fmean(v for v in values.values() if v is not None) for name, values in dice.items()}
        for name, value in (*means.items(), ("mean", statistics.fmean(means.values()))):
            found.setdefault(name, []).append(value)
    return found


def _by_case(cells: list[dict[str, Any]], way: str, name: str) -> list[dict[str, Any]]:
    """Cells in the form that `arms.difference` takes."""
    means = _means(cells, way)[name]
    rows = []
    for cell, mean in zip(cells, means, strict=True):
        dice = cell["predictions"][way]["dice"]
        chosen = list(dice.values()) if name == "mean" else [dice[name]]
        cases = [c for c in chosen[0] if all(values[c] is not None for values in chosen)]
        rows.append({"by_case": {c: statistics.fmean(v[c] for v in chosen) for c in cases}, "dice": {"mean": mean}})
    return rows


def summarise(arms: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row an arm and way to predict."""
    rows = []
    for arm, cells in arms.items():
        controls = [c if c == "stock" or not arm.endswith(EQUAL) else c + EQUAL for c in CONTROLS]
        for way in [w for w in cells[0]["predictions"] if all(w in c["predictions"] for c in cells)]:
            means = _means(cells, way)
            row: dict[str, Any] = {
                "arm": arm, "averaged": way, "seeds": len(cells), "iterations": cells[0]["training"]["iterations"],
                "dice": {n: {"mean": statistics.fmean(v), "sd": _spread(v), "by_seed": v} for n, v in means.items()},
                "cpu_minutes": statistics.median(c["training"]["cpu_seconds"] for c in cells) / 60,
                "prediction_cpu_seconds": statistics.median(c["predictions"][way]["cpu_seconds"] for c in cells),
            }  # fmt: skip
            same = way if way == "mirroring" else "plain"
            for name, control in zip(CONTROLS, controls, strict=True):
                other = arms.get(control, [])
                if arm != control and len(other) >= len(cells) and all(same in c["predictions"] for c in other):
                    row[f"minus_{name}"] = {
                        n: difference(_by_case(cells, way, n), _by_case(other[: len(cells)], same, n)) for n in means
                    }
            stock = arms.get("stock", [])[: len(cells)]
            if len(stock) == len(cells):
                spent = [
                    a["training"]["cpu_seconds"] / b["training"]["cpu_seconds"]
                    for a, b in zip(cells, stock, strict=True)
                ]
                row["time_ratio"] = statistics.median(spent)
            rows.append(row)
    return rows


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as tables: what is predicted once, and what is averaged."""
    names = list(rows[0]["dice"])
    head = [*("Dice" if n == "mean" else n for n in names), *(f"minus {c} [95 % over cases]" for c in CONTROLS)]
    lines = []
    for title, chosen in (
        ("Predicted once", [r for r in rows if r["averaged"] == "plain"]),
        ("Averaged at test time", [r for r in rows if r["averaged"] != "plain"]),
    ):
        if not chosen:
            continue
        columns = ["arm", "iterations", *head, "CPU min of training", "CPU s of prediction"]
        lines += [f"{title}, Dice (sd over seeds):", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in chosen:
            arm = row["arm"] if row["averaged"] == "plain" else f"{row['arm']}, {row['averaged']}"
            parts = [f"`{arm}`", str(row["iterations"]), *(_number(row["dice"][n]) for n in names)]
            parts += [_difference(row.get(f"minus_{c}")) for c in CONTROLS]
            ratio = f" (x {row['time_ratio']:.2f})" if "time_ratio" in row else ""
            parts += [f"{row['cpu_minutes']:.1f}{ratio}", f"{row['prediction_cpu_seconds']:.0f}"]
            lines.append(f"| {' | '.join(parts)} |")
        lines.append("")
    return "\n".join(lines)


def _number(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f}" + ("" if value["sd"] is None else f" ({value['sd']:.3f})")


def _difference(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(value["mean"]["mean"], *value["mean"]["interval_95"])
