# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How much memory a process has had at most."""

from __future__ import annotations

import sys
from typing import Any

import torch

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """The most memory so far of this process, or of the largest process of its own that has ended; and on a GPU.

    Args:
        device: that the process computes on.

    Returns:
        "host_mib": of the machine's memory, None where the system doesn't tell; "device_mib": of tensors on the device,
        None if it isn't a GPU.

    >>> peak_memory(torch.device("cpu"))["device_mib"] is None
    True
    """
    host = None
    if resource is not None:
        unit = 1024**2 if sys.platform == "darwin" else 1024
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        host = round(max(resource.getrusage(w).ru_maxrss for w in who) / unit, 1)
    gpu = round(torch.cuda.max_memory_allocated(device) / 1024**2, 1) if device.type == "cuda" else None
    return {"host_mib": host, "device_mib": gpu}
