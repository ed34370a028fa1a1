# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the terminal says of learned policies: what is decided, that nothing is, and what the network can't see."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from monai_autoaug.commands.learned import show_policies
from monai_autoaug.policies import Evidence, Policies, Sampled, TestTimePolicy, TrainingPolicy


def told(found: Policies, no_ops: tuple[str, ...] = ()) -> str:
    out = io.StringIO()
    show_policies(found, no_ops, Console(file=out, width=200))
    return out.getvalue()


def learned(samples: int) -> Policies:
    """Background patches were better where the intensities were inverted or mirrored; only the latter rose."""
    policy = TrainingPolicy.preset("nnunet", ("background", "tumour [core]"))
    evidence, start = Evidence(policy), policy.logits.detach().clone()
    drawn = torch.zeros(samples, 15, dtype=torch.long)
    drawn[:, 4] = torch.arange(samples) % 2
    drawn[:, 8] = torch.arange(samples) // 2 % 2  # the first of three ranges
    h = torch.randn(samples, generator=torch.Generator().manual_seed(0)) - 3.0 * drawn[:, 4] - 3.0 * drawn[:, 8]
    if samples:
        evidence.add(Sampled(h, torch.zeros(samples, dtype=torch.long), drawn))
    place = [o.name for c in policy.cascades for o in c.operations].index("flip_d")
    with torch.no_grad():
        policy.logits[:, place] += 1.0
    return Policies(policy, TestTimePolicy.preset("nnunet", z=8), {}, evidence.seen(start))


def test_what_rose_and_is_decided_is_named_with_both_probabilities() -> None:
    text = told(learned(400))
    background, tumour = (next(x for x in text.splitlines() if name in x) for name in ("background", "tumour [core]"))
    assert "mirror D: 0.50 to 0.73" in background
    assert "inverted gamma" not in background  # decided, but no more probable than at the start
    assert "no operation is decided" in tumour
    assert "by more than 3 standard errors" in " ".join(text.split())
    assert "averaged at test time, with their weights: as it is: 0.12, mirror D: 0.12" in text
    assert "and 2 lighter ones" in text


def test_it_says_plainly_that_nothing_is_decided() -> None:
    text = told(learned(0))
    assert text.count("no operation is decided") == 2
    assert "mirror D: 0.50" not in text


def test_operations_without_effect_are_named() -> None:
    factors = tuple(f"brightness_multiply_{a}" for a in ("1.00_1.10", "1.10_1.20", "1.20_1.30"))
    text = told(learned(400), (*factors, "flip_d"))
    assert "whatever the probability: mirror D (mirrorS), brightness × (bmul) (option without" in text
    assert "mirror D: 0.50" not in text  # decided by chance alone, then
    assert "no effect" not in told(learned(400))


def test_what_was_given_is_not_said_to_be_learned() -> None:
    text = told(Policies(training=TrainingPolicy.preset("nnunet")))
    assert text.count("given, not learned") == 2
    assert "decided:" not in text
    assert "averaged" not in text
    views = told(Policies(test_time=TestTimePolicy.preset("nnunet", z=2)))
    assert "as it is: 0.50, mirror D: 0.50" in views
    assert "class" not in views
