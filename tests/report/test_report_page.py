# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The page of a run: all that is known of it, nothing that identifies, nothing loaded, readable by machines too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_helpers import Outline, copied, names_of

from monai_autoaug.engines.folder import read_json
from monai_autoaug.errors import ConfigError, DataError
from monai_autoaug.evaluation import Evaluation
from monai_autoaug.policies import load
from monai_autoaug.report import write_report
from monai_autoaug.report.policy_rows import policy_rows

METHODS = ("joint_policy", "adversarial")


@pytest.fixture(scope="module")
def pages(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    against = {"joint_policy": [], "adversarial": [runs["random"]], "random": []}
    return {m: write_report(runs[m], folder / f"{m}.html", against=against[m]) for m in runs}


def content(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())
    return found


@pytest.mark.parametrize("method", METHODS)
def test_it_is_one_file_that_loads_and_runs_nothing(pages: dict[str, Path], method: str) -> None:
    text = pages[method].read_text(encoding="utf-8")
    outline = Outline(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert "default-src 'none'" in text
    for tag, name, value in outline.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:80])
        assert not name.startswith("on"), (tag, name)
    assert "://" not in re.sub(r"data:[^\"]+", "", text)
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 5e6


@pytest.mark.parametrize("method", METHODS)
def test_it_names_no_case_no_path_and_no_data(pages: dict[str, Path], runs: dict[str, Path], method: str) -> None:
    for file in (pages[method], pages[method].with_suffix(".json")):
        text = re.sub(r"data:[^\"]+", "", file.read_text(encoding="utf-8"))
        assert [name for name in names_of(runs[method]) if name in text] == []
        assert "patient_files" not in text
        assert runs[method].name not in text
        assert str(runs[method].parents[1]) not in text
        assert ".nii" not in text


def test_names_are_told_if_asked_for(runs: dict[str, Path], tmp_path: Path) -> None:
    page = write_report(runs["adversarial"], tmp_path, names=True)
    assert page == tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    worst = Evaluation.load(runs["adversarial"] / "validation.json").worst()[0]
    assert f"Worst case: {worst}" in text
    assert "patient_files" in text
    assert content(page)["dice"]["cases"][0]["case"] in names_of(runs["adversarial"])


@pytest.mark.parametrize("method", METHODS)
def test_it_is_accessible(pages: dict[str, Path], method: str) -> None:
    text = pages[method].read_text(encoding="utf-8")
    outline = Outline(text)
    assert '<html lang="en">' in text
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(outline.levels, outline.levels[1:], strict=False))  # no level is skipped
    assert len(outline.ids) == len(set(outline.ids))
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    pictures = re.findall(r"<svg[^>]*>", text)
    assert len(pictures) > 20
    for picture in pictures:
        assert 'aria-hidden="true"' in picture or re.search(r'role="img" aria-label="[^"]{10,}"', picture), picture
    for region in re.findall(r"<div[^>]*role=\"region\"[^>]*>", text):
        assert 'tabindex="0"' in region
        assert "aria-label" in region
    assert text.count("<th ") == text.count('<th scope="')


def test_a_policy_is_told_operation_by_operation(pages: dict[str, Path], runs: dict[str, Path]) -> None:
    told = content(pages["joint_policy"])["policy"]
    found = load(runs["joint_policy"] / "policy.json")
    rows = {(r.kind, r.cascade, r.operation): r for r in policy_rows(found)}
    assert found.training is not None
    assert len(told["cascades"]) == 15
    for cascade in told["cascades"]:
        for operation in cascade["operations"]:
            for kind, cell in operation["cells"].items():
                row = rows[kind, cascade["name"], operation["name"]]
                assert cell["probability"] == pytest.approx(row.probability, abs=1e-4)
                assert cell["start"] == pytest.approx(row.start, abs=1e-4)
                if cell["decided"]:
                    assert row.decided
                    assert abs(cell["standard_errors"]) > 3
    text = Outline(pages["joint_policy"].read_text(encoding="utf-8")).text
    assert "only if it was better than the rest of its cascade by more than 3 standard errors" in text
    for words in ("rotate H-W", "mirror D", "foreground", "background", "Probabilities, class foreground"):
        assert words in text
    for kind, curves in told["course"].items():
        assert 1 <= len(curves) <= 6
        assert all(curve["epochs"] == [0, 1, 2] for curve in curves), kind


def test_views_have_weights_cost_and_gain(pages: dict[str, Path], runs: dict[str, Path]) -> None:
    told = content(pages["joint_policy"])["views"]
    policy = load(runs["joint_policy"] / "policy.json").test_time
    assert policy is not None
    views, weights = policy.top(policy.z)
    assert [row["name"] for row in told["rows"]] == [o.name for o in views]
    assert [row["weight"] for row in told["rows"]] == pytest.approx(weights.tolist(), abs=1e-4)
    assert told["forwards"] == policy.z == 8
    summary = read_json(runs["joint_policy"] / "summary.json")["prediction"]
    assert summary["views"] == 8
    assert 0 < told["seconds_without_views"] < told["seconds"] == summary["seconds"]
    files = ("validation.json", "validation_without_views.json")
    both = [Evaluation.load(runs["joint_policy"] / file).mean() for file in files]
    assert told["gain"]["mean"] == pytest.approx(both[0] - both[1], abs=1e-6)
    assert told["gain"]["cases"] == 5
    assert len(told["meta_gain"]["values"]) == 2
    assert content(pages["adversarial"])["views"] is None


def test_generators_are_measured_and_shown(pages: dict[str, Path]) -> None:
    told = content(pages["adversarial"])
    assert [generator["kind"] for generator in told["generators"]] == ["affine", "deformation", "appearance"]
    figures = {f["name"]: f for f in told["generators"][1]["figures"]}
    assert figures["mean displacement"]["unit"] == "mm"
    assert figures["folding voxels"]["value"] == 0
    text = Outline(pages["adversarial"].read_text(encoding="utf-8")).text
    titles = "Before and after", "Affine", "Deformation", "Appearance", "Samples across epochs", "Training loss"
    words = "displacement: 0", "change of intensity:", "original", "epoch 1", "epoch 2", "axial", "10 mm"
    assert [word for word in (*titles, *words) if word not in text] == []
    assert "Mean displacement (voxels)" in [curve["title"] for curve in told["curves"]]  # these aren't cubes


def test_pictures_show_every_plane_with_contours(pages: dict[str, Path]) -> None:
    text = pages["adversarial"].read_text(encoding="utf-8")
    labels = re.findall(r'aria-label="(axial[^"]+)"', text)
    kinds = [label for label in labels if "of a training patch, " in label]
    assert sum("displacement by" in label for label in kinds) == 2
    assert sum("change of intensity by appearance" in label for label in kinds) == 1
    assert sum("before" in label for label in kinds) == 3
    strips = re.findall(r'<div class="strip">\s*<svg[^>]*>(.*?)</svg>', text, re.DOTALL)
    with_images = [s for s in strips if "<image" in s]
    assert all("<path" in s for s in with_images)
    assert sum("validation case" in label for label in labels) == 3


def test_a_gain_is_shown_only_by_a_comparison(pages: dict[str, Path], runs: dict[str, Path]) -> None:
    alone, compared = content(pages["joint_policy"]), content(pages["adversarial"])
    assert alone["verdict"]["headline"] == "No gain shown"
    assert alone["against"] == []
    (row,) = compared["against"]
    assert row["name"] == "random"
    mine, theirs = (Evaluation.load(runs[m] / "validation.json").mean() for m in ("adversarial", "random"))
    assert row["mean"] == pytest.approx(mine - theirs, abs=1e-6)
    assert row["low"] <= row["mean"] <= row["high"]
    text = Outline(pages["adversarial"].read_text(encoding="utf-8")).text
    assert "minus random" in text
    assert "Nothing was learned here" in Outline(pages["random"].read_text(encoding="utf-8")).text


def test_provenance_data_and_audit(pages: dict[str, Path], runs: dict[str, Path]) -> None:
    told = content(pages["joint_policy"])
    assert told["provenance"]["options"]["seed"] == 0
    assert "data" not in told["provenance"]["options"]
    assert told["provenance"]["versions"]["torch"]
    assert len(told["provenance"]["policy_hash"]) == len(told["provenance"]["data_fingerprint"]) == 16
    assert told["facts"]["cases"] == read_json(runs["joint_policy"] / "summary.json")["cases"]
    assert told["audit"]["groups"] == []
    assert "Nothing was found" in pages["joint_policy"].read_text(encoding="utf-8")
    assert told["missing"] == ["Peak memory is told of GPUs only"]


def test_findings_of_the_audit_are_told_without_names(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["random"], tmp_path)
    name = names_of(run)[0]
    finding = {"case": name, "check": "empty_mask", "severity": "warn", "message": f"<b>{name}</b> is empty",
               "expected": "", "came": "", "remedy": f"look at /data/{name}.nii.gz"}  # fmt: skip
    audit = {"version": 1, "counts": {"refuse": 0, "warn": 1, "note": 0}, "findings": [finding]}
    (run / "audit.json").write_text(json.dumps(audit))
    page = write_report(run)
    assert page == run / "report.html"
    text = page.read_text(encoding="utf-8")
    assert name not in text
    assert "&lt;b&gt;case 1&lt;/b&gt; is empty" in text
    assert "look at …" in text


def test_files_that_are_no_cases_and_options_of_another_run_are_told_without_names(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = copied(runs["joint_policy"], tmp_path)
    finding = {"case": "", "check": "left_out", "severity": "warn", "message": "1 file is not read",
               "expected": "NIfTI files", "came": "SMITH_JOHN_1970.mha", "remedy": "convert it"}  # fmt: skip
    audit = {"version": 1, "counts": {"refuse": 0, "warn": 1, "note": 0}, "findings": [finding]}
    (run / "audit.json").write_text(json.dumps(audit))
    other = copied(run, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["options"]["method_options"]["policy"] = "smith/policy.json"
    (other / "config.json").write_text(json.dumps(config))
    page = write_report(run, against=[other])
    assert "joint_policy with policy=" in content(page)["against"][0]["name"]
    for text in (page.read_text(encoding="utf-8"), page.with_suffix(".json").read_text()):
        assert "smith" not in text.lower()


def test_what_a_run_has_not_kept_is_said(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["joint_policy"], tmp_path)
    for name in ("samples.pt", "policy.jsonl", "validation_without_views.json", "audit.json"):
        (run / name).unlink()
    page = write_report(run)
    told = "; ".join(content(page)["missing"])
    for words in ("samples.pt", "policy.jsonl", "without the views", "No audit"):
        assert words in told
    text = page.read_text(encoding="utf-8")
    assert "Before and after" not in text
    assert "Learned policy" in text


def test_a_run_that_has_not_ended_is_reported_as_far_as_it_is(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["adversarial"], tmp_path)
    for name in ("summary.json", "validation.json", "augmenters.pt"):
        (run / name).unlink()
    told = content(write_report(run))
    assert told["verdict"]["headline"] == "No gain shown"
    assert "has not ended" in told["cautions"][0]["text"]
    assert told["dice"] is None
    assert told["curves"]


def test_the_data_may_have_moved(runs: dict[str, Path], tmp_path: Path) -> None:
    run = copied(runs["random"], tmp_path)
    config = json.loads((run / "config.json").read_text())
    where = config["options"]["data"]
    config["options"]["data"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    text = write_report(run).read_text(encoding="utf-8")
    assert "give its folder by <code>--data</code>" in text
    assert "gone" not in text
    assert "Worst case" in write_report(run, data=where).read_text(encoding="utf-8")
    with pytest.raises(DataError):
        write_report(run, data=tmp_path)


def test_what_is_no_training_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no training run \(it holds no config.json"):
        write_report(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(ConfigError, match="another ending"):
        write_report(runs["random"], tmp_path / "report.pdf")
    with pytest.raises(ConfigError, match="is no training run"):
        write_report(runs["random"], tmp_path / "a.html", against=[tmp_path])
    run = copied(runs["random"], tmp_path)
    (run / "validation.json").unlink()
    with pytest.raises(ConfigError, match="no evaluation of its validation cases"):
        write_report(runs["random"], tmp_path / "a.html", against=[run])
