# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a host owns (`Task`) and what it hands over (`Batches`): all that a method knows of its host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.networks import KeptStatistics, built, frozen, norm_groups, renew, with_parameters
from monai_autoaug.precision import Precision, average_gradients, broadcast

__all__ = ["Batches", "Losses", "Task"]


class Losses(Protocol):
    """One loss a sample, whose mean has the value and the gradient of the host's own loss on hard labels."""

    def __call__(self, output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
        """Loss of each sample.

        Args:
            output: what the network returned: logits (B, K, D, H, W), or a list of them, full resolution first; of a
                classification (B, K).
            label: of the logits' shape, soft.
            valid: (B, 1, D, H, W), or None.

        Returns:
            (B,) losses in float32.
        """
        ...


class Batches(Protocol):
    """Lazily drawn batches of the streams that a method needs."""

    def next(self, stream: str) -> Batch:
        """The next batch of a stream, on the device of the task.

        Args:
            stream: "train", "real" (a second training batch), "meta" (meta-validation; a host that draws its cases
                anew each epoch serves none of the epoch before) or "unlabelled" (``label`` and ``valid`` are 0).
        """
        ...


def _ignore(event: str, values: Mapping[str, Any]) -> None:
    """A host that doesn't want to hear of events."""


class Task:
    """What a host owns: the segmentation network, its optimiser, its loss and the precision they run in.

    Args:
        network: the segmentation network, unwrapped (no DDP, not compiled); auxiliary norm groups are already in it.
        optimizer: its optimiser.
        losses: the host's loss, one value a sample (see `Losses`).
        precision: autocast, scaler, ranks.
        spatial_dims: 2 or 3.
        regions: whether the label's channels are overlapping regions (sigmoid) rather than classes (softmax).
        classification: whether labels and logits are of whole images, (B, K), rather than of voxels.
        clip: largest gradient norm of the segmentation network, or None.
        call: how the host runs its network, for example compiled; default: ``network`` itself.
        accumulation_steps: micro-batches whose gradients are added before an update.
        steps: updates that the host plans, for schedules; None: it doesn't know.
        patch_size: voxels of a patch without margin, if all are alike.
        label_names: of the label values from 0 on, if they have names; of regions "background" and theirs.
        listener: is told "forward", "loss", "backward" and "model" within each step, with what there is to know.
        build: makes a network like this one on the CPU, prepared and untrained; None: `fresh` isn't there.

    >>> net = nn.Conv3d(1, 2, 1)
    >>> task = Task(net, torch.optim.SGD(net.parameters(), 0.1), precision=Precision("cpu"),
    ...             losses=lambda o, y, v: (o - y).square().mean((1, 2, 3, 4)))
    >>> task.probabilities(task.forward(torch.zeros(1, 1, 4, 4, 4))).shape
    torch.Size([1, 2, 4, 4, 4])
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        precision: Precision,
        *,
        spatial_dims: int = 3,
        regions: bool = False,
        classification: bool = False,
        clip: float | None = None,
        call: Callable[[Tensor], Any] | None = None,
        accumulation_steps: int = 1,
        steps: int | None = None,
        patch_size: tuple[int, ...] | None = None,
        label_names: tuple[str, ...] = (),
        listener: Callable[[str, Mapping[str, Any]], None] = _ignore,
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.network, self.optimizer, self.losses, self.precision = network, optimizer, losses, precision
        self.spatial_dims, self.regions, self.clip = spatial_dims, regions, clip
        self.classification = classification
        self.call: Callable[[Tensor], Any] = network if call is None else call
        self.accumulation_steps, self.steps = accumulation_steps, steps
        self.patch_size, self.label_names = patch_size, label_names
        self.first_micro_batch = self.last_micro_batch = True  # a host that accumulates sets these before each step
        self.notify, self.build = listener, build
        self.statistics = KeptStatistics(network)  # as they were before this step
        # what the optimiser begins with; a schedule changes it
        self._settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]

    def fresh(self, seed: int) -> None:
        """Begin anew: the network as its builder makes it of ``seed``, the optimiser without memory of what was.

        Both stay the same objects, compiled, wrapped or referred to as they are. On all ranks the weights are the
        same. The host's learning-rate schedule begins anew too; global random numbers are left as they are.

        Args:
            seed: of the initial weights.

        Raises:
            ConfigError: the host hasn't said how its network is built, or builds another one.
        """
        if self.build is None:
            raise ConfigError("this method begins anew with a fresh segmentation network, but the host can't build one")
        renew(self.network, built(self.build, seed))
        broadcast([*self.network.parameters(), *self.network.buffers()])
        self.optimizer.state.clear()
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        return self.precision.device

    def forward(
        self,
        image: Tensor,
        extra: Tensor | None = None,
        group: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Run the segmentation network under the host's precision.

        Args:
            image: (B, C, D, H, W).
            extra: (B, E, D, H, W) channels appended to the image, or None.
            group: (B,) int64 norm group of each sample, 0 the main one; None: all main.
            parameters: run with these instead of the network's own (see `networks.with_parameters`), in float32, not
                compiled, with dropout and statistics frozen, so that nothing but the result comes of it; all samples
                in the main norm group. None: as in training.

        Returns:
            The network's output: logits, or a list of them with deep supervision.
        """
        x = image if extra is None else torch.cat([image, extra], dim=1)
        if parameters is not None:
            off = torch.autocast(x.device.type, enabled=False)
            with frozen(self.network), with_parameters(self.network, parameters), off:
                return self.network(x if x.dtype == torch.float64 else x.float())
        if self.network.training:
            self.statistics.keep()
        with norm_groups(self.network, group), self.precision.autocast():
            return self.call(x)

    def logits(self, output: Any) -> Tensor:
        """Logits at full resolution, at least float32."""
        first: Tensor = output[0] if isinstance(output, list | tuple) else output
        return first if first.dtype == torch.float64 else first.float()

    @property
    def sigmoid(self) -> bool:
        """Whether logits go through a sigmoid each, rather than a softmax."""
        return self.regions

    def activate(self, logits: Tensor) -> Tensor:
        """Class or region probabilities of logits (B, K, D, H, W)."""
        return logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)

    def probabilities(self, output: Any) -> Tensor:
        """Class or region probabilities at full resolution, at least float32."""
        return self.activate(self.logits(output))

    def gradients(self) -> list[Tensor | None]:
        """Gradient of each of the optimiser's parameters, unscaled and averaged over ranks; None where there is none.

        Between backward and update; what the update does with them (clipping) is not in them.
        """
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        average_gradients(parameters)  # the update averages them again, which changes nothing
        scale = self.precision.scale
        return [
            None if p.grad is None else p.grad.detach() if scale == 1 else p.grad.detach().float() / scale
            for p in parameters
        ]

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The host's own loss of an unaugmented batch, a scalar; hosts use their own target and loss here."""
        return self.losses(output, batch.label, batch.valid).mean()
