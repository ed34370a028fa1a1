# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A network with learned test-time views: it predicts their average, its state brings them along, and no more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.nnunet import test_time
from monai_autoaug.nnunet.diagnosis import doctor
from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAug as Joint
from monai_autoaug.nnunet.trainers import with_autoaug
from monai_autoaug.policies import TestTimePolicy

SHAPE = (8, 12, 12)


def views(*favourites: str, z: int = 3) -> TestTimePolicy:
    """The most probable views are these, in this order."""
    policy = TestTimePolicy.preset("uniform", level="patch", patch_size=SHAPE, z=z)
    names = [o.name for o in policy.operations]
    with torch.no_grad():
        for place, name in enumerate(favourites):
            policy.logits[names.index(name)] = 3.0 - 0.5 * place
    return policy


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, 3, 3, padding=1)).eval()


FLIPS = ("flip_h", "identity", "gamma_1.3")


def by_hand(net: nn.Module, image: Tensor, weights: Tensor) -> Tensor:
    """The average over FLIPS, written out."""
    policy = views(*FLIPS)
    gamma = next(o for o in policy.operations if o.name == "gamma_1.3")
    parts = [net(image.flip(3)).flip(3), net(image), net(policy.view(gamma, image))]
    return sum(w * p for w, p in zip(weights, parts, strict=True)) / weights.sum()  # type: ignore[return-value]


def test_the_average_is_that_of_views_of_the_plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, net, image = network(), test_time.attach(network()), torch.randn(2, 1, *SHAPE)
    test_time.learn(net, views(*FLIPS))
    weights = torch.tensor([3.0, 2.5, 2.0]).softmax(0)
    with torch.inference_mode():
        torch.testing.assert_close(net(image), by_hand(plain, image, weights))
        for value, count in (("1", 1), ("2", 2), ("3", 3)):
            monkeypatch.setenv("MONAI_AUTOAUG_TEA", value)
            only = torch.where(torch.arange(3) < count, weights, 0)
            torch.testing.assert_close(net(image), by_hand(plain, image, only))
        monkeypatch.setenv("MONAI_AUTOAUG_TEA", "0")
        assert torch.equal(net(image), plain(image))
        monkeypatch.delenv("MONAI_AUTOAUG_TEA")
        net.train()
        assert torch.equal(net(image), plain(image))
        net.eval()
        with test_time.activated(net):
            pass
        assert not torch.equal(net(image), plain(image))
        test_time.views_of(net).active = False
        test_time.learn(net, views(*FLIPS))
        assert torch.equal(net(image), plain(image))
        with test_time.activated(net):
            assert not torch.equal(net(image), plain(image))
        assert "forward" not in net.__dict__  # nothing is in between while it trains


@pytest.mark.parametrize("value", ["-1", "many", "85", "1.5"])
def test_the_variable_is_checked(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_AUTOAUG_TEA", value)
    net = test_time.attach(network())
    with pytest.raises(ConfigError, match=r"MONAI_AUTOAUG_TEA must be 0 \(no views\) or a number of views up to 80"):
        test_time.learn(net, views(*FLIPS))
    found = {d.check: d for d in doctor()}["MONAI_AUTOAUG_TEA"]
    assert found.severity == ("ok" if value == "85" else "error")  # how many views there are, a checkpoint knows


def test_deep_supervision_is_left_alone() -> None:
    class Supervised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.decoder = network(), nn.Module()
            self.decoder.deep_supervision = True  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Any:
            return [self.net(x), self.net(x)] if self.decoder.deep_supervision else self.net(x)

    net, image = test_time.attach(Supervised().eval()), torch.randn(1, 1, *SHAPE)
    test_time.learn(net, views(*FLIPS))
    assert isinstance(net(image), list)
    net.decoder.deep_supervision = False  # type: ignore[union-attr,assignment]
    torch.testing.assert_close(net(image), by_hand(network(), image, torch.tensor([3.0, 2.5, 2.0]).softmax(0)))


def test_a_state_has_one_more_key_and_brings_the_views_along() -> None:
    image = torch.randn(1, 1, *SHAPE)
    net = test_time.attach(test_time.attach(network()))  # twice is once
    assert net.state_dict().keys() == network().state_dict().keys()
    test_time.learn(net, views(*FLIPS, z=2), still=0)
    state = net.state_dict()
    assert [name for name in state if name not in network().state_dict()] == ["autoaug.test_time"]
    assert all(isinstance(t, Tensor) for t in state.values())
    other = test_time.attach(network())
    other.load_state_dict(state)
    assert "autoaug.test_time" in state  # loading leaves it where it was, for the next case
    kept = test_time.views_of(other).policy
    assert kept is not None
    assert torch.equal(kept.logits, views(*FLIPS).logits)
    assert kept.z == 2
    assert torch.equal(other(image), net(image))
    other.load_state_dict(network().state_dict())  # a fold without views
    assert torch.equal(other(image), network()(image))
    copied = copy.deepcopy(net)
    test_time.learn(net, None)
    assert not torch.equal(copied(image), net(image))
    torch.testing.assert_close(copied(image), other.load_state_dict(state) and other(image))
    spoiled = dict(state) | {"autoaug.test_time": state["autoaug.test_time"][:-5]}
    with pytest.raises(CheckpointError, match="test-time views of this network"):
        other.load_state_dict(spoiled)


def test_probabilities_are_handed_over_as_logits() -> None:
    image = torch.randn(1, 1, *SHAPE)
    for regions in (False, True):
        policy = TestTimePolicy.preset("nnunet", level="patch", average="probabilities", regions=regions)
        net = test_time.attach(network())
        test_time.learn(net, policy)
        logits = net(image)
        p = logits.sigmoid() if regions else logits.softmax(1)
        torch.testing.assert_close(p, policy.apply(network(), image), atol=1e-3, rtol=0)


def test_compiled_networks_average_too() -> None:
    image = torch.randn(1, 1, *SHAPE)
    net = test_time.attach(network())
    test_time.views_of(net).active = False
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(image), network()(image))
    test_time.learn(net, views(*FLIPS))
    torch.testing.assert_close(compiled(image), network()(image))
    with test_time.activated(net):
        expected = by_hand(network(), image, torch.tensor([3.0, 2.5, 2.0]).softmax(0))
        torch.testing.assert_close(compiled(image), expected)
    torch.testing.assert_close(compiled(image), network()(image))


def test_a_trainer_of_ones_own_keeps_its_network_and_gets_views() -> None:
    class Base(nnUNetTrainer):
        @staticmethod
        def build_network_architecture(
            plans_manager: Any,
            configuration_manager: Any,
            number: int,
            heads: int,
            enable_deep_supervision: bool = True,
        ) -> nn.Module:
            return network()

    class Over(with_autoaug(nnUNetTrainer, "joint_policy")):  # type: ignore[misc]
        build_network_architecture = staticmethod(Base.build_network_architecture)

    for cls in (with_autoaug(Base, "joint_policy"), Over, Joint):
        assert cls.build_network_architecture.attaches_views
        built = cls.build_network_architecture(None, None, 1, 3) if cls is not Joint else test_time.attach(network())
        assert test_time.views_of(built).policy is None
