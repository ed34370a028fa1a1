# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses of MONAI and torch that were made for hard labels, on soft ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.losses import GeneralizedDiceLoss
from torch import Tensor, nn

__all__ = ["SoftCrossEntropy", "soften"]


class SoftCrossEntropy(nn.Module):
    """Cross-entropy on soft labels with the weighting of ``nn.CrossEntropyLoss`` on class indices.

    torch divides by the sum of the weights of the target's classes when it's given indices, but by the number of voxels
    when it's given probabilities. This class keeps the former on soft labels.

    Args:
        like: the loss whose weight, reduction, label smoothing and ignored value are taken over.

    >>> hard = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    >>> x, y = torch.randn(2, 2, 4), torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    >>> one_hot = nn.functional.one_hot(y, 2).movedim(-1, 1).float()
    >>> torch.allclose(SoftCrossEntropy(hard)(x, one_hot), hard(x, y))
    True
    """

    def __init__(self, like: nn.CrossEntropyLoss) -> None:
        super().__init__()
        self.register_buffer("weight", like.weight)
        self.reduction, self.ignore_index = like.reduction, like.ignore_index
        self.label_smoothing = like.label_smoothing

    weight: Tensor | None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of logits ``input`` (B, K, ...) against ``target`` (B, K, ...), all 0 where the label is unknown."""
        classes = input.shape[1]
        weight = torch.ones(classes, device=input.device) if self.weight is None else self.weight.to(input)
        weight = weight.view(1, classes, *[1] * (input.ndim - 2))
        ignored = 0 <= self.ignore_index < classes
        valid = 1 - target[:, self.ignore_index : self.ignore_index + 1] if ignored else target.sum(1, keepdim=True)
        y = target * valid if ignored else target
        smooth = self.label_smoothing
        wanted = y if not smooth else (1 - smooth) * y + valid * (smooth / classes)
        loss = -(weight * wanted * input.log_softmax(1)).sum(1)
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        known = (weight * y).sum()
        return loss.sum() / torch.where(known > 0, known, 1)  # a sample without a known voxel has loss 0, not NaN


def _safe_weights(loss: GeneralizedDiceLoss) -> Callable[[Tensor], Tensor]:
    """``loss.w_func`` whose gradient is 0, not NaN, for an absent class, and whose result may be changed in place."""
    own: Callable[[Tensor], Tensor] = loss.w_func

    def weights(volume: Tensor) -> Tensor:
        present = volume > 0
        return torch.where(present, own(torch.where(present, volume, torch.ones_like(volume))), own(volume.detach()))

    return weights


def soften(loss: Any, *, channels: bool) -> Any:
    """Make a loss take (B, K, ...) soft labels; the loss itself is changed, so give a copy.

    Args:
        loss: of MONAI or torch.
        channels: whether it was made for channels rather than class indices.
    """
    if not isinstance(loss, nn.Module):
        return loss
    for module in loss.modules():
        if getattr(module, "to_onehot_y", False):
            setattr(module, "to_onehot_y", False)  # noqa: B010  # nn.Module's own type knows no such attribute
        if isinstance(module, GeneralizedDiceLoss):
            setattr(module, "w_func", _safe_weights(module))  # noqa: B010
        if not channels:
            for name, child in module.named_children():
                if type(child) is nn.CrossEntropyLoss:
                    setattr(module, name, SoftCrossEntropy(child))
    return SoftCrossEntropy(loss) if type(loss) is nn.CrossEntropyLoss and not channels else loss
