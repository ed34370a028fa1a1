# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From a MONAI or torch loss to one loss a sample on soft labels, with the value and gradient of the original.

A learned augmentation warps the label as well, so the loss has to take soft labels and to pass a gradient into them;
and it plays one game on some samples of a batch and another on the rest, so there has to be one value a sample. Most
losses are a mean over samples and are simply evaluated sample by sample. Those that aren't (batch Dice, a cross-entropy
that divides by the class weights of the whole batch) are linearised around the batch.

Nothing is taken on trust: the first call compares value and gradient with the user's own loss on hard labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_autoaug.engines.soft_losses import soften
from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import float32_region

__all__ = [
    "PerSampleLoss",
    "TargetForm",
    "can_ignore",
    "hard_target",
    "ignored_value",
    "per_sample",
    "preferred_form",
    "unknown_labels_error",
]

Rule = Literal["mean", "sum", "linear"]
TargetForm = Literal["index", "bare_index", "channels"]
"""How a host writes its labels: (B, 1, ...) class indices, (B, ...) class indices, or (B, K, ...) channels."""


def hard_target(label: Tensor, form: TargetForm, ignore: int | None = None, valid: Tensor | None = None) -> Tensor:
    """The label of a batch in the form that the host's own loss takes.

    Args:
        label: (B, K, D, H, W), one channel a class or region; all zero where the label is unknown.
        form: the host's form.
        ignore: the value that marks unknown voxels, in every channel if there are several.
        valid: (B, 1, D, H, W), below one half where the label is unknown; channels can't tell otherwise.

    >>> hard_target(torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]), "index", ignore=255)
    tensor([[[  1.,   0., 255.]]])
    >>> hard_target(torch.ones(1, 2, 3), "channels", ignore=255, valid=torch.tensor([[[1.0, 1.0, 0.0]]]))[0, 0]
    tensor([  1.,   1., 255.])
    """
    if form == "channels":
        return label if ignore is None or valid is None else torch.where(valid >= 0.5, label, ignore)
    index = label.max(1, keepdim=form == "index").indices  # on the CPU ten times faster than argmax
    if ignore is not None and not 0 <= ignore < label.shape[1]:
        index = torch.where(label.sum(1, keepdim=form == "index") > 0, index, ignore)
    return index.to(label.dtype) if form == "index" else index


def ignored_value(loss_function: Any) -> int | None:
    """The label value that a loss leaves out, or None.

    Raises:
        ConfigError: parts of the loss leave out different values.

    >>> from monai.losses import DiceLoss
    >>> ignored_value(DiceLoss(ignore_index=255)), ignored_value(nn.CrossEntropyLoss()), ignored_value(DiceLoss())
    (255, -100, None)
    """
    if not isinstance(loss_function, nn.Module):
        return None
    values: set[Any] = {m.ignore_index for m in loss_function.modules() if hasattr(m, "ignore_index")}
    if not values or None in values:  # a part that can't leave anything out decides for the whole
        return None
    if len(values) > 1:
        raise ConfigError(f"the parts of {type(loss_function).__name__} ignore different values: {sorted(values)}")
    return int(values.pop())


def preferred_form(loss_function: Any) -> TargetForm:
    """The form of labels that a loss is made for, where there is a choice.

    >>> from monai.losses import DiceLoss
    >>> preferred_form(DiceLoss(to_onehot_y=True)), preferred_form(DiceLoss()), preferred_form(nn.CrossEntropyLoss())
    ('index', 'channels', 'bare_index')
    """
    if type(loss_function) is nn.CrossEntropyLoss:
        return "bare_index"
    modules = list(loss_function.modules()) if isinstance(loss_function, nn.Module) else []
    return "index" if any(getattr(m, "to_onehot_y", False) for m in modules) else "channels"


def unknown_labels_error(loss_function: Any) -> ConfigError:
    """What to say when some labels are unknown and the loss can't leave them out.

    >>> raise unknown_labels_error(nn.MSELoss())
    Traceback (most recent call last):
    monai_autoaug.errors.ConfigError: some labels are unknown, but MSELoss can't leave voxels out; ...
    """
    return ConfigError(
        f"some labels are unknown, but {type(loss_function).__name__} can't leave voxels out; use class indices and a"
        " loss with ignore_index, for example monai.losses.DiceLoss(to_onehot_y=True, softmax=True, ignore_index=255),"
        " or with regions monai_autoaug.engines.segmentation.SegmentationLoss(regions=True, ignore=True)"
    )


def can_ignore(loss_function: Any, form: TargetForm) -> bool:
    """Whether a loss can leave voxels out whose label is unknown.

    Class indices have a value for them; a loss on channels needs a method ``masked(output, label, valid)``, as
    `engines.segmentation.SegmentationLoss` has it.

    >>> from monai.losses import DiceLoss
    >>> can_ignore(DiceLoss(ignore_index=255), "index"), can_ignore(DiceLoss(ignore_index=255), "channels")
    (True, False)
    """
    return ignored_value(loss_function) is not None and (form != "channels" or hasattr(loss_function, "masked"))


def _levels(output: Any) -> list[Tensor]:
    """The tensors of a network's output, full resolution first, in float32."""
    levels = list(output) if isinstance(output, list | tuple) else [output]
    if not levels or not all(isinstance(x, Tensor) for x in levels):
        raise ConfigError(
            f"the network returns {type(output).__name__}; a learned augmentation needs logits or a list of logits"
        )
    return [x.float() for x in levels]


class PerSampleLoss:
    """One loss a sample on soft labels (`monai_autoaug.methods.Losses`) of a user's loss; made by `per_sample`.

    ``rule`` says how the last call was done: "mean" and "sum" evaluate the loss sample by sample, "linear" is
    for a loss that doesn't decompose: sample i gets ``B * <dL/do_i, o_i - o_i.detach()>`` and the same for its label,
    which has exactly the value and gradient of the batch's loss L in the mean (second derivatives are not its own: for
    these there is `whole`).
    The values of "linear" are those of each sample on its own, shifted so that their mean is L.
    """

    def __init__(self, loss_function: Callable[..., Tensor], form: TargetForm) -> None:
        self.host = loss_function
        self.name = type(loss_function).__name__
        self.ignore = ignored_value(loss_function)
        self._set(form)

    def _set(self, form: TargetForm) -> None:
        self.form: TargetForm = form
        self.rule: Rule | None = None
        self._rules: dict[bool, Rule] = {}  # with and without unknown labels
        self._soft = soften(copy.deepcopy(self.host), channels=form == "channels")

    def set_form(self, form: TargetForm) -> None:
        """Change how the host writes its labels, once that is known."""
        if form != self.form:
            self._set(form)

    def __call__(self, output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
        """Loss of each sample, (B,), in float32 (see `monai_autoaug.methods.Losses`).

        Raises:
            ConfigError: the loss can't be taken sample by sample on soft labels, or can't leave unknown voxels out.
        """
        levels = _levels(output)
        with float32_region(label.device):
            if valid is not None:
                if not can_ignore(self.host, self.form):
                    raise unknown_labels_error(self.host)
                valid = valid.float()
            known = valid is None
            if known not in self._rules:
                self._rules[known] = self._find_rule(levels, label, known)
            self.rule = self._rules[known]
            return self._by_rule(self.rule, levels, self._labels(label.float(), valid))

    def whole(self, output: Any, label: Tensor, valid: Tensor | None) -> Tensor:
        """The mean of what a call gives, with all of its derivatives."""
        if (valid is None) not in self._rules:
            with torch.no_grad():
                self(output, label, valid)  # refuses what can't be
        with float32_region(label.device):
            return self._total(_levels(output), self._labels(label.float(), None if valid is None else valid.float()))

    def _labels(self, label: Tensor, valid: Tensor | None) -> list[Tensor]:
        """What the softened loss takes besides the output: the label, 0 where unknown; for channels ``valid`` too."""
        if valid is None:
            return [label]
        return [label, valid] if self.form == "channels" else [label * valid]

    def _total(self, levels: list[Tensor], labels: list[Tensor]) -> Tensor:
        """The softened loss of a whole batch, a scalar (MONAI's trainer takes the mean as well)."""
        output = levels if len(levels) > 1 else levels[0]
        return (self._soft if len(labels) == 1 else self._soft.masked)(output, *labels).mean()

    def _single(self, levels: list[Tensor], labels: list[Tensor]) -> Tensor:
        rows = (slice(i, i + 1) for i in range(len(labels[0])))
        return torch.stack([self._total([x[row] for x in levels], [x[row] for x in labels]) for row in rows])

    def _by_rule(self, rule: Rule, levels: list[Tensor], labels: list[Tensor]) -> Tensor:
        if rule == "linear":
            return self._linear(levels, labels)
        single = self._single(levels, labels)
        return single * len(single) if rule == "sum" else single

    def _linear(self, levels: list[Tensor], labels: list[Tensor]) -> Tensor:
        inputs, count = [*levels, *labels], len(levels)
        fixed = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        wanted = [x for x in fixed if x.requires_grad and torch.is_grad_enabled()]
        total = self._total(fixed[:count], fixed[count:])
        with torch.no_grad():
            single = self._single(fixed[:count], fixed[count:])
            result = single + (total - single.mean())
        if wanted:
            gradients = iter(torch.autograd.grad(total, wanted, allow_unused=True))
            for x in inputs:
                gradient = next(gradients) if x.requires_grad else None
                if gradient is not None:
                    result = result + len(single) * (gradient * (x - x.detach())).flatten(1).sum(1)
        return result

    def _find_rule(self, levels: list[Tensor], label: Tensor, known: bool) -> Rule:
        """Try the rules on a random batch of the same shape against the user's own loss on hard labels."""
        with torch.enable_grad():
            trial, hard, valid = _random_batch(levels, label, max(2, len(label)), known)
            labels = self._labels(hard, valid)
            try:
                target = hard_target(hard, self.form, self.ignore, valid)
                own = self.host(trial if len(trial) > 1 else trial[0], target).mean()
                soft = self._total(trial, labels)
            except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError) as error:
                raise self._refusal(f"it fails on a batch of the network's shape: {error}") from error
            expected = torch.autograd.grad(own, trial, allow_unused=True)
            if not _same(own, soft):
                raise self._refusal(f"on one-hot labels it gives {float(soft):.6g} instead of {float(own):.6g}")
            rules: tuple[Rule, ...] = ("mean", "sum", "linear")
            for rule in rules:
                mean = self._by_rule(rule, trial, labels).mean()
                gradients = torch.autograd.grad(mean, trial, allow_unused=True)
                if _same(own, mean) and all(_same(e, g) for e, g in zip(expected, gradients, strict=True)):
                    return rule
        raise self._refusal("value or gradient of its per-sample form differ from its own")

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.name} can't be used with a learned augmentation, which needs it on soft labels ({why});"
            " use a loss that takes one channel a class, for example monai.losses.DiceCELoss(to_onehot_y=True,"
            " softmax=True)"
        )


def _random_batch(
    levels: list[Tensor], label: Tensor, size: int, known: bool
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Random logits shaped like ``levels``, and a hard label whose class (and unknown) fractions differ by sample."""
    generator = torch.Generator().manual_seed(0)
    trial = [torch.randn((size, *x.shape[1:]), generator=generator).to(x.device).requires_grad_() for x in levels]
    shape, classes = label.shape[2:], label.shape[1]
    level = torch.linspace(0.3, 0.9, size).view(-1, *[1] * len(shape))
    index = (torch.rand((size, *shape), generator=generator) ** (2 * level) * max(classes, 2)).long()
    hard = index[:, None] if classes == 1 else nn.functional.one_hot(index, classes).movedim(-1, 1)
    hard = hard.to(label.device, torch.float32)
    if known:
        return trial, hard, None
    valid = torch.rand((size, 1, *shape), generator=generator) < level.unsqueeze(1)
    return trial, hard * valid.to(hard), valid.to(hard)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors agree to float32 accuracy relative to their size."""
    if a is None or b is None:
        return (a is None or not bool(a.any())) and (b is None or not bool(b.any()))
    scale = float(a.detach().abs().max())
    return bool(torch.isfinite(b).all()) and float((a - b).detach().abs().max()) <= 1e-4 * scale + 1e-9


def per_sample(loss_function: Callable[..., Tensor], form: TargetForm = "index") -> PerSampleLoss:
    """Turn a MONAI or torch loss into one loss a sample on soft labels.

    Args:
        loss_function: called with the network's output (a tensor, or a list of them for deep supervision) and the
            host's own labels; any reduction. The object itself stays as it is.
        form: how the host writes its labels, which decides what a class-weighted cross-entropy divides by.

    Returns:
        ``losses(output, label, valid) -> (B,)`` whose mean has the value and gradient of ``loss_function`` on hard
        labels.

    Raises:
        ConfigError: at the first call, when the loss can't be used on soft labels; the message names it.

    >>> from monai.losses import DiceCELoss
    >>> losses = per_sample(DiceCELoss(to_onehot_y=True, softmax=True))
    >>> label = nn.functional.one_hot(torch.randint(3, (2, 8, 8, 8)), 3).movedim(-1, 1).float()
    >>> losses(torch.randn(2, 3, 8, 8, 8), label, None).shape
    torch.Size([2])
    """
    return PerSampleLoss(loss_function, form)
