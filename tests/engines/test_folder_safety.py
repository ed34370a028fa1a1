# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run's folder may come from somebody else: nothing in it is run, and what is damaged is refused by name."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import loader, network, trainer
from ignite.engine import Events

from monai_autoaug import augmenters
from monai_autoaug.data import Preprocessing, read_datalist, write_phantom
from monai_autoaug.engines import predict
from monai_autoaug.engines.checkpoints import TrainingCheckpoint
from monai_autoaug.engines.folder import Run, read_json
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.segmentation import build_network
from monai_autoaug.errors import AutoAugError, CheckpointError, ConfigError, PolicyError
from monai_autoaug.reading import leaves

UNET: dict[str, Any] = {"name": "unet", "inputs": 1, "outputs": 4, "options": {"channels": [4, 8]}}


class Harmful:
    """What a pickle would run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """What a run that has ended leaves for prediction."""
    data = read_datalist(write_phantom(tmp_path / "data", cases=2, size=16))
    run = Run(tmp_path / "run")
    Preprocessing.fit(data, data.training).save(run.preprocessing)
    run.save_model(build_network("unet", 1, 4, channels=[4, 8]), **UNET)
    split = {"train": ["a"], "meta": [], "validation": ["b"]}
    options = TrainOptions(data.folder, run.folder, method="none").to_dict()
    content = {"options": options, "patch_size": [16] * 3, "margin": [0] * 3, "split": split}
    run.config.write_text(json.dumps(content))
    return run


def segment(run: Run) -> list[Path]:
    return predict(run.folder, run.folder.parent / "data" / "imagesTr", run.folder.parent / "out", device="cpu")


def test_a_good_folder_works(run: Run) -> None:
    assert len(segment(run)) == 2


def test_what_could_not_be_read_again_is_not_written(run: Run) -> None:
    """Saving refuses all that loading does, and leaves the last good file."""
    good = {"method": {"players": [torch.ones(2)]}, "clock": {"seconds": 1.0, "dice": float("nan")}}
    run.save_checkpoint(good)
    before = {f: f.read_bytes() for f in (run.checkpoint, run.model)}
    for bad, says in (
        ({"method": {"players": [torch.tensor([1.0, torch.nan])]}}, r"method.players\[0\] holds 1 values"),
        ({"best": Path("x")}, "best is a PosixPath"),
    ):
        with pytest.raises(CheckpointError, match=f"checkpoint.pt: is not written, .*{says}.*the last good one stays"):
            run.save_checkpoint(good | bad)
    network = build_network("unet", 1, 4, channels=[4, 8])
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = torch.inf
    with pytest.raises(CheckpointError, match="model.pt: is not written"):
        run.save_model(network, **UNET)
    assert {f: f.read_bytes() for f in before} == before
    assert torch.equal(run.load_checkpoint()["method"]["players"][0], torch.ones(2))


def model(change: Callable[[dict[str, Any]], Any]) -> Callable[[Run], None]:
    def edit(run: Run) -> None:
        content = torch.load(run.model)
        change(content)
        torch.save(content, run.model)

    return edit


def config(**changes: Any) -> Callable[[Run], None]:
    return lambda run: _rewrite(run.config, json.loads(run.config.read_text()) | changes) and None


def _rewrite(path: Path, content: Any) -> int:
    return path.write_text(json.dumps(content))


def nan(content: dict[str, Any]) -> None:
    next(iter(content["state"].values())).view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda r: r.model.write_bytes(pickle.dumps(Harmful(r.folder / "made"))), "model.pt: can't be .*no archive"),
        (lambda r: torch.save(Harmful(r.folder / "made"), r.model), "model.pt: can't be read .*UnpicklingError"),
        (lambda r: r.model.write_bytes(r.model.read_bytes()[:-900]), "model.pt: can't be read .*no archive"),
        (lambda r: torch.save([1], r.model), "is no checkpoint of this package"),
        (model(nan), "model.pt: can't be read .*holds 1 values that are not finite"),
        (model(lambda c: c.pop("name")), "can't be built .*name"),
        (model(lambda c: c.update(inputs=10**9)), "can't be built .*has shape"),
        (model(lambda c: c["options"].update(channels=[10**5, 10**5])), "can't be built .*tensors"),
        (model(lambda c: c["state"].popitem()), "can't be built .*tensors are others"),
        (model(lambda c: c.update(state=3)), "can't be built"),
        (model(lambda c: c.update(version=9)), "another version"),
        (config(patch_size=[0, 16, 16]), "config.json: field patch_size"),
        (config(patch_size="16"), "config.json: field patch_size"),
        (config(options={}), "config.json: field options"),
        (lambda r: r.config.write_text("[1]"), "config.json: is no JSON object"),
        (lambda r: r.config.write_text("{"), "config.json: can't be read"),
        (lambda r: r.preprocessing.write_text("{}"), "preprocessing.json"),
        (lambda r: r.policy.write_text("{}"), "policy.json"),
    ],
    ids=range(18),
)
def test_bad_folders_are_refused(run: Run, spoil: Callable[[Run], Any], says: str) -> None:
    spoil(run)
    with pytest.raises(AutoAugError, match=says):
        segment(run)
    assert not (run.folder / "made").exists()
    assert not (run.folder.parent / "out").exists()


def test_files_of_a_run_that_are_read_later(tmp_path: Path) -> None:
    for name, content in (("summary.json", {"method": "none"}), ("audit.json", {"counts": {}})):
        _rewrite(tmp_path / name, content)
        with pytest.raises(ConfigError, match=rf"{name}: field .*required property"):
            read_json(tmp_path / name)


@pytest.mark.parametrize("kind", ["pickle", "cut", "nan", "other", "empty"])
def test_checkpoints_of_a_run(tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path)
    run.save_checkpoint({"a": torch.ones(9), "dice": float("nan")})  # a Dice that is not defined is no fault
    assert torch.equal(run.load_checkpoint()["a"], torch.ones(9))
    if kind == "pickle":
        torch.save({"a": Harmful(tmp_path / "made")}, run.checkpoint)
    elif kind == "cut":
        run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:300])
    elif kind == "nan":
        torch.save({"a": torch.tensor([torch.nan])}, run.checkpoint)
    elif kind == "other":
        torch.save(torch.ones(2), run.checkpoint)
    else:
        run.checkpoint.write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoint.pt: "):
        run.load_checkpoint()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["cut", "pickle", "lacking", "flipped"])
def test_resuming_from_a_damaged_checkpoint(tmp_path: Path, kind: str) -> None:
    """The engine's own checkpoint handler."""
    path = tmp_path / "checkpoint.pt"
    net = network()
    engine = trainer(network=net, data=loader(), max_epochs=1)
    TrainingCheckpoint(path, {"model": net}).attach(engine)
    engine.run()
    data = path.read_bytes()
    if kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "pickle":
        torch.save({"model": Harmful(tmp_path / "made")}, path)
    elif kind == "lacking":
        torch.save({"model": net.state_dict()}, path)
    else:
        weight = next(iter(net.state_dict().values())).numpy().tobytes()
        place = data.find(weight[:32])
        assert place > 0
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    again = trainer(network=network(), data=loader(), max_epochs=2)
    TrainingCheckpoint(path, {"model": network()}, resume=True).attach(again)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: can't be resumed from"):
        again.run()
    assert not (tmp_path / "made").exists()


class Masked(torch.nn.Module):
    """With a buffer that is infinite on purpose, as masks of attention are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


@pytest.mark.parametrize("where", ["model.net", "model.mask", "optimizer", "autoaug"])
def test_resuming_from_a_checkpoint_that_is_not_finite(tmp_path: Path, where: str) -> None:
    """Of what is infinite only what the network was made with; nothing is loaded before all has been looked at."""
    path, net = tmp_path / "checkpoint.pt", Masked()
    engine = trainer("adversarial", network=net, data=loader(), max_epochs=1)
    TrainingCheckpoint(path, {"model": net, "optimizer": engine.optimizer}).attach(engine)
    engine.run()
    good, content = path.read_bytes(), torch.load(path)
    assert content["model"]["mask"].tolist() == [0.0, -torch.inf]

    def resuming() -> tuple[Any, Masked]:
        again = trainer("adversarial", network=(other := Masked()), data=loader(), max_epochs=2)
        TrainingCheckpoint(path, {"model": other, "optimizer": again.optimizer}, resume=True).attach(again)
        return again, other

    again, other = resuming()
    before = [v.clone() for v in other.state_dict().values()]
    states = {
        "model.net": {k: v for k, v in content["model"].items() if k.startswith("net")},
        "model.mask": {"mask": content["model"]["mask"]},
        "optimizer": content["optimizer"], "autoaug": content["autoaug"]["method"]["players"],
    }  # fmt: skip
    tensor = next(v for _, v in leaves(states[where]) if isinstance(v, torch.Tensor) and v.is_floating_point())
    tensor.view(-1)[0] = torch.nan
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"can't be resumed from .*{where}.* values that are not finite"):
        again.run()
    assert all(torch.equal(a, b) for a, b in zip(before, other.state_dict().values(), strict=True))
    path.write_bytes(good)
    again, other = resuming()
    again.run()
    assert again.state.epoch == 2


def test_a_checkpoint_that_could_not_be_resumed_from_is_not_written(tmp_path: Path) -> None:
    path, net = tmp_path / "checkpoint.pt", Masked()
    engine = trainer("none", network=net, data=loader(), max_epochs=2)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: net.scale.fill_(torch.nan))
    TrainingCheckpoint(path, {"model": net}).attach(engine)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: is not written, .*model.scale holds 2 .*good one stays"):
        engine.run()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(path)["model"]["scale"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(format="x"), "is not a file of augmenters"),
        (lambda c: c.update(version=99), "format 99"),
        (lambda c: c.update(version=None), "format None"),
        (lambda c: c.update(augmenters=[1]), "no table"),
        (lambda c: c["augmenters"]["a"].update(kind="spin"), "unknown kind 'spin'"),
        (lambda c: c["augmenters"].update(a=3), "unknown kind"),
        (lambda c: c["augmenters"]["a"].update(options={"size": 1}), "can't be built"),
        (lambda c: c["augmenters"]["a"].update(options={"spatial_dims": 3, "channels": 10**9}), "can't be built"),
        (lambda c: c["augmenters"]["a"]["state"].popitem(), "can't be built .*tensors are others"),
        (lambda c: next(iter(c["augmenters"]["a"]["state"].values())).fill_(torch.inf), "not finite"),
    ],
    ids=range(10),
)
def test_augmenter_files(tmp_path: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    path = augmenters.save(tmp_path / "augmenters.pt", {"a": augmenters.find("affine")(3, 1)})
    assert augmenters.load(path)["a"].kind == "affine"
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    with pytest.raises(PolicyError, match=rf"augmenters\.pt: .*{says}"):
        augmenters.load(path)
