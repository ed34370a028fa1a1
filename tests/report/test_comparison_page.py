# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The page of a comparison: it says what the summary says, and needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from monai_autoaug.evaluation.comparison.rows import COLUMNS, ComparedMetric, Row, Summary, Versus, verdict
from monai_autoaug.report.comparison_page import page

NUMBERS = {"dice": 0.8, "sensitivity": 0.7, "precision": 0.9, "hd95": 3.5, "surface_dice": 0.6}


def row(arm: str, gain: float | None, cases: int = 20, equal: str = "iterations", p: float = 0.001) -> Row:
    metrics = {m: ComparedMetric(NUMBERS[m] + (gain or 0.0), 0.01, {"head": 0.7, "tail": 0.9}) for m in COLUMNS}
    versus = None
    if gain is not None:
        versus = {m: Versus(gain, gain - 0.01, gain + 0.01, (gain, gain + 0.002), p, p, 12) for m in COLUMNS}
    kind, words = verdict(None if versus is None else versus["dice"], is_reference=gain is None)
    return Row(
        arm, f"What {arm} is.", cases, equal, (0, 1, 2), (), metrics, 1.5, versus, kind, words, 400, 75.0,
        None if gain is None else 1.25, 0.5, 900.0, None,
    )  # fmt: skip


def summary(*rows: Row, **changes: object) -> Summary:
    provenance = {
        "setting": {"host": "monai", "options": {"epochs": 40}}, "versions": {"torch": "2.8"}, "seeds": [0, 1, 2],
        "pool": 100, "validation_cases": 2, "unlabelled": 0, "machines": ["cpu: a processor"],
    }  # fmt: skip
    own = Summary("monai", "nnunet", ("head", "tail"), 12, rows, {}, ("A note < this.",), provenance, 6, 6)
    return replace(own, **changes)  # type: ignore[arg-type]


FULL = summary(row("nnunet", None), row("adversarial", 0.05), row("none", -0.05), row("random<b>", 0.001))


class Tags(HTMLParser):
    """Whether every element that is opened is closed, and which attributes could load something."""

    VOID = {"meta", "link", "br", "img", "input", "hr", "circle", "path", "rect", "use"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.loads += [v for n, v in attrs if n in ("src", "srcset", "data") and v]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return tags


def words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text.split("</style>")[1]).split())


def test_a_page_needs_nothing_else() -> None:
    text = page(FULL)
    tags = read(text)
    assert tags.loads == []
    assert all(link.startswith("#") and link[1:] in tags.ids for link in tags.links)
    assert len(set(tags.ids)) == len(tags.ids)
    assert "<script" not in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")


def test_it_says_what_the_summary_says() -> None:
    text = words(page(FULL))
    assert "Better than nnunet: adversarial" in text
    assert "better by 0.050 [0.040, 0.060]" in text
    assert "worse by 0.050 [0.040, 0.060]" in text
    assert "no gain shown (+0.001 [-0.009, +0.011], p = 0.001)" in text
    assert "20 training cases, equal iterations" in text
    assert "0.850 ± 0.010" in text
    assert "HD95 in mm" in text
    assert "× 1.25" in text
    assert "75 s" in text
    assert "A note &lt; this." in text
    assert "random&lt;b&gt;" in text  # names are no HTML
    assert "What adversarial is." in text
    assert "epochs 40" in text
    assert "trainings are done" not in text


def test_the_headline_is_plain() -> None:
    none = summary(row("nnunet", None), row("adversarial", 0.001))
    assert "No gain over nnunet shown" in words(page(none))
    assert 'class="verdict none"' in page(none)
    assert 'class="verdict gain"' in page(FULL)
    many = summary(row("nnunet", None), *(row(f"arm{k}", 0.02 + k / 100) for k in range(5)))
    assert "Better than nnunet: arm4, arm3, arm2 and 2 more" in words(page(many))
    empty = summary(replace(row("none", 0.1), metrics={}, versus=None, kind="unknown", verdict="not known yet"), done=0)
    text = words(page(empty))
    assert "Nothing is known yet" in text
    assert "0 of 6 trainings are done; what is missing is left out." in text


def test_a_reference_that_is_worse_than_no_augmentation_is_said_to_be() -> None:
    rows = [row("nnunet", None), row("none", 0.03), row("adversarial", 0.05)]
    both = "Better than nnunet: adversarial; but so is training without augmentation (none)"
    assert both in words(page(summary(*rows)))
    text = page(summary(*rows[:2], row("adversarial", 0.001)))
    assert "Training without augmentation (none) is better than nnunet; no other arm is" in words(text)
    assert 'class="verdict none"' in text


def test_the_headline_tells_how_many_tables_an_arm_wins() -> None:
    rows = [row("nnunet", None, n) for n in (10, 20)] + [row("adversarial", 0.03, 10), row("adversarial", 0.001, 20)]
    assert "Better than nnunet: adversarial (in 1 of 2 tables)" in words(page(summary(*rows)))


def test_several_numbers_of_cases_and_equal_time() -> None:
    rows = [row("nnunet", None, n) for n in (10, 20)] + [row("adversarial", 0.03, n) for n in (10, 20)]
    text = page(summary(*rows, row("adversarial", 0.02, 20, "time"), overall={"nnunet": 2.0, "adversarial": 1.0}))
    read(text)
    told = words(text)
    for title in (
        "10 training cases, equal iterations",
        "20 training cases, equal iterations",
        "20 training cases, equal time",
    ):
        assert f"{title}: difference in Dice, arm minus nnunet" in told
    assert "Average rank over all numbers of training cases nnunet 2.00 adversarial 1.00" in told


@pytest.mark.parametrize(("device", "told"), [(None, False), (512.0, True)])
def test_memory_of_a_gpu_where_there_is_one(device: float | None, told: bool) -> None:
    text = words(page(summary(row("nnunet", None), replace(row("none", 0.1), device_mib=device))))
    assert ("GPU memory in MiB" in text) is told


def test_seeds_that_are_missing_are_told() -> None:
    text = words(page(summary(row("nnunet", None), replace(row("none", 0.1), seeds=(0,), missing=(1, 2)))))
    assert "none (1 of 3 seeds)" in text
