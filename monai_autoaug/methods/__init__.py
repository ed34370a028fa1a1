# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""One file a paper; `build` finds a method by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from monai_autoaug import plugins
from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.methods.base import Batches, Losses, Method, Player, Task
from monai_autoaug.methods.phases import Phase
from monai_autoaug.methods.values import check_values

__all__ = [
    "METHODS",
    "Batches",
    "Losses",
    "Method",
    "Phase",
    "Player",
    "Task",
    "build",
    "check",
    "find",
    "names",
    "options",
    "prepare",
    "streams",
]

METHODS = {  # of this package; other distributions add theirs by entry points, see `names`
    "none": "monai_autoaug.methods.none:NoAugmentation",
    "random": "monai_autoaug.methods.random:RandomAugmentation",
    "adversarial": "monai_autoaug.methods.adversarial:Adversarial",
    "task_driven": "monai_autoaug.methods.task_driven:TaskDriven",
    "general_adversarial": "monai_autoaug.methods.general_adversarial:GeneralAdversarial",
    "joint_policy": "monai_autoaug.methods.joint_policy:JointPolicy",
    "bilevel": "monai_autoaug.methods.bilevel:Bilevel",
}


def names() -> tuple[str, ...]:
    """All methods there are: of this package, and of the entry points in the group ``monai_autoaug.methods``.

    Raises:
        ConfigError: two methods have one name.

    >>> "none" in names()
    True
    """
    return (*METHODS, *sorted(plugins.added(plugins.METHODS, METHODS)))


def find(name: str) -> type[Method]:
    """The class of a method; another distribution adds one by an entry point of its name.

    Raises:
        ConfigError: there is no such method; the message lists those there are. Or an entry point can't be used.

    >>> find("none").__name__
    'NoAugmentation'
    """
    more = plugins.added(plugins.METHODS, METHODS)
    if name in METHODS:
        module, _, attribute = METHODS[name].partition(":")
        method: type[Method] = getattr(import_module(module), attribute)
        return method
    if name not in more:
        known = sorted((*METHODS, *more))
        raise ConfigError(
            f"there is no method {name!r}; choose one of {', '.join(known)}; others are found by entry points of the"
            f" group {plugins.METHODS}{did_you_mean(name, known)}"
        )
    added: type[Method] = plugins.load(more[name], Method)
    if added.name != name:
        raise ConfigError(
            f"the entry point {name!r} names {added.__name__}, whose name is {added.name!r}: give both one name"
        )
    return added


def options(name: str) -> dict[str, inspect.Parameter]:
    """The options of a method with their defaults.

    >>> sorted(options("none"))
    ['seed']
    """
    parameters = inspect.signature(find(name)).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check(name: str, given: Mapping[str, Any]) -> None:
    """See that a method has the options that it is given, and that their values are of the right kind.

    Raises:
        ConfigError: there is no such method or option, or a value is of another kind.

    >>> check("random", {"warm_up": 10})
    """
    known = options(name)
    for option in given:
        if option not in known:
            names = ", ".join(sorted(known))
            raise ConfigError(f"method {name!r} has no option {option!r}; it has {names}{did_you_mean(option, known)}")
    check_values(f"method {name!r}", find(name).__init__, given)


def streams(name: str, **given: Any) -> tuple[str, ...]:
    """Names of the streams of batches that a method needs with its options.

    >>> streams("joint_policy"), streams("joint_policy", learn_training=False, test_time=False)
    (('train', 'meta'), ('train',))
    """
    return find(name).streams(**given)


def prepare(name: str, network: nn.Module, **given: Any) -> nn.Module:
    """Give ``network`` what the method needs in it (auxiliary norms), before its optimiser and DDP are made.

    >>> prepare("none", nn.Conv3d(1, 2, 1))
    Conv3d(1, 2, kernel_size=(1, 1, 1), stride=(1, 1, 1))
    """
    check(name, given)
    return find(name).prepare(network, **given)


def build(name: str, task: Task, **given: Any) -> Method:
    """A method by name, ready to step.

    Args:
        name: one of `names`.
        task: what the host owns; its network has been through `prepare`.
        given: the method's options.

    Raises:
        ConfigError: unknown method or option, or a value that can't be.

    >>> import torch
    >>> from monai_autoaug.precision import Precision
    >>> net = nn.Conv3d(1, 2, 1)
    >>> task = Task(net, torch.optim.SGD(net.parameters(), 0.1), losses=lambda o, y, v: o.mean((1, 2, 3, 4)),
    ...             precision=Precision("cpu"))
    >>> build("none", task).name
    'none'
    """
    check(name, given)
    return find(name)(task, **given)
