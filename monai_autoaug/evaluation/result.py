# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an evaluation found: a value a case, class and metric, their means, and how sure these are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_autoaug.errors import DataError
from monai_autoaug.reading import MALFORMED, read_json
from monai_autoaug.writing import write_text

__all__ = ["LEAST_CASES", "Evaluation", "Interval", "class_mean"]

Values = NDArray[np.float64]
VERSION = 1
LEAST_CASES = 5  # of fewer, resampling gives bounds that are far too close


class Interval(NamedTuple):
    """A mean and the bounds of its bootstrap interval; NaN where no case has the structure.

    The bounds alone are NaN where fewer than `LEAST_CASES` cases have it.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Values of every case, class and metric.

    Args:
        cases: names of the cases.
        classes: names of the foreground structures.
        values: metric -> (cases, classes), NaN where a figure is not defined (see each metric).
        without_prediction: labelled cases of the reference that had no prediction; they are not counted.
        components: which connected components of the predictions counted, in words (see `Components`); "": all.

    >>> e = Evaluation(("a", "b"), ("liver", "tumour"), {"dice": np.array([[0.9, np.nan], [0.8, 0.5]])})
    >>> e.mean("dice"), e.mean("dice", "tumour")
    (0.675, 0.5)
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    values: dict[str, Values]
    without_prediction: tuple[str, ...] = ()
    components: str = ""

    def _columns(self, metric: str, name: str | None) -> Values:
        """(cases, classes) of one class, or of all."""
        values = self.values[metric]
        return values if name is None else values[:, [self.classes.index(name)]]

    def mean(self, metric: str = "dice", name: str | None = None) -> float:
        """Mean over cases of one class; over all classes: the mean of the classes' means, as nnU-Net does.

        Args:
            metric: its name.
            name: a class; None: all.
        """
        return float(class_mean(self._columns(metric, name)[None])[0])

    def interval(
        self,
        metric: str = "dice",
        name: str | None = None,
        *,
        level: float = 0.95,
        resamples: int = 2000,
        seed: int = 0,
    ) -> Interval:
        """`mean` with its percentile bootstrap interval: cases are drawn with replacement.

        It tells how the mean would vary with other cases of the same kind, not how it varies with the training seed.
        Of fewer than five cases (in which the structure is defined) no bounds are given: they would be far too close.

        Args:
            metric: its name.
            name: a class; None: all.
            level: share of the bootstrap means within the bounds, in (0, 1).
            resamples: number of bootstrap samples.
            seed: of the draws.

        >>> e = Evaluation(tuple("abcde"), ("liver",), {"dice": np.array([[0.8], [0.9], [0.7], [0.6], [0.9]])})
        >>> mean, low, high = e.interval()
        >>> low < mean < high
        True
        """
        values = self._columns(metric, name)
        if int((~np.isnan(values)).any(axis=1).sum()) < LEAST_CASES:
            return Interval(self.mean(metric, name), float("nan"), float("nan"))
        drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
        means = class_mean(values[drawn])
        means = means[~np.isnan(means)]  # a structure of few cases may be in none of those drawn
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.mean(metric, name), float(low), float(high))

    def rows(self, metric: str = "dice") -> Iterator[tuple[str, Interval, int]]:
        """(class, mean with interval, number of cases that count) for each class, then for "mean" over all of them."""
        for name in self.classes:
            yield name, self.interval(metric, name), int((~np.isnan(self._columns(metric, name))).sum())
        yield "mean", self.interval(metric), len(self.cases)

    def worst(self, metric: str = "dice", *, higher_is_better: bool = True) -> list[str]:
        """Cases from worst to best by their mean over classes; cases in which nothing is defined come last."""
        order = _nanmean(self.values[metric], axis=1)
        order = np.where(np.isnan(order), np.inf, order if higher_is_better else -order)
        return [self.cases[i] for i in np.argsort(order, kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; null where a figure is not defined."""
        cases = {
            case: {
                metric: {name: _plain(v) for name, v in zip(self.classes, values[i], strict=True)}
                for metric, values in self.values.items()
            }
            for i, case in enumerate(self.cases)
        }
        summary = {
            metric: {
                name: {"mean": _plain(m.mean), "interval_95": [_plain(m.low), _plain(m.high)], "cases": count}
                for name, m, count in self.rows(metric)
            }
            for metric in self.values
        }
        return {
            "version": VERSION,
            "classes": list(self.classes),
            "summary": summary,
            "cases": cases,
            "without_prediction": list(self.without_prediction),
        } | ({"components": self.components} if self.components else {})

    def save(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON."""
        return write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            DataError: the file is no evaluation of this version.
        """
        try:
            content = read_json(path)
            if content["version"] != VERSION:
                raise DataError("is of another version", file=path, expected=VERSION, came=content["version"])
            cases, classes = tuple(content["cases"]), tuple(content["classes"])
            values = {
                metric: np.array(
                    [[_value(content["cases"][c][metric][k]) for k in classes] for c in cases], dtype=np.float64
                ).reshape(len(cases), len(classes))
                for metric in content["summary"]
            }
            without, components = tuple(content.get("without_prediction", ())), str(content.get("components", ""))
            return cls(cases, classes, values, without, components)
        except (OSError, *MALFORMED) as error:
            raise DataError(
                f"is no evaluation ({type(error).__name__}: {error})", file=path,
                remedy="write it with monai-autoaug evaluate",
            ) from error  # fmt: skip


def _nanmean(values: Values, axis: int) -> Values:
    """Mean of the defined values along an axis; NaN, without a warning, where there is none."""
    defined = ~np.isnan(values)
    count = defined.sum(axis)
    total = np.where(defined, values, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def class_mean(values: Values) -> Values:
    """(..., cases, classes) -> (...): mean over classes of the means over cases, of what is not NaN.

    >>> class_mean(np.array([[1.0, 4.0], [3.0, np.nan]])).item()
    3.0
    """
    return _nanmean(_nanmean(values, axis=-2), axis=-1)


def _plain(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def _value(number: float | None) -> float:
    return float("nan") if number is None else float(number)
