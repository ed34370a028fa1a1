# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The tutorial's generator and method in an nnU-Net trainer, by the options that it says; options of any name."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from monai_autoaug import augmenters, methods
from monai_autoaug.methods import Task
from monai_autoaug.methods.none import NoAugmentation
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial

TUTORIAL = (Path(__file__).parents[2] / "tutorials" / "own_method.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TUTORIAL, re.DOTALL))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tutorial's two modules with their entry points."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    info = tmp_path / "my_augmentation-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-augmentation\nVersion: 0.1\n")
    points = re.findall(r'^\[project\.entry-points\."(\S+)"\]\n(\w+) = "(\S+)"$', FILES["pyproject.toml"], re.MULTILINE)
    lines = [f"[{group}]\n{name} = {value}\n" for group, name, value in points]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    for name in [n for n in sys.modules if n in ("my_ramp", "my_worst_of")]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_the_options_of_the_tutorial_train(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.DOTALL)
    (tmp_path / "options.yaml").write_text(block)
    monkeypatch.setenv("MONAI_AUTOAUG_CONFIG", str(tmp_path / "options.yaml"))
    trainer = tiny.trainer(Adversarial)
    trainer.run_training()
    assert (trainer.method.name, trainer.method.candidates) == ("worst_of", 4)
    assert list(augmenters.load(Path(trainer.output_folder) / "augmenters.pt")) == ["ramp"]
    monkeypatch.delenv("MONAI_AUTOAUG_CONFIG")
    trainer = tiny.trainer(Adversarial, method_options={"mode": "ramp", "warm_up": 0})
    trainer.run_training()
    assert float(trainer.method.augmenters()["ramp"].head.weight.abs().sum()) > 0


class Turning(NoAugmentation):
    """A method with an option that is called as one of task_driven's."""

    name: ClassVar[str] = "turning"

    def __init__(self, task: Task, *, seed: int = 0, affine: bool = True) -> None:
        super().__init__(task, seed=seed)
        self.affine = affine


def test_options_of_a_users_method_may_have_any_name(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "turning", f"{__name__}:Turning")
    for given in ({}, {"affine": False}):
        trainer = tiny.trainer(Adversarial, method="turning", method_options=given, base_augmentation="stock")
        trainer.initialize()
        assert trainer.method.affine is given.get("affine", True)
