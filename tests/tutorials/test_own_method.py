# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The tutorial's code is installed as it stands there and found by name everywhere; faulty entry points are told."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

from monai_autoaug import augmenters, methods
from monai_autoaug.cli import main
from monai_autoaug.commands.train import train
from monai_autoaug.engines import AutoAugTrainer
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.nnunet import Options
from monai_autoaug.yaml_values import parse

TUTORIAL = (Path(__file__).parents[2] / "tutorials" / "own_method.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", TUTORIAL, re.DOTALL))
POINTS = {"monai_autoaug.augmenters": {"ramp": "my_ramp:RampAugmenter"},
          "monai_autoaug.methods": {"worst_of": "my_worst_of:WorstOf"}}  # fmt: skip


def distribution(folder: Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """What an installer writes of a distribution's entry points."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in named.items()) for group, named in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder on the path, for throw-away distributions; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def installed(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).write_text(content)
    distribution(folder, "my-augmentation", POINTS)
    importlib.invalidate_caches()
    return folder


def test_the_packaging_file_says_what_the_test_installs() -> None:
    groups = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n((?:\w+ = ".*"\n)+)', FILES["pyproject.toml"])
    told = {group: dict(re.findall(r'(\w+) = "(.*)"', lines)) for group, lines in groups}
    assert told == POINTS


def test_the_code_is_as_short_as_promised() -> None:
    for name, most in (("my_ramp.py", 20), ("my_worst_of.py", 50)):
        lines = [line for line in FILES[name].splitlines() if line.strip()]
        assert len(lines) <= most, name


@pytest.mark.usefixtures("installed")
def test_both_are_found_by_name() -> None:
    assert "worst_of" in methods.names()
    assert methods.find("worst_of").__module__ == "my_worst_of"
    assert sorted(methods.options("worst_of")) == ["candidates", "image_channels", "seed", "slope"]
    assert "ramp" in augmenters.kinds()
    assert augmenters.find("ramp").__name__ == "RampAugmenter"
    assert Options(method="worst_of", method_options={"candidates": 2}).method == "worst_of"
    assert TrainOptions("data", "run", method="worst_of").method == "worst_of"
    with pytest.raises(ConfigError, match="has no option 'tries'; it has candidates"):
        TrainOptions("data", "run", method="worst_of", method_options={"tries": 2})
    with pytest.raises(ConfigError, match="candidates must be at least 1"):
        trainer("worst_of", candidates=0)


def trainer(method: str, **options: Any) -> AutoAugTrainer:
    torch.manual_seed(0)
    net = methods.prepare(method, UNet(3, 1, 3, (4, 8), (2,), num_res_units=1), **options)
    image = torch.randn(4, 1, 16, 16, 16)
    data = [{"image": image, "label": (image > 0.3).float() + (image > 1).float()}] * 2
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    return AutoAugTrainer("cpu", 1, data, net, optimizer, DiceCELoss(to_onehot_y=True, softmax=True), method=method,
                          method_options=options, real_data_loader=data)  # fmt: skip


@pytest.mark.usefixtures("installed")
def test_the_method_trains_and_takes_the_worst() -> None:
    engine = trainer("worst_of", candidates=3, slope=1.0)
    method: Any = engine.method
    tries: list[Any] = []
    original = method.tried
    method.tried = lambda batch: tries.append(original(batch)) or tries[-1]
    seen: list[Any] = []
    forward = method.task.notify
    method.task.notify = lambda event, values: (seen.append(values.get("batch")), forward(event, values))
    engine.run()
    assert engine.state.iteration == 2
    assert len(tries) == 6
    chosen = next(b for b in seen if b is not None)
    for i in range(4):
        assert any(torch.equal(chosen.image[i], t.image[i]) for t in tries[:3])
    assert float(engine.state.output[0]["loss"]) > 0


@pytest.mark.usefixtures("installed")
def test_the_generator_learns_in_a_method_of_the_package_and_is_kept(tmp_path: Path) -> None:
    engine = trainer("adversarial", mode="ramp", warm_up=0, bounds={"ramp": {"slope": 1.0}})
    ramp: Any = engine.method.augmenters()["ramp"]
    assert ramp.slope == 1.0
    engine.run()
    assert float(ramp.head.weight.abs().sum()) > 0  # it has learned
    file = augmenters.save(tmp_path / "augmenters.pt", engine.method.augmenters())
    again = augmenters.load(file)["ramp"]
    image, noise = torch.randn(2, 1, 8, 8, 8), ramp.sample_noise(2, torch.Generator().manual_seed(0))
    assert torch.equal(again(image, noise).apply(image), ramp.eval()(image, noise).apply(image))
    change = again(image, noise).apply(image) - image
    assert float(change.abs().max()) <= 3.0
    assert torch.allclose(change.diff(dim=2), change.diff(dim=2)[:, :, :1].expand(-1, -1, 7, -1, -1), atol=1e-4)


def test_what_a_file_was_made_with_has_to_be_there(installed: Path, tmp_path: Path) -> None:
    file = augmenters.save(tmp_path / "augmenters.pt", {"ramp": augmenters.find("ramp")(3, 1)})
    (installed / "my_augmentation-0.1.dist-info" / "entry_points.txt").write_text("")
    sys.path.append(str(tmp_path / "elsewhere"))  # another path: what is installed is looked up anew
    try:
        with pytest.raises(PolicyError, match="'ramp' is of unknown kind 'ramp'"):
            augmenters.load(file)
    finally:
        sys.path.remove(str(tmp_path / "elsewhere"))


@pytest.mark.usefixtures("installed")
def test_the_commands_of_the_tutorial_can_be_given() -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", TUTORIAL, re.DOTALL)
    for line in block.strip().splitlines():
        words = shlex.split(line)[2:]
        context = click.Context(train, info_name="train")
        train.parse_args(context, words)
        options = context.params["method_options"]
        TrainOptions("data", "run", method=context.params["method"], method_options=options)
    (block,) = re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.DOTALL)
    Options.from_mapping(parse(block))
    done = CliRunner().invoke(main, ["train", "nowhere", "--method", "worst_off"])
    assert done.exit_code == 2
    assert "worst_of;" in done.output


WRONG = [
    ({"worst_of": "my_module:Missing"}, r"worst_of = my_module:Missing of broken can't be imported \(AttributeError"),
    ({"worst_of": "my_nothing:X"}, r"of broken can't be imported \(ModuleNotFoundError"),
    ({"worst_of": "my_module:NUMBER"}, "must be a subclass of monai_autoaug.methods.base.Method, got 3"),
    ({"worst_of": "my_module:Other"}, "names Other, whose name is 'other': give both one name"),
    ({"adversarial": "my_module:Other"}, "'adversarial' is given by broken and by monai_autoaug: rename"),
]


@pytest.mark.parametrize(("points", "message"), WRONG)
def test_faults_of_entry_points_are_told(folder: Path, points: dict[str, str], message: str) -> None:
    (folder / "my_module.py").write_text(
        "from monai_autoaug.methods.none import NoAugmentation\nNUMBER = 3\n"
        "class Other(NoAugmentation):\n    name = 'other'\n"
    )
    distribution(folder, "broken", {"monai_autoaug.methods": points})
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=message):
        methods.find("worst_of")


def test_two_distributions_with_one_name_are_told(folder: Path) -> None:
    for name in ("first-one", "second-one"):
        distribution(folder, name, {"monai_autoaug.augmenters": {"ramp": f"my_{name[:5]}:X"}})
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"'ramp' is given by (first|second)-one and by (first|second)-one"):
        augmenters.kinds()
