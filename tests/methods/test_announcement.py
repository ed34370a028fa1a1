# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a method says before training begins."""

from __future__ import annotations

from test_joint_policy import build

from monai_autoaug.methods.none import NoAugmentation


def test_how_often_policies_learn_and_how_far_they_can_move() -> None:
    method = build(steps=1000, update_every=4, warm_up=100, learning_rate_test_time=0.01)
    assert method.schedule.updates == 225
    often, training, views = method.announcement()
    assert often == "Policies are updated every 4 steps from step 100 on, U = 225 times in all"
    assert "the training policy's logits: learning rate x U = 0.0444 x 225 = 10;" in training
    assert "the test-time policy's logits: learning rate x U = 0.01 x 225 = 2.25;" in views
    assert len(build(test_time=False).announcement()) == 2
    (alone,) = build(steps=None, learning_rate=0.1, learning_rate_test_time=0.1).announcement()
    assert alone == "Policies are updated every 1 steps from step 0 on"


def test_what_learns_nothing_has_nothing_to_say() -> None:
    method = build(learn_training=False, test_time=False)
    assert method.announcement() == []
    assert NoAugmentation(method.task).announcement() == []
