# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A training policy in the loader's workers: its probabilities reach them through shared memory while it learns.

Workers run ahead of the training step, so the policy that a batch is augmented with can't be that of its own step.
Which one it is must not depend on how far ahead they happen to be: batch ``n`` is augmented with the policy as it was
when batch ``n - lag`` was asked for, and waits until that is known. The main process writes version ``n`` before it
waits for batch ``n``, which needs an earlier version or this one: nobody can wait for ever. Where ``lag`` is at least
the number of batches that are made in advance, nobody waits at all.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError
from monai_autoaug.policies.drawing import Drawing

if TYPE_CHECKING:
    from monai_autoaug.nnunet.patches import PatchLayout

__all__ = ["LAG", "PolicyInWorker", "SharedPolicy", "Versions", "packed", "unpacked"]

# nnU-Net's 12 workers have 31 batches under way at most: 12 that are being made, 12 and 6 in queues, one between them
LAG = 32
_POLL = 0.002  # seconds


class Versions:
    """The last logits of a policy in shared memory, each with its number, for one writer and any number of readers.

    There is no lock, which a killed worker could keep for ever: a row counts when its check sum is right, which that of
    a half-written one is not, in whatever order a processor shows the writes.

    Args:
        logits: of the policy; only their shape and dtype matter.
        lag: how many batches later a version is used.

    >>> versions = Versions(torch.zeros(2), lag=1)
    >>> for number in range(3):
    ...     versions.write(number, torch.full((2,), float(number)))
    >>> versions.wait(2)
    tensor([1., 1.])
    """

    def __init__(self, logits: Tensor, lag: int) -> None:
        self.lag, self.last = lag, -1  # number of the last version; the writer's
        # when version n + 1 is written, batch n is there: the version that it needed, n - lag, may go
        self._rows = torch.zeros((lag + 1, *logits.shape), dtype=logits.dtype).share_memory_()
        self._marks = torch.full((lag + 1, 2), -1, dtype=torch.int64).share_memory_()  # number and check sum
        self._closed = torch.zeros(1, dtype=torch.bool).share_memory_()

    def write(self, number: int, logits: Tensor) -> None:
        """Make ``logits`` version ``number`` and those before it that are missing."""
        values = logits.detach().cpu()
        for missing in range(max(self.last + 1, number - self.lag), number + 1):
            row = missing % (self.lag + 1)
            self._rows[row] = values
            self._marks[row] = torch.tensor([missing, _check_sum(missing, self._rows[row])])
            self.last = missing

    def wait(self, number: int) -> Tensor:
        """The logits that batch ``number`` is augmented with, as soon as they are there.

        Raises:
            StopIteration: they won't come any more.
        """
        version = max(0, number - self.lag)
        row, parent = version % (self.lag + 1), multiprocessing.parent_process()
        while True:
            values = self._rows[row].clone()
            if self._marks[row].tolist() == [version, _check_sum(version, values)]:
                return values
            if bool(self._closed) or parent is None or not parent.is_alive():  # the writer doesn't wait for itself
                raise StopIteration
            time.sleep(_POLL)

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closed.fill_(True)

    def state_dict(self) -> dict[str, Any]:
        """The versions that batches to come are augmented with."""
        first = max(0, self.last + 1 - self.lag)
        rows = [self._rows[number % (self.lag + 1)] for number in range(first, self.last + 1)]
        return {"lag": self.lag, "first": first, "logits": torch.stack(rows) if rows else self._rows[:0].clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the versions that ``state_dict`` gave.

        Raises:
            CheckpointError: they were used after another number of batches, or are of another policy.
        """
        logits = state["logits"]
        if state["lag"] != self.lag or logits.shape[1:] != self._rows.shape[1:]:
            raise CheckpointError(
                f"this checkpoint's workers had a policy of shape {tuple(logits.shape[1:])}, {state['lag']} batches"
                f" late; expected {tuple(self._rows.shape[1:])}, {self.lag} batches late. To do: train on with the"
                " version of monai_autoaug that wrote it"
            )
        self.last = state["first"] - 1
        for number, values in enumerate(logits, start=state["first"]):
            self.write(number, values)


def _check_sum(number: int, values: Tensor) -> int:
    return zlib.crc32(values.numpy().tobytes(), number & 0xFFFFFFFF)


class PolicyInWorker:
    """Augments a batch of nnU-Net's loader by the policy that its number calls for: what a worker is sent.

    Args:
        drawing: of the training policy, which is copied.
        layout: how to read nnU-Net's batches.
        versions: of the policy's logits.
    """

    def __init__(self, drawing: Drawing, layout: PatchLayout, versions: Versions) -> None:
        policy = copy.deepcopy(drawing.policy).cpu().requires_grad_(False)
        self.drawing, self.versions = replace(drawing, policy=policy), versions
        self.layout = replace(layout, scales=None)  # losses make lower resolutions out of the soft label

    def __call__(self, number: int, raw: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Batch ``number``, augmented for the step of this number; random numbers come from ``generator``."""
        self.drawing.policy.logits.copy_(self.versions.wait(number))
        batch = self.layout.batch(raw, torch.device("cpu"), values=True)
        return packed(self.drawing(batch, generator, number)) | {"keys": raw["keys"]}


class SharedPolicy:
    """A training policy that learns in this process and augments in the workers of a stream.

    Args:
        drawing: of the training policy.
        layout: how to read nnU-Net's batches.
        lag: see `Versions`.

    Attributes:
        augment: what the workers do.
    """

    def __init__(self, drawing: Drawing, layout: PatchLayout, lag: int | None = None) -> None:
        self._policy = drawing.policy
        self._versions = Versions(self._policy.logits, LAG if lag is None else lag)
        self.augment = PolicyInWorker(drawing, layout, self._versions)

    def publish(self, number: int) -> None:
        """Tell the workers the policy as it is when batch ``number`` is asked for."""
        self._versions.write(number, self._policy.logits)

    def close(self) -> None:
        """Let no worker wait any longer."""
        self._versions.close()

    def state_dict(self) -> dict[str, Any]:
        """See `Versions.state_dict`."""
        return self._versions.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Versions.load_state_dict`."""
        self._versions.load_state_dict(state)


def packed(batch: Batch) -> dict[str, Any]:
    """A batch as a worker hands it over: without mask, which has done its work, and with the label sparse.

    A soft label has a channel for each class, of which a voxel belongs to one, or at a boundary to a few.
    """
    label = batch.label.flatten()
    positions = label.nonzero()[:, 0]
    small = torch.int32 if label.numel() < 2**31 else torch.int64
    raw = {
        "data": batch.image if batch.extra is None else torch.cat([batch.image, batch.extra.to(batch.image)], 1),
        "label_positions": positions.to(small),
        "label_values": label[positions],
        "valid": batch.valid,
        "classes": batch.classes,
        "operations": batch.operations,
        "plain": None if batch.plain is None else packed(batch.plain),
    }
    return {name: value for name, value in raw.items() if value is not None}


def unpacked(raw: Mapping[str, Any], layout: PatchLayout, device: torch.device) -> Batch:
    """What was `packed` as a batch on ``device``.

    Args:
        raw: what a worker has handed over.
        layout: how it read nnU-Net's batch.
        device: where training runs.
    """
    sent = {name: value.to(device, non_blocking=True) for name, value in raw.items() if isinstance(value, Tensor)}
    data = sent["data"]
    label = torch.zeros((len(data), layout.heads, *data.shape[2:]), dtype=sent["label_values"].dtype, device=device)
    label.view(-1)[sent["label_positions"].long()] = sent["label_values"]
    return Batch(
        image=data[:, : layout.image_channels],
        label=label,
        valid=sent.get("valid"),
        extra=data[:, layout.image_channels :] if data.shape[1] > layout.image_channels else None,
        classes=sent["classes"],
        case=tuple(str(k) for k in raw.get("keys", ())),
        spacing=torch.tensor(layout.spacing, device=device).repeat(len(data), 1),
        operations=sent.get("operations"),
        plain=unpacked(raw["plain"], layout, device) if "plain" in raw else None,
    )
