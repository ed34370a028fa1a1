# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is known of an operation: its advantage, how sure that is, and that ``policy.json`` keeps both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_autoaug import policies
from monai_autoaug.errors import PolicyError
from monai_autoaug.policies import Sampled, Seen, TrainingPolicy
from monai_autoaug.policies.evidence import Evidence


def learned() -> tuple[TrainingPolicy, Evidence]:
    """Foreground samples of which every second was mirrored along the first axis, and better; background has none."""
    policy = TrainingPolicy.preset("nnunet")
    evidence = Evidence(policy)
    drawn = torch.zeros(64, 15, dtype=torch.long)
    drawn[::2, 4] = 1
    h = torch.randn(64, generator=torch.Generator().manual_seed(0)) - drawn[:, 4]
    evidence.add(Sampled(h, torch.ones(64, dtype=torch.long), drawn))
    return policy, evidence


def place(policy: TrainingPolicy, name: str) -> int:
    return [o.name for c in policy.cascades for o in c.operations].index(name)


def test_it_knows_the_start_and_what_it_has_seen() -> None:
    policy, evidence = learned()
    start = policy.logits.detach().clone()
    with torch.no_grad():
        policy.logits.normal_()
    seen = evidence.seen(start)
    fresh = TrainingPolicy.preset("nnunet")
    for k, name in enumerate(fresh.classes):
        torch.testing.assert_close(seen.start[k].float(), torch.cat(fresh.probabilities(name)))
    flip = place(policy, "flip_d")
    assert seen.advantage[1, flip] > 3 * seen.error[1, flip]
    assert torch.nonzero(seen.decided()).tolist() == [[1, flip]]
    assert evidence.decided() == {"background": [], "foreground": ["flip_d"]}
    assert not seen.decided(errors=1000).any()
    assert torch.isinf(seen.error[0]).all()  # no sample


def test_the_file_keeps_it_where_there_is_any(tmp_path: Path) -> None:
    policy, evidence = learned()
    seen = evidence.seen(policy.logits)
    path = policies.save(tmp_path / "policy.json", training=policy, seen=seen)
    found = policies.load(path)
    assert found.seen is not None
    for name in ("start", "advantage", "error"):
        known = torch.isfinite(seen.error) | (torch.tensor(name == "start"))
        torch.testing.assert_close(getattr(found.seen, name)[known], getattr(seen, name)[known], rtol=0, atol=1e-6)
    assert torch.equal(found.seen.decided(), seen.decided())
    row = next(json.loads(line.rstrip(",")) for line in path.read_text().splitlines() if '"flip_d"' in line)
    assert set(row["evidence"]) == {"foreground"}
    assert row["start"] == {"background": 0.5, "foreground": 0.5}
    again = policies.save(tmp_path / "b.json", training=found.training, seen=found.seen, provenance=found.provenance)
    assert again.read_bytes() == path.read_bytes()


def test_a_file_that_says_nothing_of_it_is_read_as_ever(tmp_path: Path) -> None:
    policy, _ = learned()
    path = policies.save(tmp_path / "policy.json", training=policy)
    assert policies.load(path).seen is None
    assert "evidence" not in path.read_text()
    assert "start" not in path.read_text()


def _without_start(row: dict[str, Any]) -> None:
    del row["start"]


def _of_another_class(row: dict[str, Any]) -> None:
    row["evidence"]["tumour"] = row["evidence"]["foreground"]


def _negative(row: dict[str, Any]) -> None:
    row["evidence"]["foreground"]["standard_error"] = -1


@pytest.mark.parametrize("spoil", [_without_start, _of_another_class, _negative])
def test_half_of_it_is_refused(tmp_path: Path, spoil: Any) -> None:
    policy, evidence = learned()
    path = policies.save(tmp_path / "policy.json", training=policy, seen=evidence.seen(policy.logits))
    content = json.loads(path.read_text())
    spoil(content["training"]["cascades"][4]["operations"][1])
    path.write_text(json.dumps(content))
    with pytest.raises(PolicyError, match=r"policy.json: .*training.cascades"):
        policies.load(path)


def test_numbers_that_are_none_are_never_written(tmp_path: Path) -> None:
    policy, _ = learned()
    shape = policy.logits.shape
    seen = Seen(torch.full(shape, 0.5), torch.full(shape, math.nan), torch.full(shape, math.inf))
    text = policies.save(tmp_path / "policy.json", training=policy, seen=seen).read_text()
    assert "NaN" not in text
    assert "evidence" not in text


def test_a_few_samples_decide_nothing() -> None:
    """However different they are: seven of an operation, and as many of all others of its cascade."""
    policy = TrainingPolicy.preset("uniform", ("all",))
    for count, decided in ((7, []), (8, ["flip_d"])):
        evidence = Evidence(policy)
        drawn = torch.zeros(2 * count, 15, dtype=torch.long)
        drawn[::2, 4] = 1
        h = 0.01 * torch.randn(2 * count, generator=torch.Generator().manual_seed(0)) - drawn[:, 4]
        evidence.add(Sampled(h, torch.zeros(2 * count, dtype=torch.long), drawn))
        assert evidence.decided()["all"] == decided
