# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How many channels a task's labels have, for networks that see them."""

from __future__ import annotations

import torch
from torch import nn

from monai_autoaug.methods.base import Task

__all__ = ["label_channels"]

_SIZE = 64  # of an image that hardly any network is too deep for


def label_channels(task: Task, image_channels: int, given: int | None = None) -> int:
    """Classes or regions that the network of a task tells, found by a forward of one empty image.

    Args:
        task: what the host owns; nothing in it changes.
        image_channels: of the image, where no convolution tells how many channels the network takes.
        given: the number, if it is known.

    >>> from monai_autoaug.precision import Precision
    >>> net = nn.Conv3d(1, 3, 1)
    >>> task = Task(net, torch.optim.SGD(net.parameters(), 0.1), losses=lambda o, y, v: o, precision=Precision("cpu"))
    >>> label_channels(task, 1)
    3
    """
    if given is not None:
        return given
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = next((m.in_channels for m in task.network.modules() if isinstance(m, kinds)), image_channels)
    size = task.patch_size or (_SIZE,) * task.spatial_dims
    dtype = next((p.dtype for p in task.network.parameters()), torch.float32)
    with torch.no_grad():
        output = task.forward(torch.zeros(1, first, *size, device=task.device, dtype=dtype), parameters={})
    return int(task.logits(output).shape[1])
