# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From what samples and views are worth to the gradient of a policy's logits, without state.

Source: paper 002, Eqs. 9-11 and 13-15.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_autoaug.policies.normalisation import Sampled, centre_by_class, per_operation
from monai_autoaug.policies.test_time import TestTimePolicy
from monai_autoaug.policies.training import TrainingPolicy

__all__ = ["training_gradient", "view_gradient"]


def training_gradient(
    policy: TrainingPolicy, samples: Sampled, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient of the meta-validation loss with respect to the logits (Eqs. 9-11).

    Where all samples of a class have drawn the same operation of a cascade, they say nothing of it and its logits get
    exactly 0.

    Args:
        policy: its logits are not changed.
        samples: hypergradients, places among the policy's classes, and what was drawn.
        generator: for the noise that the draws are given again; None: torch's global one.

    Returns:
        The gradient (classes, operations), and the centred hypergradients (n,).

    >>> policy = TrainingPolicy.preset("uniform", ("all",), without=["rotF", "rotS", "rotL"])
    >>> drawn = torch.zeros(2, 12, dtype=torch.long); drawn[1, 1] = 1  # the second sample was mirrored
    >>> gradient, h = training_gradient(policy, Sampled(torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]), drawn))
    >>> [name.name for name, g in zip(policy.cascades, gradient.split([len(c) for c in policy.cascades], 1)) if g.any()]
    ['mirrorS']
    """
    centred = centre_by_class(samples.values, samples.classes)
    share = per_operation(centred, samples.classes, samples.operations)
    weights = policy.weights(samples.classes, samples.operations, generator)
    same = samples.classes[:, None] == samples.classes[None, :]
    alike = samples.operations[:, None] == samples.operations[None]
    varied = (same[:, :, None] & ~alike).any(1)
    worth = torch.where(varied, share, 0.0).to(weights)
    (gradient,) = torch.autograd.grad((worth.detach() * weights).sum(), policy.logits)
    return gradient, centred


def view_gradient(
    policy: TestTimePolicy,
    losses: Sequence[Tensor],
    indices: Sequence[Tensor],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Gradient of the mean loss of views with respect to the logits (Eqs. 13-15), averaged over patches.

    Args:
        policy: its logits are not changed.
        losses: of the views of each patch, (Z,) each.
        indices: places of these views among the policy's operations, (Z,) int64 each.
        generator: for the noise that the draws are given again; None: torch's global one.

    Returns:
        (operations,); exactly 0 where all views of a patch are the same, or equally good.

    >>> policy = TestTimePolicy.preset("uniform")
    >>> view_gradient(policy, [torch.ones(3)], [torch.tensor([0, 5, 5])]).abs().max()
    tensor(0.)
    """
    total = torch.zeros_like(policy.logits)
    for loss, index in zip(losses, indices, strict=True):
        # the weights enter divided by their sum, so that only differences count
        value = (loss - loss.mean()) / len(loss)
        count = (index[:, None] == index[None, :]).sum(1)
        if int(count.max()) == len(index):
            continue
        weights = policy.weights(index, generator)
        (gradient,) = torch.autograd.grad(((value / count).to(weights).detach() * weights).sum(), policy.logits)
        total = total + gradient / len(losses)
    return total
