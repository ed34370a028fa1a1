# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A MONAI engine as the `Task` of a method: its network, inferer, loss and mixed precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import (
    Inferer,
    PatchInferer,
    SimpleInferer,
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_autoaug.data.batch import Batch
from monai_autoaug.engines.losses import PerSampleLoss
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import Task
from monai_autoaug.networks.auxiliary_norm import AuxiliaryNorm
from monai_autoaug.precision import Precision

__all__ = [
    "AmpPrecision",
    "EngineTask",
    "can_compile",
    "check_inferer",
    "check_optimizer",
    "check_options",
    "first_convolution",
    "has_sigmoid",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_REBATCHING = (SlidingWindowInferer, SlidingWindowInfererAdapt, PatchInferer, SliceInferer)


class AmpPrecision(Precision):
    """Mixed precision as a MONAI trainer's ``amp`` and ``amp_kwargs`` ask for it.

    As in MONAI, float16 switches itself off on the CPU; bfloat16 works there too.

    Args:
        device: where training runs.
        amp: whether to use mixed precision.
        amp_kwargs: arguments of ``torch.autocast``: ``dtype`` (default float16), ``enabled``, ``cache_enabled``.

    >>> AmpPrecision("cpu", True, {"dtype": torch.bfloat16}).dtype
    torch.bfloat16
    """

    def __init__(
        self, device: torch.device | str, amp: bool = False, amp_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        kwargs = dict(amp_kwargs or {})
        dtype = kwargs.pop("dtype", torch.float16)
        if not amp or not kwargs.pop("enabled", True):
            dtype = torch.float32
        if dtype is torch.float16 and torch.device(device).type == "cpu":
            logging.getLogger(__name__).warning("float16 needs a GPU: training runs in float32 on the CPU")
            dtype = torch.float32
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ConfigError(f"amp_kwargs: dtype must be torch.float16 or torch.bfloat16, got {dtype}")
        super().__init__(device, str(dtype).removeprefix("torch."))
        self._kwargs = kwargs

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which networks run; the identity for float32."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, **self._kwargs)


def has_sigmoid(loss_function: Any) -> bool:
    """Whether a loss treats each channel of the output on its own (sigmoid) rather than as classes (softmax).

    >>> from monai.losses import DiceCELoss
    >>> has_sigmoid(DiceCELoss(sigmoid=True)), has_sigmoid(DiceCELoss(softmax=True))
    (True, False)
    """
    modules = list(loss_function.modules()) if isinstance(loss_function, nn.Module) else []

    def any_has(*names: str) -> bool:
        return any(getattr(m, n, False) is True for m in modules for n in names)

    if any_has("softmax", "pre_softmax", "use_softmax"):
        return False
    return any_has("sigmoid", "pre_sigmoid") or type(loss_function) is nn.BCEWithLogitsLoss


def first_convolution(network: nn.Module) -> tuple[int, int] | None:
    """Spatial dimensions and input channels of the first convolution, or None where there is none.

    >>> first_convolution(nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv3d(4, 4, 3)))
    (3, 2)
    """
    for module in network.modules():
        if isinstance(module, _CONVOLUTIONS):
            return len(module.kernel_size), module.in_channels
    return None


def can_compile(network: nn.Module) -> bool:
    """Whether a compiled graph stays valid: how many samples each auxiliary group of a batch norm has, none can know.

    With them torch compiles anew at each division of a batch, until its limit, and then runs the network as it is.

    >>> can_compile(nn.BatchNorm3d(2))
    True
    """
    return not any(isinstance(m, AuxiliaryNorm) and isinstance(m, _BatchNorm) for m in network.modules())


def check_inferer(inferer: Inferer, method: str) -> None:
    """Refuse an inferer that takes samples apart, because each sample of a batch has an augmentation of its own.

    Raises:
        ConfigError: the inferer is one of those.

    >>> check_inferer(SimpleInferer(), "adversarial")
    """
    if isinstance(inferer, _REBATCHING):
        raise ConfigError(
            f"{type(inferer).__name__} cuts samples into windows and batches them anew, which method {method!r} can't"
            " train through: use SimpleInferer for training (and any inferer for validation)"
        )


def check_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser that was made before the network got its auxiliary norms, which would never learn.

    Raises:
        ConfigError: some auxiliary parameters are missing in it.

    >>> net = nn.Conv3d(1, 2, 1)
    >>> check_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1))
    """
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    wanted = [p for m in network.modules() if isinstance(m, AuxiliaryNorm) for p in m.parameters(recurse=False)]
    if any(p.requires_grad and id(p) not in held for p in wanted):
        raise ConfigError(
            "the optimiser was made before the network got its auxiliary norms: call"
            " monai_autoaug.methods.prepare(method, network, **method_options) first and give the optimiser the"
            " parameters of what it returns"
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse arguments of ``SupervisedTrainer`` that would switch the method off or change it silently.

    Raises:
        ConfigError: one of them is given.
    """
    if options.get("iteration_update") is not None:
        raise ConfigError("iteration_update replaces the training step, which is the method's here; leave it out")
    if "optim_set_to_none" in options:
        raise ConfigError(
            "optim_set_to_none can't be chosen: gradients are always set to None, as the methods expect, so that a"
            " parameter that no loss of a step has reached is left alone by momentum and weight decay"
        )


class EngineTask(Task):
    """What a MONAI engine owns, for a method (see `monai_autoaug.methods.Task` for the other arguments).

    Args:
        network: the plain network (unwrapped, not compiled).
        optimizer: its optimiser.
        loss_function: the host's own loss, used as it is on a batch's own target.
        losses: the same, one value a sample.
        precision: of the engine.
        inferer: runs the network.
        runs: what the inferer calls, for example the compiled network.
        one_hot: whether the labels' channels are classes although the loss has a sigmoid.

    >>> net = nn.Conv3d(1, 2, 1)
    >>> task = EngineTask(net, torch.optim.SGD(net.parameters(), lr=0.1), nn.MSELoss(), precision=AmpPrecision("cpu"))
    >>> task.forward(torch.zeros(1, 1, 4, 4, 4)).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable[..., Tensor],
        *,
        precision: Precision,
        losses: PerSampleLoss | None = None,
        inferer: Inferer | None = None,
        runs: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            network, optimizer, PerSampleLoss(loss_function, "index") if losses is None else losses, precision,
            call=self._call, **options,
        )  # fmt: skip
        self.loss_function = loss_function
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.runs = network if runs is None else runs
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def _call(self, image: Tensor) -> Any:
        return self.inferer(image, self.runs, *self.args, **self.kwargs)

    def logits(self, output: Any) -> Tensor:
        """Logits at full resolution, at least float32."""
        first = output[0] if isinstance(output, list | tuple) else output
        # DynUNet stacks its levels: (B, levels, K, ...)
        return super().logits(first[:, 0] if first.ndim == self.spatial_dims + 3 else first)

    @property
    def sigmoid(self) -> bool:
        """As the host's loss has it, also where channels are classes."""
        return self.regions or has_sigmoid(self.loss_function)

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The host's own loss of an unaugmented batch, on its own target, as a MONAI trainer takes it."""
        if batch.target is None:
            return super().loss(output, batch)
        return self.loss_function(output, batch.target).mean()
