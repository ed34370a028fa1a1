# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What of a sample's worth has nothing to do with its augmentation, where Eq. 10 of paper 002 can't tell.

In one iteration all samples share the network and the meta-validation patches, and the class's mean takes away what
they have in common. Samples that are pooled from several iterations don't share it, and it is ten times as large as
what the operations change. The same patch without augmentation has nearly the same of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from monai_autoaug.policies.normalisation import Sampled, centre_by_class

__all__ = ["Baseline"]

_DECAY = 0.8  # of what is known of a class, by each of its groups of samples


class Baseline:
    """Takes from each sample's worth what that of its unaugmented patch predicts, a control variate.

    How much that predicts falls while a policy learns, because the network then sees such patches no more, so it is
    estimated, class by class, from recent samples.

    Args:
        classes: how many.

    >>> plain = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> same = torch.zeros(4, dtype=torch.long)
    >>> samples = Sampled(plain + torch.tensor([0.1, -0.1, -0.1, 0.1]), same, same[:, None], plain)
    >>> Baseline(1).remove(samples).values
    tensor([ 0.1000, -0.1000, -0.1000,  0.1000])
    """

    def __init__(self, classes: int) -> None:
        # sums, by class, of values times plain ones and of plain ones squared, less their means
        self._moments = torch.zeros(classes, 2, dtype=torch.float64)

    def remove(self, samples: Sampled) -> Sampled:
        """Samples of which some classes have several, with values that are centred by class (Eq. 10) and corrected."""
        values = centre_by_class(samples.values, samples.classes)
        known, result = torch.isfinite(samples.plain), values.clone()
        for k in samples.classes[known].unique().tolist():
            rows = (samples.classes == k) & known
            v, w = values[rows].double(), samples.plain[rows].double()
            w = w - w.mean()
            self._moments[k] = _DECAY * self._moments[k] + torch.stack([v @ w, w @ w]).cpu()
            both, square = self._moments[k]
            share = (both / square).clamp(0, 1) if bool(square > 0) else torch.zeros(())
            result[rows] = (v - share.to(v) * w).to(result)
        return replace(samples, values=result)

    def state_dict(self) -> dict[str, Tensor]:
        """What is known of each class."""
        return {"moments": self._moments.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        self._moments.copy_(state["moments"])
