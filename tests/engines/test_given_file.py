# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A finished policy.json in a new run: the start of its policies, which the run keeps when the file goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import options, rows, stop_at, weights

from monai_autoaug import policies
from monai_autoaug.data import write_phantom
from monai_autoaug.engines import resume, train
from monai_autoaug.engines.folder import Run
from monai_autoaug.policies import TestTimePolicy, TrainingPolicy


def moved(policy: Any, seed: int) -> Any:
    with torch.no_grad():
        policy.logits += torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(seed))
    if isinstance(policy, TrainingPolicy):
        policy.constrain()
    return policy


@pytest.mark.parametrize("changed", [None, "uniform"])  # the file is gone, or another one by now
def test_a_run_goes_on_with_the_policies_that_it_was_given(tmp_path: Path, changed: str | None) -> None:
    data = write_phantom(tmp_path / "data", cases=7, size=20)
    training, views = moved(TrainingPolicy.preset("nnunet"), 0), moved(TestTimePolicy.preset("uniform"), 1)
    file = policies.save(tmp_path / "policy.json", training=training, test_time=views)
    given: dict[str, Any] = {
        "method": "joint_policy", "meta_cases": 2, "epochs": 2,
        "method_options": {"policy": str(file), "warm_up": 0, "update_every": 3, "meta_batch": 2, "views": 2,
                           "learn_test_time": False},
    }  # fmt: skip
    whole = train(options(data, tmp_path / "whole", **given))
    learned = policies.load(whole.policy)
    assert learned.training is not None
    assert not torch.equal(learned.training.logits, training.logits)
    start = {o.name: float(v) for o, v in zip(views.operations, views.logits, strict=True)}
    assert learned.test_time is not None  # fixed, so that it is the start
    for operation, logit in zip(learned.test_time.operations, learned.test_time.logits.tolist(), strict=True):
        assert logit == pytest.approx(start[operation.name])

    with pytest.raises(KeyboardInterrupt):
        train(options(data, tmp_path / "stopped", **given), listener=stop_at(4))
    file.unlink()
    if changed is not None:
        policies.save(file, training=TrainingPolicy.preset(changed))
    stopped = Run(tmp_path / "stopped")
    resume(stopped.folder)
    assert rows(stopped) == rows(whole)
    assert stopped.policy.read_bytes() == whole.policy.read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True))
