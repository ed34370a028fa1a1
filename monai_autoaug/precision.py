# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mixed precision and ranks: autocast, the one scaler of the one backward, and an update that every player survives.

The rules: one backward has one scaler; every optimiser is averaged over ranks, unscaled, checked for non-finite values,
clipped and skipped on its own, and counted; a float32 region stays float32 whatever surrounds it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_autoaug.errors import AutoAugError, ConfigError

__all__ = [
    "DTYPES", "Precision", "average_gradients", "average_over_ranks", "broadcast", "float32_region",
    "gather_over_ranks", "rank", "skip_warnings", "sum_over_ranks", "without_tf32", "world_size",
]  # fmt: skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def world_size() -> int:
    """Number of ranks that train together (1 without ``torch.distributed``).

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank (0 without ``torch.distributed``).

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def average_over_ranks(x: Tensor) -> Tensor:
    """Mean of ``x`` over all ranks, detached.

    >>> average_over_ranks(torch.tensor(2.0))
    tensor(2.)
    """
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
        x /= world_size()
    return x


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of ``x`` over all ranks, detached.

    >>> sum_over_ranks(torch.tensor(2.0))
    tensor(2.)
    """
    x = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Make ``tensors`` on every rank those of rank 0, in place.

    >>> broadcast([torch.zeros(2)])
    """
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def gather_over_ranks(x: Any) -> list[Any]:
    """What each rank has: tensors on the CPU, whose sizes may differ, numbers, or tuples of them.

    >>> gather_over_ranks(torch.tensor(2.0))
    [tensor(2.)]
    """
    if world_size() == 1:
        return [x]
    everything: list[Any] = [None] * world_size()
    dist.all_gather_object(everything, x)
    return everything


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of ``parameters`` over all ranks, in place, in one message.

    A parameter without gradient on one rank counts as zero there, so that ranks can't wait for each other for ever.
    One that has none on any rank is left without: of zeros an optimiser would make a step by momentum and weight decay.

    >>> average_gradients([nn.Parameter(torch.zeros(2))])
    """
    if world_size() == 1:
        return
    wanted = [p for p in parameters if p.requires_grad]
    if not wanted:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).float() for p in wanted])
    there = torch.tensor([float(p.grad is not None) for p in wanted]).to(flat)
    flat = torch.cat([flat, there])
    dist.all_reduce(flat)
    flat /= world_size()
    *means, there = flat.split([*(p.numel() for p in wanted), len(wanted)])
    for p, mean, somewhere in zip(wanted, means, there.tolist(), strict=True):
        p.grad = mean.view_as(p).to(p.dtype) if somewhere else None


@contextlib.contextmanager
def float32_region(device: torch.device | str) -> Any:
    """Switch autocast off: grids are built and sampled in float32 (a bfloat16 grid is off by 0.8 voxel at 192 voxels).

    >>> with torch.autocast("cpu", dtype=torch.bfloat16), float32_region("cpu"):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    with torch.autocast(torch.device(device).type, enabled=False):
        yield


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply matrices and convolve in true float32, and afterwards as before.

    TF32, which cuDNN's convolutions take for float32 unless told otherwise, has 10 bits of mantissa: a difference of
    two losses that are equal to the third digit is nothing but its rounding.

    >>> torch.set_float32_matmul_precision("high")
    >>> with without_tf32():
    ...     torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    ('highest', False)
    >>> torch.get_float32_matmul_precision()
    'high'
    >>> torch.set_float32_matmul_precision("highest")
    """
    backends: Any = torch.backends
    # torch has older switches and, since 2.9, newer ones behind them; where they disagree, reading an older one fails
    places = [backends.cuda.matmul]
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        places += [backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]
    newer = [(place, place.fp32_precision) for place in places if hasattr(place, "fp32_precision")]
    older: list[tuple[Callable[[Any], None], Any]] = []
    switches: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (lambda: backends.cudnn.allow_tf32, lambda value: setattr(backends.cudnn, "allow_tf32", value), False),
    )
    for read, write, off in switches:
        with contextlib.suppress(RuntimeError):  # someone has set the newer ones, which are enough
            older.append((write, read()))
            write(off)
    try:
        for place, _ in newer:
            place.fp32_precision = "ieee"
        yield
    finally:
        for write, value in older:
            write(value)
        for place, value in newer:
            place.fp32_precision = value


class Precision:
    """Autocast, scaler and the checked update of every player.

    Args:
        device: where training runs.
        dtype: "float32" (no autocast), "bfloat16" or "float16" (with a gradient scaler; CUDA only).
        scaler: a host's own scaler, used instead of a new one.
        max_skipped: consecutive non-finite updates of one player after which training stops with an explanation.

    Raises:
        ConfigError: unknown dtype, or float16 on the CPU, where convolutions have no float16 kernel worth using.

    >>> p = Precision("cpu")
    >>> net = nn.Linear(1, 1); sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> p.backward(net(torch.ones(1, 1)).sum()); p.step("net", sgd)
    True
    """

    def __init__(
        self,
        device: torch.device | str,
        dtype: str = "float32",
        *,
        scaler: torch.amp.GradScaler | None = None,
        max_skipped: int = 50,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"precision must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.device = torch.device(device)
        if dtype == "float16" and self.device.type == "cpu":
            raise ConfigError("float16 training needs a GPU; use precision float32 or bfloat16 on the CPU")
        self.dtype = DTYPES[dtype]
        if scaler is None and dtype == "float16":
            scaler = torch.amp.GradScaler(self.device.type)
        self.scaler = scaler
        self.max_skipped = max_skipped
        self.skipped: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which networks run; the identity for float32."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def scale(self) -> float:
        """The factor by which gradients are scaled in the current backward."""
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def backward(self, loss: Tensor) -> None:
        """One backward for all players."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(
        self, name: str, optimizer: torch.optim.Optimizer, *, clip: float | None = None, loss: Tensor | None = None
    ) -> bool:
        """Average over ranks, unscale, check, clip, update; a non-finite loss or gradient skips this player only.

        Args:
            name: the player, as counted in ``skipped``.
            optimizer: its optimiser.
            clip: largest gradient norm, or None.
            loss: this player's own, a scalar, where it is known apart from the others'.

        Returns:
            False if the update was skipped.

        Raises:
            AutoAugError: this player was skipped more than ``max_skipped`` times in a row.
        """
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        average_gradients(parameters)
        given = [p for p in parameters if p.grad is not None]
        if not given:  # a player without samples in this step; a scaler would complain
            return True
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(given, float("inf") if clip is None else clip)
        if loss is not None:  # 0 if it is finite; all ranks have to see the same
            norm = norm + average_over_ranks(loss).to(norm) * 0
        if not bool(torch.isfinite(norm)):
            self._skip(name, optimizer)
            return False
        self._in_a_row[name] = 0
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
        return True

    def descend(self, name: str, optimizer: torch.optim.Optimizer, parameter: Tensor, gradient: Tensor) -> bool:
        """One update by a gradient that no backward has found, the same on all ranks; skipped if it isn't finite.

        Args:
            name: the player, as counted in ``skipped``.
            optimizer: its optimiser.
            parameter: its only one.
            gradient: of this parameter, unscaled.

        Returns:
            False if the update was skipped.

        Raises:
            AutoAugError: see `step`.
        """
        if not bool(torch.isfinite(gradient).all()):
            self._skip(name, optimizer)
            return False
        self._in_a_row[name] = 0
        parameter.grad = gradient.to(parameter)
        optimizer.step()
        parameter.grad = None
        return True

    def _skip(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Drop a non-finite gradient and count it; a growing run of them is not float16's scale search any more."""
        optimizer.zero_grad(set_to_none=True)
        self.skipped[name] += 1
        self._in_a_row[name] += 1
        if self._in_a_row[name] > self.max_skipped:
            raise AutoAugError(
                f"the loss or gradient of {name} was not finite in {self._in_a_row[name]} updates in a row; the last"
                " good state is in the checkpoint. Lower the learning rate, clip the gradient or train in float32"
            )

    def update(self) -> None:
        """Adapt the scale, once for all players."""
        if self.scaler is not None:
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only."""
        return {
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "skipped": dict(self.skipped),
            "in_a_row": dict(self._in_a_row),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = Counter(state["skipped"])
        self._in_a_row = Counter(state["in_a_row"])


def skip_warnings(skipped: Mapping[str, int], steps: int, dtype: torch.dtype) -> list[str]:
    """What to say of updates that were skipped because a loss or gradient was not finite.

    In float16 the search for the largest scale skips a few on purpose: there one in a hundred goes without saying.

    Args:
        skipped: updates by player.
        steps: updates in all.
        dtype: that the networks ran in.

    >>> skip_warnings({"network": 2}, 400, torch.float32)
    ['2 of 400 updates of network were skipped, because its loss or gradient was not finite']
    >>> skip_warnings({"network": 2}, 400, torch.float16)
    []
    """
    usual = steps / 100 if dtype is torch.float16 else 0
    return [
        f"{count} of {steps} updates of {name} were skipped, because its loss or gradient was not finite"
        for name, count in skipped.items()
        if count > usual
    ]
