# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The trainer is MONAI's own with method "none", and with a learned augmentation tells handlers all it does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import items, loader, loss, network, record, train, trainer, transforms
from ignite.engine import Events
from monai.data import DataLoader, Dataset, PersistentDataset
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import MeanDice, StatsHandler, TensorBoardStatsHandler, from_engine
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, Compose
from torch import nn

from monai_autoaug import methods
from monai_autoaug.augmenters import load
from monai_autoaug.engines import AugmenterSaver, AutoAugTrainer, figures
from monai_autoaug.errors import ConfigError


def four_tuple(data: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    return data["image"] * 0.5, data["label"], (), {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sgd": False},
        {"accumulation_steps": 2},
        {"accumulation_steps": 3, "sgd": False},
        {"epoch_length": 2},
        {"amp": True},
        {"loss_function": DiceLoss(to_onehot_y=True, softmax=True, reduction="none", batch=True)},
        {"inferer": SlidingWindowInferer((8, 8, 8), overlap=0.25)},
        {"prepare_batch": four_tuple},
        {"data": partial(loader, num_workers=2)},
        # SupervisedTrainer itself can't compile with the channel axis in a batch's metadata
        {"compile": True, "compile_kwargs": {"backend": "eager"}, "data": partial(loader, channel_axis=False)},
    ],
    ids=lambda o: ",".join(o) or "plain",
)
def test_none_is_supervised_trainer_step_by_step(options: dict[str, Any]) -> None:
    theirs, their_network = train(SupervisedTrainer, **options)
    ours, our_network = train(AutoAugTrainer, method="none", **options)
    assert len(ours) == len(theirs) > 3
    assert ours == theirs
    for mine, other in zip(our_network.state_dict().values(), their_network.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def events_and_outputs(kind: Callable[..., Any], **options: Any) -> list[tuple[str, Any]]:
    """Every event of a run, with the types of what is in the engine's output by then."""
    seen: list[tuple[str, Any]] = []
    net = network()
    engine = kind("cpu", 1, loader(), net, torch.optim.SGD(net.parameters(), 0.1), loss(), **options)

    def note(engine: Any, name: str) -> None:
        output = engine.state.output
        rows = output if isinstance(output, list) else [output]
        seen.append((name, [{str(k): type(v).__name__ for k, v in row.items() if v is not None} for row in rows]))

    for event in [*IterationEvents, Events.ITERATION_COMPLETED]:
        engine.add_event_handler(event, note, event.name)
    engine.run()
    return seen


ORDER = ["FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED", "ITERATION_COMPLETED"]


def test_none_fires_monai_events_with_monai_output() -> None:
    ours = events_and_outputs(AutoAugTrainer, method="none")
    theirs = events_and_outputs(SupervisedTrainer)
    assert [name for name, _ in ours[:5]] == ORDER
    for _, rows in theirs:  # the core computes with plain tensors, so the loss is one too; all else is the same
        for row in rows:
            if row.get("loss") == "MetaTensor":
                row["loss"] = "Tensor"
    assert ours == theirs


@pytest.mark.parametrize("method", ["random", "adversarial"])
def test_learned_augmentation_fires_the_same_events(method: str) -> None:
    engine = trainer(method)
    seen: list[str] = []
    for event in [*IterationEvents, Events.ITERATION_COMPLETED]:
        engine.add_event_handler(event, lambda e, name=event.name: seen.append(name))
    engine.run()
    assert seen == ORDER * 2


def test_figures_reach_output_metrics_log_and_tensorboard(capsys: pytest.CaptureFixture[str]) -> None:
    class Writer:
        def __init__(self) -> None:
            self.tags: set[str] = set()

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.tags.add(tag)

        def flush(self) -> None:
            pass

    writer = Writer()
    handlers = [
        StatsHandler(output_transform=figures(), name="stats"),
        TensorBoardStatsHandler(summary_writer=writer, output_transform=figures()),
    ]
    engine = trainer(max_epochs=2, train_handlers=handlers)
    rows = record(engine)
    engine.run()
    parts = [f"loss_{kind}" for kind in ("clean", "affine", "deformation", "appearance")]
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][part] for part in parts) / 4)
    assert "affine_rotation" in engine.state.metrics
    assert {"loss_affine", "discriminator_accuracy", "affine_rotation"} <= writer.tags
    log = capsys.readouterr().out
    assert "loss_deformation" in log
    assert "affine_rotation" in log


def test_figures_of_an_epoch_do_not_stay_for_the_next() -> None:
    engine = trainer("random", max_epochs=2)
    metrics: list[dict[str, float]] = []
    engine.method.on_epoch = lambda epoch: {f"figure_{epoch}": 1.0}  # type: ignore[method-assign]
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: metrics.append(dict(e.state.metrics)))
    engine.run()
    assert metrics == [{"figure_1": 1.0}, {"figure_2": 1.0}]


def test_what_the_method_says_goes_to_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = trainer("random", max_epochs=3)
    seen = iter(range(3))
    engine.method.announcement = lambda: ["10 updates"]  # type: ignore[method-assign]
    engine.method.warnings = lambda: ["affine: collapsed", f"{next(seen) // 2} of them"]  # type: ignore[method-assign]
    engine.logger.propagate = True
    with caplog.at_level(logging.INFO, logger=engine.logger.name):
        engine.run()
    said = [(r.levelname, r.message) for r in caplog.records if r.name == engine.logger.name]
    own = [pair for pair in said if any(word in pair[1] for word in ("updates", "collapsed", "of them"))]
    assert own == [
        ("INFO", "10 updates"), ("WARNING", "affine: collapsed"), ("WARNING", "0 of them"), ("WARNING", "1 of them"),
    ]  # fmt: skip


def test_train_metric_and_postprocessing_work_on_augmented_batches() -> None:
    post = Compose([AsDiscreted(["pred", "label"], argmax=(True, False), to_onehot=3)])
    metric = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    engine = trainer(max_epochs=2, postprocessing=post, key_train_metric={"train_mean_dice": metric})
    engine.run()
    assert 0 < engine.state.metrics["train_mean_dice"] < 1
    assert engine.state.best_metric_epoch >= 1


def test_label_in_the_output_is_the_warped_one() -> None:
    engine = trainer("random", {"mode": "affine", "bounds": {"affine": {"rotation": 40.0}}, "warm_up": 0})
    original, seen = [], []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: original.append(e.state.batch["label"].as_tensor()))
    engine.add_event_handler(IterationEvents.LOSS_COMPLETED, lambda e: seen.append(e.state.output))
    engine.run()
    assert seen[0]["label"].shape == original[0].shape
    assert not torch.equal(seen[0]["label"], original[0])
    assert set(seen[0]["label"].unique().tolist()) <= {0.0, 1.0, 2.0}


def test_accumulation_adds_the_gradients_of_micro_batches() -> None:
    steps = []
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    optimizer.register_step_post_hook(lambda *_: steps.append(engine.state.iteration))
    engine = trainer("none", network=net, optimizer=optimizer, data=loader(batch_size=1), accumulation_steps=2)
    engine.run()
    assert steps == [2, 4, 5]


def test_gradient_is_clipped() -> None:
    norms = []
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(torch.stack([p.grad.norm() for p in net.parameters()]).norm()))
    )
    trainer("none", network=net, optimizer=optimizer, clip=1e-3).run()
    assert all(norm <= 1.001e-3 for norm in norms)


@pytest.mark.parametrize("method", ["none", "adversarial"])
def test_bfloat16_on_the_cpu(method: str) -> None:
    dtypes = []
    engine = trainer(method, amp=True, amp_kwargs={"dtype": torch.bfloat16})
    engine.add_event_handler(
        IterationEvents.FORWARD_COMPLETED, lambda e: dtypes.append(e.state.output["pred"].dtype)
    )
    rows = record(engine)
    engine.run()
    assert set(dtypes) == {torch.bfloat16}
    assert all(torch.isfinite(torch.tensor(list(r.values()))).all() for r in rows)


def test_float16_switches_itself_off_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    engine = trainer("adversarial", amp=True)
    assert engine.scaler is None
    assert "float16 needs a GPU" in caplog.text
    engine.run()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_network_trains_as_the_plain_one_does(backend: str) -> None:
    """Without auxiliary batch norms, for which it is switched off."""
    runs = []
    for options in ({}, {"compile": True, "compile_kwargs": {"backend": backend}}):
        torch.manual_seed(0)
        engine = trainer(network=UNet(3, 1, 3, channels=(4, 8), strides=(2,), norm="instance"), **options)
        assert engine.compile == bool(options)
        runs.append(record(engine))
        engine.run()
    plain, compiled = runs
    assert [row.keys() for row in compiled] == [row.keys() for row in plain]
    assert [row["loss"] for row in compiled] == pytest.approx([row["loss"] for row in plain])


@pytest.mark.parametrize("wrapped", [False, True])
def test_batch_norms_with_auxiliary_groups_are_not_compiled(caplog: pytest.LogCaptureFixture, wrapped: bool) -> None:
    """They were, anew for each division of a batch, until torch's limit was reached."""
    calls: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(inputs)
        return graph

    net = methods.prepare("adversarial", network(), warm_up=0)
    runs = nn.DataParallel(net) if wrapped else net
    engine = AutoAugTrainer(
        "cpu", 1, loader(batch_size=4), runs, torch.optim.SGD(net.parameters(), lr=0.1), loss(),
        method_options={"warm_up": 0}, compile=True, compile_kwargs={"backend": backend},
    )  # fmt: skip
    assert "torch.compile is off" in caplog.text
    engine.run()
    assert calls == []


def test_persistent_dataset_and_plain_dataset(tmp_path: Path) -> None:
    for dataset in (PersistentDataset(items(), transforms(), cache_dir=tmp_path), Dataset(items(), transforms())):
        engine = trainer(data=DataLoader(dataset, batch_size=4, shuffle=True))
        rows = record(engine)
        engine.run()
        assert len(rows) == 2


def test_spawned_workers() -> None:
    data = loader(batch_size=4, num_workers=1, multiprocessing_context="spawn", persistent_workers=True)
    engine = trainer(data=data)
    rows = record(engine)
    engine.run()
    assert "discriminator_accuracy" in rows[0]
    assert engine.streams["real"].loader.multiprocessing_context is data.multiprocessing_context


def test_augmenters_are_saved(tmp_path: Path) -> None:
    engine = trainer(train_handlers=[AugmenterSaver(tmp_path / "augmenters.pt", interval=1)])
    engine.run()
    assert sorted(load(tmp_path / "augmenters.pt")) == ["affine", "appearance", "deformation"]
    trainer("none", train_handlers=[AugmenterSaver(tmp_path / "augmenters.pt")]).run()
    assert not (tmp_path / "augmenters.pt").exists()  # it belonged to the former network


def test_augmenter_saver_refuses_another_engine() -> None:
    net = network()
    engine = SupervisedTrainer("cpu", 1, loader(), net, torch.optim.SGD(net.parameters(), 0.1), loss())
    with pytest.raises(ConfigError, match="SupervisedTrainer"):
        AugmenterSaver("x.pt").attach(engine)
