# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every key of a run's log is documented, and what can't be written names the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from run_helpers import options

from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.engines import log, train
from monai_autoaug.transforms import training_cascades

NAMES = {
    "KIND": "(affine|deformation|appearance|parametric)",
    "PLAYER": "(network|generators?|((class|dissimilarity)_)?discriminator|augmenter)",
    "GAME": "(class|dissimilarity)",
    "CLASS": "(background|foreground)",
    "CASCADE": "(" + "|".join(cascade.name for cascade in training_cascades()) + ")",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=5, size=20)


def documented(data: Path) -> list[str]:
    """A pattern for each entry of the module's list."""
    names = NAMES | {"STRUCTURE": f"({'|'.join(read_datalist(data).foreground)})"}
    lines = re.findall(r"^- (``\w+``(?:, ``\w+``)*): \S", log.__doc__ or "", re.MULTILINE)
    entries = [entry for line in lines for entry in re.findall(r"\w+", line)]
    assert len(entries) == len(set(entries)) > 20
    return [re.sub("|".join(names), lambda found: names[found[0]], entry) for entry in entries]


@pytest.mark.parametrize(
    ("method", "method_options"),
    [
        ("none", {}),
        ("adversarial", {"warm_up": 0}),
        ("adversarial", {"warm_up": 0, "mode": "deformation"}),
        ("adversarial", {"warm_up": 0, "fidelity": "paper"}),
        ("general_adversarial", {}),
        ("general_adversarial", {"augmentation": "light"}),
        ("general_adversarial", {"separate": 0.5, "weight_adversarial": 0.0}),
        ("task_driven", {"warm_up": 0, "unlabelled": False, "mixup": True}),
        ("task_driven", {"warm_up": 0, "unlabelled": False, "fidelity": "paper", "width": 2}),
        ("bilevel", {"update_every": 1}),
        ("bilevel", {"augmentation": "predefined"}),
        ("joint_policy", {"warm_up": 0, "update_every": 1, "views": 3}),
    ],
)
def test_every_key_of_a_log_is_documented(
    data: Path, tmp_path: Path, method: str, method_options: dict[str, object]
) -> None:
    epochs = 3 if method == "task_driven" else 2  # one a phase
    run = train(options(data, tmp_path / "run", method=method, method_options=method_options, epochs=epochs))
    found = {key for line in run.log.read_text().splitlines() for key in json.loads(line)}
    patterns = documented(data)
    assert {key for key in found if not any(re.fullmatch(p, key) for p in patterns)} == set()
    if method == "adversarial":
        assert {"discriminator_accuracy", "deformation_noise_share"} <= found
    if method == "general_adversarial" and not method_options:
        assert {"generator_adversarial", "dissimilarity_discriminator_accuracy", "affine_noise_share"} <= found
    if method == "task_driven":
        assert {"field_size", "loss_discriminator", "deformation_noise_share", "phase"} <= found
    if method == "joint_policy":
        assert {"meta_loss", "views_gain", "entropy_background_gamma", "entropy_views"} <= found


def test_a_log_on_a_full_disk_is_named(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "log.jsonl"
    log.append(path, {"epoch": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            log.append(path, {"epoch": 2, "warnings": ["x" * 100]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    log.cut(path, 5)  # the half line goes
    assert path.read_text() == '{"epoch": 1}\n'
