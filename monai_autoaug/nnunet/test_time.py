# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned test-time views inside nnU-Net's network, so that its own commands predict with them.

The network stays the object that nnU-Net builds, with the keys that plain nnU-Net knows. Once views have been learned
its state has one more key, and whoever loads that state predicts the average over the views: plain
``nnUNetv2_predict``, ensembles of folds with different views, nnU-Net's final validation.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from monai_autoaug.errors import AutoAugError, CheckpointError, ConfigError
from monai_autoaug.networks import expect_spatial_transformer
from monai_autoaug.policies import TestTimePolicy
from monai_autoaug.policies.description import build_test_time, describe_test_time
from monai_autoaug.reading import MALFORMED

__all__ = [
    "STATE", "VARIABLE", "Views", "activated", "as_logits", "attach", "attaching", "learn", "views_of",
    "views_wanted", "without_views",
]  # fmt: skip

STATE = "autoaug.test_time"
VARIABLE = "MONAI_AUTOAUG_TEA"
_VERSION = 1
_SMALL = 2**16  # voxels of a patch
_TINY = 1e-4  # of a probability whose logarithm half precision still holds


@dataclass
class Views:
    """What a network knows of its views.

    Args:
        policy: which views, and how much each counts; None: nothing has been learned.
        still: how many of the last input channels are a cascade's previous segmentation.
        active: whether the network averages views when it predicts; not while it trains.
    """

    policy: TestTimePolicy | None = None
    still: int = 0
    active: bool = True


def attach(network: nn.Module) -> nn.Module:
    """Let a network keep views in its state, and predict with them once it has some; keys and numbers stay until then.

    Args:
        network: as nnU-Net builds it; changed in place.

    Returns:
        The network.

    >>> sorted(attach(nn.Conv3d(1, 2, 1)).state_dict())
    ['bias', 'weight']
    """
    if not isinstance(getattr(network, "autoaug_views", None), Views):
        network.autoaug_views = Views()  # type: ignore[assignment]  # a plain attribute, which is in no state
        network.register_state_dict_post_hook(_write)
        network.register_load_state_dict_pre_hook(_read)
    return network


def attaching(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A trainer's ``build_network_architecture`` whose networks have been through `attach`."""
    if getattr(build, "attaches_views", False):
        return build

    @wraps(build)  # nnU-Net looks at the signature
    def built(*args: Any, **kwargs: Any) -> nn.Module:
        return attach(build(*args, **kwargs))

    built.attaches_views = True  # type: ignore[attr-defined]
    return built


def views_of(network: nn.Module) -> Views:
    """The views of a network that has been through `attach`."""
    views: Any = network.autoaug_views
    assert isinstance(views, Views)  # noqa: S101  # for the type checker
    return views


def learn(network: nn.Module, policy: TestTimePolicy | None, still: int = 0) -> None:
    """Give a network other views.

    Args:
        network: has been through `attach`.
        policy: is copied; None: no views.
        still: how many of the last input channels are a cascade's previous segmentation.

    >>> network = attach(nn.Conv3d(1, 2, 1))
    >>> learn(network, TestTimePolicy.preset("nnunet", level="patch", patch_size=(8, 8, 8)))
    >>> sorted(network.state_dict())
    ['autoaug.test_time', 'bias', 'weight']
    """
    views = views_of(network)
    views.policy, views.still = None if policy is None else deepcopy(policy).cpu(), still
    _wire(network)


@contextlib.contextmanager
def activated(network: nn.Module, active: bool = True) -> Iterator[None]:
    """Within the block the network predicts with its views (or without them); outside it is as it was."""
    views = views_of(network)
    before, views.active = views.active, active
    _wire(network)
    try:
        yield
    finally:
        views.active = before
        _wire(network)


def without_views(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state with the keys of plain nnU-Net only."""
    return {name: tensor for name, tensor in state.items() if name != STATE}


def views_wanted(policy: TestTimePolicy | None = None) -> int | None:
    """What the environment variable ``MONAI_AUTOAUG_TEA`` says: how many views are averaged, 0 for none.

    Args:
        policy: whose views they are; None: any.

    Returns:
        None where it is not set: as many as the policy says.

    Raises:
        ConfigError: no whole number, or more than there are views.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return None
    most = None if policy is None else len(policy.operations)
    if not value.isdecimal() or (most is not None and int(value) > most):
        upper = "" if most is None else f" up to {most}"
        raise ConfigError(f"{VARIABLE} must be 0 (no views) or a number of views{upper}; got {value!r}; correct it")
    return int(value)


def _wire(network: nn.Module) -> None:
    """Put the average over the views in the place of the network's own forward, where there are active ones.

    Without them nothing is in between, so that training and torch.compile see the network that nnU-Net has built.
    """
    views = views_of(network)
    network.__dict__.pop("forward", None)
    if views.policy is not None and views.active:
        views_wanted(views.policy)  # says now what is wrong with it
        network.__dict__["forward"] = partial(_predict, network)


@torch.compiler.disable  # grids and views by name: nothing to compile
def _predict(network: nn.Module, image: Tensor) -> Any:
    """The network's own output, or where it predicts the weighted average over its most probable views."""
    views, own = views_of(network), partial(type(network).forward, network)
    policy = views.policy
    z = views_wanted(policy)
    supervised = getattr(getattr(network, "decoder", None), "deep_supervision", False)
    if policy is None or network.training or supervised or z == 0:
        return own(image)
    # two small views as a batch take a CPU three quarters of the time of one after the other
    at_once = 2 if image.device.type == "cpu" and image[0, 0].numel() <= _SMALL else 1
    return as_logits(policy, policy.apply(own, image, z, still=views.still, at_once=at_once))


def as_logits(policy: TestTimePolicy, averaged: Tensor) -> Tensor:
    """What nnU-Net averages on, over windows and folds, of what a policy has averaged over its views."""
    if policy.average == "logits":
        return averaged
    p = averaged.clamp(_TINY, 1 - _TINY)
    return p.logit() if policy.regions else p.log()


def _write(network: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Add the views to a network's state; text as bytes, because nnU-Net takes a state to hold tensors."""
    views = views_of(network)
    if views.policy is not None:
        content = {"version": _VERSION, "still": views.still, "test_time": describe_test_time(views.policy)}
        state[prefix + STATE] = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8).clone()


def _read(network: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Take the views out of a state that is being loaded; one without has none."""
    expect_spatial_transformer(network, state, prefix)
    found = state.pop(prefix + STATE, None)
    if found is None:
        learn(network, None)
        return
    try:
        content = json.loads(bytes(found.cpu().tolist()))
        if content["version"] != _VERSION:
            raise CheckpointError(f"they are of version {content['version']}, expected {_VERSION}")
        policy, still = build_test_time(content["test_time"]), int(content["still"])
    except (AutoAugError, *MALFORMED) as error:
        raise CheckpointError(
            f"the test-time views of this network ({STATE}) can't be read: {error}; use the version of monai_autoaug"
            " that wrote the checkpoint, or take the views out of it with monai-autoaug nnunet export-plain"
        ) from error
    learn(network, policy, still)
