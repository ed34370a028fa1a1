# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Auxiliary norm groups (AdvProp): each kind of augmented sample has its own norm, the main one sees clean samples.

`add_auxiliary_norms` replaces every norm layer of a network by one that holds further groups. The main group keeps the
layer's parameters, buffers and state-dict keys, and the auxiliary ones never enter ``state_dict()``: what is saved and
deployed is the plain network. They are kept apart by `auxiliary_state`.

Batch norm: a group has its own batch statistics, running statistics and affine parameters. Instance and group norm have
no running statistics, so a group is a further pair of affine parameters. Loading a state dict, which knows the main
group alone, makes auxiliary groups that have not been used yet copies of it, so that they start from pretrained
weights; groups in training are left as they are, so that weights can be swapped for a validation.

Source: Gao et al. 2021, section 3.3 (three auxiliary groups besides the main one); Xie et al. 2020 (AdvProp).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812  # the name all of torch's users know
from torch import Tensor, nn

from monai_autoaug.errors import CheckpointError, ConfigError

__all__ = ["AuxiliaryNorm", "add_auxiliary_norms", "auxiliary_state", "load_auxiliary_state", "norm_groups"]

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_KINDS = (*_BATCH, *_INSTANCE, nn.GroupNorm)
_PREFIX = "auxiliary_"


class AuxiliaryNorm(nn.Module):
    """What the grouped norm layers share; concrete layers are ``AuxiliaryBatchNorm3d`` and so on (see `_grouped`)."""

    auxiliary_weight: nn.Parameter
    auxiliary_bias: nn.Parameter
    auxiliary_mean: Tensor
    auxiliary_variance: Tensor
    group: Tensor | None
    rows: list[tuple[int, Tensor]] | None
    back: Tensor | None
    fresh: bool  # the groups have neither been trained nor restored
    eps: float
    momentum: float | None
    num_groups: int

    def add_groups(
        self, channels: int, groups: int, statistics: bool, like: Tensor | None, device: torch.device | None
    ) -> None:
        """Create ``groups`` auxiliary groups that start as copies of the main one's affine parameters."""
        weight = torch.ones(channels, device=device) if like is None else like.detach()
        main_bias = getattr(self, "bias", None)
        bias = torch.zeros_like(weight) if main_bias is None else main_bias.detach()
        self.auxiliary_weight = nn.Parameter(weight.repeat(groups, 1))
        self.auxiliary_bias = nn.Parameter(bias.repeat(groups, 1))
        if statistics:
            self.register_buffer("auxiliary_mean", torch.zeros(groups, channels, device=device))
            self.register_buffer("auxiliary_variance", torch.ones(groups, channels, device=device))
        self.group = self.rows = self.back = None
        self.fresh = True

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key in [k for k in destination if k.startswith(prefix + _PREFIX)]:
            del destination[key]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        missing[:] = [key for key in missing if not key.startswith(prefix + _PREFIX)]
        if self.fresh:
            self._start_from_main()

    @torch.no_grad()
    def _start_from_main(self) -> None:
        """Make every auxiliary group a copy of the main one."""
        for suffix, main in (("weight", "weight"), ("bias", "bias"), ("mean", "running_mean"),
                             ("variance", "running_var")):  # fmt: skip
            source, target = getattr(self, main, None), getattr(self, _PREFIX + suffix, None)
            if source is not None and target is not None:
                target.copy_(source.expand_as(target))

    def _affine(self, normalised: Tensor, group: Tensor) -> Tensor:
        """Scale and shift each sample of ``normalised`` (B, C, ...) by its group's parameters, the main one's first."""
        main_weight, main_bias = getattr(self, "weight", None), getattr(self, "bias", None)
        one, zero = torch.ones_like(self.auxiliary_weight[0]), torch.zeros_like(self.auxiliary_bias[0])
        weight = torch.cat([(one if main_weight is None else main_weight)[None], self.auxiliary_weight])
        bias = torch.cat([(zero if main_bias is None else main_bias)[None], self.auxiliary_bias])
        shape = (len(group), -1, *[1] * (normalised.ndim - 2))
        scaled = normalised * weight[group].view(shape).to(normalised.dtype)
        return scaled + bias[group].view(shape).to(normalised.dtype)


class _BatchGroups(AuxiliaryNorm):
    """Batch norm: samples of one group share statistics; groups never see each other."""

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        group = self.group
        if group is None or not self.training:
            return super().forward(x)  # the plain layer: evaluation always uses the main group
        assert self.rows is not None  # noqa: S101  # for the type checker: set together with the group
        parts = [self._normalise(x[rows], number) for number, rows in self.rows]
        return torch.cat(parts)[self.back]

    def _normalise(self, x: Tensor, number: int) -> Tensor:
        if x.numel() == x.shape[1] and self.running_mean is not None:
            # one voxel of one sample has no variance; a batch that is not split into groups would have had others
            return self._by_running_statistics(x, number)
        if number == 0:
            return super().forward(x)
        k = number - 1
        momentum = 0.1 if self.momentum is None else self.momentum
        return F.batch_norm(
            x, self.auxiliary_mean[k], self.auxiliary_variance[k], self.auxiliary_weight[k], self.auxiliary_bias[k],
            training=True, momentum=momentum, eps=self.eps,
        )  # fmt: skip


    def _by_running_statistics(self, x: Tensor, number: int) -> Tensor:
        if number == 0:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        k = number - 1
        return F.batch_norm(
            x, self.auxiliary_mean[k], self.auxiliary_variance[k], self.auxiliary_weight[k], self.auxiliary_bias[k],
            eps=self.eps,
        )  # fmt: skip


class _InstanceGroups(AuxiliaryNorm):
    """Instance norm: statistics are a sample's own, so a group is an affine transformation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        if self.group is None or not self.training:
            return super().forward(x)
        return self._affine(F.instance_norm(x, eps=self.eps), self.group)


class _GroupGroups(AuxiliaryNorm):
    """Group norm: as instance norm."""

    def forward(self, x: Tensor) -> Tensor:
        if self.group is None or not self.training:
            return super().forward(x)
        return self._affine(F.group_norm(x, self.num_groups, eps=self.eps), self.group)


def _grouped_class(kind: type[nn.Module], mixin: type[AuxiliaryNorm]) -> type[AuxiliaryNorm]:
    """A subclass of the norm layer itself, so that code that asks ``isinstance(m, nn.BatchNorm3d)`` goes on working."""
    return type(f"Auxiliary{kind.__name__}", (mixin, kind), {"__module__": __name__})


_CLASSES: dict[type[nn.Module], type[AuxiliaryNorm]] = {
    **{k: _grouped_class(k, _BatchGroups) for k in _BATCH},
    **{k: _grouped_class(k, _InstanceGroups) for k in _INSTANCE},
    nn.GroupNorm: _grouped_class(nn.GroupNorm, _GroupGroups),
}
# the classes have names of their own in this module, so that a network that holds them can be pickled
globals().update({c.__name__: c for c in _CLASSES.values()})


def add_auxiliary_norms(network: nn.Module, groups: int = 3) -> nn.Module:
    """Give every norm layer of ``network`` auxiliary groups, in place; call it before optimiser and DDP are made.

    Args:
        network: any network with batch, instance or group norm.
        groups: auxiliary groups besides the main one.

    Returns:
        The same network; without `norm_groups` it computes exactly what it did before.

    Raises:
        ConfigError: no norm layer to split, or an instance norm with running statistics.

    >>> net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4))
    >>> keys = list(net.state_dict())
    >>> list(add_auxiliary_norms(net).state_dict()) == keys
    True
    """
    found = [m for m in network.modules() if type(m) in _KINDS]
    if not found:
        raise ConfigError(
            f"{type(network).__name__} has no batch, instance or group norm to give auxiliary groups;"
            " switch auxiliary norms off"
        )
    device = next((p.device for p in network.parameters()), None)
    for layer in found:
        if isinstance(layer, _INSTANCE) and layer.track_running_stats:
            raise ConfigError(
                "instance norm with running statistics can't have auxiliary groups; switch one of them off"
            )
        channels = cast(int, layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features)
        like = cast(Tensor | None, layer.weight)
        # in place, because networks share layers between containers (nnU-Net holds each one two or three times)
        layer.__class__ = _CLASSES[type(layer)]
        assert isinstance(layer, AuxiliaryNorm)  # noqa: S101  # for the type checker
        layer.add_groups(channels, groups, isinstance(layer, _BATCH), like, device)
    return network


@contextlib.contextmanager
def norm_groups(network: nn.Module, group: Tensor | None) -> Iterator[None]:
    """Within the block, sample i of a training batch is normalised by group ``group[i]`` (0: main).

    >>> net = add_auxiliary_norms(nn.BatchNorm3d(1))
    >>> with norm_groups(net, torch.tensor([0, 1])):
    ...     _ = net(torch.randn(2, 1, 4, 4, 4))
    >>> net.group is None
    True
    """
    layers = [] if group is None else [m for m in network.modules() if isinstance(m, AuxiliaryNorm)]
    rows, back = _rows(layers, group)
    for layer in layers:
        layer.group, layer.rows, layer.back, layer.fresh = group, rows, back, False
    try:
        yield
    finally:
        for layer in layers:
            layer.group = layer.rows = layer.back = None


def _rows(layers: list[AuxiliaryNorm], group: Tensor | None) -> tuple[list[tuple[int, Tensor]] | None, Tensor | None]:
    """The samples of each group that has any, and where they go back to: batch norms need them, found once for all."""
    if group is None or not any(isinstance(layer, _BatchGroups) for layer in layers):
        return None, None
    numbers = group.tolist()
    found = {n: [i for i, m in enumerate(numbers) if m == n] for n in sorted(set(numbers))}
    rows = [(n, torch.tensor(members, device=group.device)) for n, members in found.items()]
    return rows, torch.cat([r for _, r in rows]).argsort()


def _auxiliary_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{key}" if name else key: getattr(layer, key)
        for name, layer in network.named_modules()
        if isinstance(layer, AuxiliaryNorm)
        for key in ("auxiliary_weight", "auxiliary_bias", "auxiliary_mean", "auxiliary_variance")
        if getattr(layer, key, None) is not None
    }


def auxiliary_state(network: nn.Module) -> dict[str, Tensor]:
    """The auxiliary groups' parameters and statistics, by name; empty for a plain network.

    >>> sorted(auxiliary_state(add_auxiliary_norms(nn.InstanceNorm3d(2))))
    ['auxiliary_bias', 'auxiliary_weight']
    """
    return {name: tensor.detach().clone() for name, tensor in _auxiliary_tensors(network).items()}


def load_auxiliary_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what `auxiliary_state` gave.

    Raises:
        CheckpointError: the network's auxiliary norms are not the ones that were saved.
    """
    here = _auxiliary_tensors(network)
    if set(here) != set(state):
        raise CheckpointError(
            f"the checkpoint holds {len(state)} auxiliary norm tensors, this network {len(here)}, of other names"
        )
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(state[name])
    for layer in network.modules():
        if isinstance(layer, AuxiliaryNorm):
            layer.fresh = False
