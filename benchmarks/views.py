# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What learned views do to nnU-Net's predictions: ``python benchmarks/views.py DATA --output views.json``.

Two folds of nnUNetTrainerAutoAug are trained by plain ``nnUNetv2_train`` (those of `policy_arms` in the same working
folder, if they are there). Cases that neither has seen are predicted by plain ``nnUNetv2_predict``: once, with the
learned views, with nnU-Net's 8-fold mirroring instead; then by both folds together, whose views differ: by
``nnUNetv2_predict -f 0 1``, which averages logits, and by ``nnUNetv2_ensemble``, which averages probabilities.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from arms import difference
from commands import end_with_me
from nnunet_host import Host, add_setting, setting_of
from policy_arms import dice_of, learned, model_of

from monai_autoaug.data.nifti import read_nifti
from monai_autoaug.writing import write_text

BASE = "fold 0, once"


def agreement(one: Path, other: Path) -> float:
    """Share of the voxels that one of two folders calls foreground to which both give the same label."""
    same = total = 0
    for file in sorted(one.glob("*.nii.gz")):
        a, b = (np.asarray(read_nifti(folder / file.name).image.dataobj) for folder in (one, other))
        marked = (a > 0) | (b > 0)
        same, total = same + int(((a == b) & marked).sum()), total + int(marked.sum())
    return same / max(total, 1)


def predict_all(host: Host, iterations: int) -> dict[str, Any]:
    """Train what is missing and predict in every way."""
    folds = [model_of("joint", seed, iterations) for seed in (0, 1)]
    trained = [host.train(model) for model in folds]
    first, both = folds[0], tuple(model.seed for model in folds)
    ways: dict[str, dict[str, Any]] = {
        BASE: {}, "fold 0, views": {"views": True, "probabilities": True}, "fold 0, mirroring": {"mirroring": True},
        "folds 0 and 1, once": {"folds": both}, "folds 0 and 1, views": {"folds": both, "views": True},
    }  # fmt: skip
    place = {name: host.work / "views" / name.replace(", ", "_").replace(" ", "_") for name in (*ways, "fold 1, views")}
    costs = {name: asdict(host.predict(first, place[name], **given)) for name, given in ways.items()}
    costs["fold 1, views"] = asdict(host.predict(folds[1], place["fold 1, views"], views=True, probabilities=True))
    ensemble, name = host.work / "views" / "ensemble", "nnUNetv2_ensemble of folds 0 and 1, views"
    inputs = [str(place[f"fold {seed}, views"]) for seed in both]
    spent = host.command(
        "nnUNetv2_ensemble", "-i", *inputs, "-o", str(ensemble), "-np", "1", environment=host.environment(),
        log="ensemble",
    )  # fmt: skip
    place[name], costs[name] = ensemble, asdict(spent)
    return {
        "training": trained,
        "learned": [learned(host.folder(model)) for model in folds],
        "predictions": {name: costs[name] | {"dice": dice_of(folder, host)} for name, folder in place.items()},
        "agreement of the two ensembles": round(agreement(place["folds 0 and 1, views"], ensemble), 4),
    }


def rows(predictions: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean Dice of each way, and its difference to the plain prediction, paired by case."""
    cells, found = {}, []
    for name, one in predictions.items():
        dice = one["dice"]
        by_case = {c: statistics.fmean(v[c] for v in dice.values()) for c in next(iter(dice.values()))}
        cells[name] = [{"by_case": by_case, "dice": {"mean": statistics.fmean(by_case.values())}}]
        found.append(
            {"way": name, "dice": {n: statistics.fmean(v.values()) for n, v in dice.items()},
             "mean": cells[name][0]["dice"]["mean"], "cpu_seconds": one["cpu_seconds"]}
        )  # fmt: skip
    for row in found:
        if row["way"] != BASE:
            row["minus_once"] = difference(cells[row["way"]], cells[BASE])
    return found


def markdown(found: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    names = list(found[0]["dice"])
    columns = ["prediction", "Dice", *names, f"minus {BASE} [95 % over cases]", "CPU s"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in found:
        minus = row.get("minus_once")
        versus = "" if minus is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(minus["mean"], *minus["interval_95"])
        parts = [row["way"], *(f"{v:.3f}" for v in (row["mean"], *row["dice"].values())), versus]
        lines.append(f"| {' | '.join(parts)} | {row['cpu_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, predict, score, print and write JSON."""
    end_with_me()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("policy_arms"), help="folder for all that nnU-Net writes")
    parser.add_argument("--output", type=Path, default=Path("views.json"))
    parser.add_argument("--iterations", type=int, default=2500, help="of a training")
    parser.add_argument("--workers", type=int, default=2, help="augmentation processes of a training")
    add_setting(parser)
    arguments = parser.parse_args()
    host = Host(arguments.data, arguments.work, setting_of(arguments), arguments.workers)
    host.prepare(2)
    report = predict_all(host, arguments.iterations)
    first, second = (one.get("views") for one in report["learned"])
    report["views differ"] = first != second
    report["rows"] = rows(report["predictions"])
    write_text(arguments.output, json.dumps(report, indent=1) + "\n")
    print(markdown(report["rows"]))
    print(f"the folds' views {'differ' if first != second else 'are the same'}: {first} and {second}")
    print(f"the two ensembles agree on {report['agreement of the two ensembles']:.2%} of the foreground")


if __name__ == "__main__":
    main()
