# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``monai-autoaug report`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import call
from click.testing import Result


def test_a_page_and_its_json(run: tuple[Path, Result], tmp_path: Path) -> None:
    done = call("report", run[0], "--output", tmp_path / "pages" / "mine.html")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == "No gain shown"
    assert "--against" in done.output
    assert "mine.html" in done.output
    page = (tmp_path / "pages" / "mine.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    told = json.loads((tmp_path / "pages" / "mine.json").read_text())
    assert told["method"] == "adversarial"
    assert told["provenance"]["folder"] is None


def test_options_reach_the_report(run: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    words = ["report", run[0], "--output", tmp_path, "--against", run[0], "--data", data, "--names"]
    done = call(*words)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["against"][0]["name"] == "another run of adversarial"
    assert told["provenance"]["folder"] == str(run[0])
    assert told["dice"]["cases"][0]["case"].startswith("phantom")


def test_faults_are_told_before_any_work(run: tuple[Path, Result], tmp_path: Path) -> None:
    for words, message in (
        ([tmp_path], "is no training run"),
        ([run[0], "--output", tmp_path / "a.pdf"], "ends in .html"),
        ([run[0], "--output", tmp_path / "a.html", "--against", tmp_path], "is no training run"),
    ):
        done = call("report", *words)
        assert done.exit_code == 2
        assert message in done.output
    assert list(tmp_path.iterdir()) == []
    assert "report" in call("--help").output
