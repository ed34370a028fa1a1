# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The bilevel method in a whole run: validation cases drawn anew each epoch, the same after a resume, pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.losses import DiceLoss
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import augmenters
from monai_autoaug.data import EpochCases, MetaSplit, PatchBatches, write_phantom
from monai_autoaug.engines import TrainOptions, per_sample, resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.errors import ConfigError
from monai_autoaug.report.panels import augmentation_panels

BILEVEL: dict[str, Any] = {"method": "bilevel", "method_options": {"update_every": 2}, "epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("data"), cases=7, size=20)


def learned(run: Run) -> dict[str, torch.Tensor]:
    return dict(augmenters.load(run.augmenters)["parametric"].state_dict())


@pytest.mark.parametrize(("unroll", "step"), [(1, 1), (2, 4)])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(data: Path, tmp_path: Path, unroll: int, step: int) -> None:
    given = BILEVEL | {"method_options": {"update_every": 2, "unroll": unroll}, "validation_interval": 1}
    whole = train(options(data, tmp_path / "whole", **given))
    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped", **given), listener=stop_at(step))
    stopped = Run(tmp_path / "stopped")
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    for a, b in ((weights(stopped), weights(whole)), (learned(stopped), learned(whole))):
        assert all(torch.equal(t, b[n]) for n, t in a.items())
    assert rows(whole)[-1]["augmenter_updates"] == 3
    assert {"meta_loss", "hypergradient", "parametric_noise_share"} <= set(rows(whole)[-1])
    label = torch.eye(2)[torch.ones(8, 8, 8).long()].movedim(-1, 0)
    panels = augmentation_panels(augmenters.load(whole.augmenters), torch.zeros(1, 8, 8, 8), label)
    assert panels[1].title == "parametric"


def test_a_fifth_is_drawn_anew_each_epoch_unless_told_otherwise(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[str, int], set[str]] = {}
    cut = PatchBatches.__getitem__

    def note(self: PatchBatches, number: int) -> Any:
        batch = cut(self, number)
        if batch.case[0].startswith("phantom"):  # not the rehearsal
            seen.setdefault((self.stream, number // 3), set()).update(batch.case)
        return batch

    monkeypatch.setattr(PatchBatches, "__getitem__", note)
    given = BILEVEL | {"epochs": 4, "method_options": {"update_every": 1}, "seed": 1}
    run = train(options(data, tmp_path / "run", **given))
    config = json.loads(run.config.read_text())
    assert config["meta_cases_of_an_epoch"] == 1  # of five
    assert config["options"]["meta_split"] == "resampled"
    for epoch in range(4):
        assert len(seen["meta", epoch]) == 1
        assert not seen["meta", epoch] & seen["train", epoch]
    assert len({frozenset(seen["meta", e]) for e in range(4)}) > 1
    validation = set(config["split"]["validation"])
    assert not validation & set().union(*seen.values())


def test_defaults_are_the_methods_and_a_hold_out_is_an_option() -> None:
    assert (lambda o: (o.meta_share, o.meta_split))(TrainOptions("d", "o", method="bilevel")) == (0.2, "resampled")
    assert TrainOptions("d", "o", method="bilevel", meta_split="fixed").meta_split == "fixed"
    fixed = TrainOptions("d", "o", method="bilevel", method_options={"augmentation": "predefined"})
    assert (fixed.meta_share, fixed.meta_split) == (0, "fixed")
    with pytest.raises(ConfigError, match="can't be 0"):
        TrainOptions("d", "o", method="bilevel", meta_cases=0)


def test_the_split_of_an_epoch() -> None:
    """Others each epoch, the same for the same seed, no case in both parts."""
    for cases in (5, 20, 33):
        held = max(1, round(0.2 * cases))
        made = [MetaSplit(tuple(range(cases)), held, seed, resampled=True) for seed in (3, 3, 4)]
        epochs = [[set(s.meta(e)) for e in range(10)] for s in made]
        assert epochs[0] == epochs[1] != epochs[2]
        assert len({frozenset(e) for e in epochs[0]}) > 3
        for epoch in range(10):
            train_, meta = (EpochCases(made[0], 7, p)(epoch * 7 + 3) for p in ("train", "meta"))  # type: ignore[arg-type]
            assert not set(train_) & set(meta)
            assert len(meta) == held
            assert len(train_) + len(meta) == cases


def test_a_loss_over_the_whole_batch_has_its_own_second_derivatives() -> None:
    """Batch Dice: the Hessian of what is asked for as a whole is that of MONAI's loss."""
    host = DiceLoss(to_onehot_y=True, softmax=True, batch=True)
    losses = per_sample(host)
    logits = torch.randn(2, 3, 4, 4)
    index = torch.randint(3, (2, 1, 4, 4))
    label = torch.nn.functional.one_hot(index[:, 0], 3).movedim(-1, 1).float()
    d = torch.randn_like(logits)

    def curved(function: Any) -> torch.Tensor:
        x = logits.clone().requires_grad_()
        (g,) = torch.autograd.grad(function(x), x, create_graph=True)
        return torch.autograd.grad((g * d).sum(), x)[0] if g.requires_grad else torch.zeros_like(x)

    expected = curved(lambda x: host(x, index))
    assert losses(logits, label, None).mean() == pytest.approx(float(losses.whole(logits, label, None)), abs=1e-6)
    assert losses.rule == "linear"
    assert torch.allclose(curved(lambda x: losses.whole(x, label, None)), expected, atol=1e-7)
    assert not torch.allclose(curved(lambda x: losses(x, label, None).mean()), expected, atol=1e-5)
