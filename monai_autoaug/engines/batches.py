# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a MONAI data loader yields -> `Batch`, and the streams of them that a method asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch, centre_crop
from monai_autoaug.engines.losses import (
    TargetForm,
    can_ignore,
    hard_target,
    ignored_value,
    preferred_form,
    unknown_labels_error,
)
from monai_autoaug.engines.metadata import cases_of, plain, spacing_of
from monai_autoaug.errors import ConfigError, DataError

__all__ = ["Converter", "EngineBatches", "Prepared", "count_classes", "output_of", "target_form"]


def target_form(target: Tensor, num_classes: int, spatial_dims: int) -> TargetForm:
    """How a host writes its labels.

    Raises:
        ConfigError: the label's channels are neither one nor the network's.

    >>> target_form(torch.zeros(2, 1, 8, 8, 8), 3, 3), target_form(torch.zeros(2, 8, 8, 8), 3, 3)
    ('index', 'bare_index')
    """
    if target.ndim == spatial_dims + 1:
        return "bare_index"
    if not spatial_dims and (target.ndim != 2 or target.shape[1] != num_classes):
        raise ConfigError(
            f"labels of whole images must be (B,) class indices or (B, {num_classes}) one-hot, as many classes as the"
            f" network gives, got {tuple(target.shape)}"
        )
    if target.ndim == spatial_dims + 2 and target.shape[1] == num_classes:
        return "channels"
    if target.ndim == spatial_dims + 2 and target.shape[1] == 1:
        return "index"
    raise ConfigError(
        f"labels must be (B, 1, ...) or (B, ...) class indices or (B, {num_classes}, ...) channels, as many as the"
        f" network gives, with {spatial_dims} spatial axes; got {tuple(target.shape)}"
    )


def count_classes(network: nn.Module, image: Tensor, spatial_dims: int) -> int:
    """Channels of the network's output, found by a forward of one sample in evaluation mode, without side effects.

    Args:
        network: in any mode.
        image: (B, C, D, H, W).
        spatial_dims: of the output; 0 where it is (B, K).

    Raises:
        ConfigError: the output has other axes.

    >>> count_classes(nn.Conv3d(1, 3, 1), torch.zeros(2, 1, 4, 4, 4), 3)
    3
    """
    training = [m for m in network.modules() if m.training]
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
            output = network(image[:1].float())
    finally:
        for module in training:
            module.training = True
    output = output[0] if isinstance(output, list | tuple) else output
    if spatial_dims and output.ndim == 2:
        raise ConfigError("the network classifies whole images, its output is (B, K): set classification to True")
    if not spatial_dims and output.ndim != 2:
        raise ConfigError(f"the output of a network that classifies must be (B, K), got {tuple(output.shape)}")
    # DynUNet stacks its levels along an axis of their own: (B, levels, K, ...)
    return int(output.shape[-spatial_dims - 1])


@dataclass(frozen=True)
class Prepared:
    """One batch of the loader, as the host knows it and as a method sees it.

    Args:
        inputs: what the network gets, on the device; a MetaTensor stays one.
        targets: what the host's own loss gets.
        args: further positional arguments of the network.
        kwargs: further keyword arguments of the network.
        batch: the same for a method.
    """

    inputs: Any
    targets: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: Batch


class Converter:
    """Turns what a loader yields into `Prepared`; learns the number of classes and the labels' form from the first.

    Args:
        prepare: the host's ``prepare_batch`` with everything but the data bound.
        network: the plain network, asked once for the number of classes.
        device: where training runs.
        spatial_dims: 2 or 3.
        margin: voxels by which the loader's patches are enlarged at each end of each axis.
        soft: whether the method needs labels as channels; False hands them on as they are.
        image_channels: what the method's networks were built for, or None.
        regions: whether label channels may overlap.
        classification: whether labels are of whole images.
        num_classes: classes or regions, the background included; None: what the network gives.
        loss_function: the host's loss, which says which label value is unknown, and in which form it wants the labels
            of a loader of this package (which yields `Batch`).
    """

    def __init__(
        self,
        prepare: Callable[[Any], Any],
        network: nn.Module,
        device: torch.device,
        *,
        spatial_dims: int,
        margin: tuple[int, ...],
        soft: bool,
        image_channels: int | None = None,
        regions: bool = False,
        num_classes: int | None = None,
        loss_function: Any = None,
        classification: bool = False,
    ) -> None:
        self.prepare, self.network, self.device = prepare, network, device
        self.spatial_dims, self.margin, self.soft, self.image_channels = spatial_dims, margin, soft, image_channels
        self.regions, self.num_classes, self.loss_function = regions, num_classes, loss_function
        self.label_dims = 0 if classification else spatial_dims
        self.ignore = ignored_value(loss_function)
        self.form: TargetForm | None = None

    def __call__(self, data: Any, *, values: bool = False) -> Prepared:
        """Prepare one batch.

        Args:
            data: what the loader yields.
            values: leave labels that are class indices and all known as they are, see `Batch.heads`.

        Raises:
            ConfigError: what the loader yields can't be used with this method.
            DataError: a label value that isn't one of the classes.
        """
        if isinstance(data, Batch):
            return self._own(data.to(self.device, non_blocking=True))
        made = self.prepare(data)
        if not isinstance(made, list | tuple) or len(made) not in (2, 4):
            raise ConfigError("prepare_batch must return (image, label) or (image, label, args, kwargs)")
        inputs, targets, args, kwargs = made if len(made) == 4 else (*made, (), {})
        image, target = plain(inputs), plain(targets)
        if not self.soft:
            if any(self.margin):
                inputs, targets = image, target = centre_crop(image, self.margin), self._crop_target(target)
            batch = Batch(image, image, margin=(0,) * self.spatial_dims, target=target)
            return Prepared(inputs, targets, tuple(args), kwargs, batch)
        self._check(image, target, args, kwargs)
        label, valid = self._channels(image, target, cases_of(inputs, data), values)
        heads = 0 if label.is_floating_point() else self.num_classes
        batch = Batch(
            image.float(), label, valid, classes=self._centre_classes(label), case=cases_of(inputs, data),
            spacing=spacing_of(inputs, self.spatial_dims), margin=self.margin, target=self._crop_target(target),
            heads=heads or 0,
        )  # fmt: skip
        return Prepared(inputs, targets, tuple(args), kwargs, batch)

    def unlabelled(self, data: Any) -> Batch:
        """A batch of images whose labels are unknown or not there: 0, and ``valid`` nowhere.

        Raises:
            ConfigError: the images can't be used with this method.
        """
        if isinstance(data, Batch):
            batch = data.to(self.device, non_blocking=True)
            self._check_image(batch.image)
            return batch
        inputs = self.prepare(data)[0]
        image = plain(inputs).float()
        self._check_image(image)
        if self.num_classes is None:
            self.num_classes = count_classes(self.network, centre_crop(image, self.margin), self.label_dims)
        size = image.shape[2:] if self.label_dims else ()
        label = image.new_zeros((len(image), self.num_classes, *size))
        return Batch(
            image, label, label.new_zeros((len(image), 1, *size)), case=cases_of(inputs, data),
            spacing=spacing_of(inputs, self.spatial_dims), margin=self.margin,
        )  # fmt: skip

    def _own(self, batch: Batch) -> Prepared:
        """A loader of this package yields whole batches; the target is the label without its margin."""
        if self.form is None:
            self.num_classes = batch.heads or batch.label.shape[1]
            # one channel is a region by necessity
            self.form = "channels" if self.num_classes == 1 or self.regions else preferred_form(self.loss_function)
        if batch.valid is not None and not can_ignore(self.loss_function, self.form):
            raise unknown_labels_error(self.loss_function)
        self._check_image(batch.image)
        crop = batch.cropped().with_channels()
        label = crop.label if crop.valid is None else crop.label * crop.valid
        target = batch.target if batch.target is not None else hard_target(label, self.form, self.ignore, crop.valid)
        return Prepared(crop.image, target, (), {}, replace(batch, target=target))

    def _check(self, image: Tensor, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse, before anything has been trained, what a learned augmentation can't work with."""
        if any(isinstance(x, Tensor) for x in (*args, *kwargs.values())):
            raise ConfigError(
                "prepare_batch gives the network further tensors besides the image, which a learned augmentation can't"
                " transform with it; append them to the image as channels, or use method 'none'"
            )
        if not isinstance(target, Tensor):
            raise ConfigError("a learned augmentation needs labels, but prepare_batch returns none")
        self._check_image(image)

    def _check_image(self, image: Tensor) -> None:
        if image.ndim != self.spatial_dims + 2:
            raise ConfigError(f"images must be (B, C, {self.spatial_dims} spatial axes), got {tuple(image.shape)}")
        if self.image_channels is not None and image.shape[1] != self.image_channels:
            raise ConfigError(
                f"the method was built for {self.image_channels} image channels, but images have {image.shape[1]};"
                " set image_channels in method_options"
            )

    def _channels(
        self, image: Tensor, target: Tensor, cases: tuple[str, ...], values: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The label as (B, K, ...) channels, zero where unknown, and where it is known (None: everywhere).

        With ``values``, as (B, 1, ...) class indices if that is what it is and all are known.
        """
        if self.form is None:
            self._learn(image, target)
        assert self.num_classes is not None  # noqa: S101  # for the type checker: `_learn` has set it
        if self.form == "channels":
            return self._known_channels(target.float())
        index = target if self.form == "bare_index" else target[:, 0]
        valid = None
        if self.ignore is not None and not 0 <= self.ignore < self.num_classes:
            known = index != self.ignore
            if not bool(known.all()):
                valid, index = known.unsqueeze(1).float(), torch.where(known, index, 0)
        low, high = (int(v) for v in torch.aminmax(index))
        if low < 0 or high >= self.num_classes:
            raise DataError(
                "undeclared label value", file=", ".join(cases) or None, expected=f"0 to {self.num_classes - 1}",
                came=low if low < 0 else high, remedy="correct the label, or give the loss an ignore_index",
            )  # fmt: skip
        if values and valid is None and self.label_dims:
            return index.unsqueeze(1).short(), None
        label = nn.functional.one_hot(index.long(), self.num_classes).movedim(-1, 1).float()
        return (label if valid is None else label * valid), valid

    def _known_channels(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Channels, 0 where they hold the value that the loss ignores, and where they don't (None: nowhere)."""
        if self.ignore is None or self.ignore in (0, 1):
            return target, None
        valid = (target != self.ignore).all(1, keepdim=True)
        if bool(valid.all()):
            return target, None
        return target.masked_fill(~valid, 0), valid.float()

    def _learn(self, image: Tensor, target: Tensor) -> None:
        """Number of classes and form of the labels, from the first batch."""
        if self.num_classes is None:
            self.num_classes = count_classes(self.network, centre_crop(image, self.margin), self.label_dims)
        self.form = target_form(target, self.num_classes, self.label_dims)
        if self.form == "channels" and not self.regions and not bool((target.sum(1) == 1).all()):
            raise ConfigError(
                "the label's channels overlap or leave voxels to none of them, so they are regions, not classes:"
                " set regions to True (and a loss with sigmoid=True)"
            )

    def _crop_target(self, target: Any) -> Any:
        if not any(self.margin) or not isinstance(target, Tensor) or not self.label_dims:
            return target
        if target.ndim == self.spatial_dims + 1:
            return centre_crop(target[:, None], self.margin)[:, 0]
        return centre_crop(target, self.margin)

    def _centre_classes(self, label: Tensor) -> Tensor:
        """The label value at each patch's centre; of regions the last one there, counted from 1, 0 for none."""
        centre = label
        for size in label.shape[2:]:
            centre = centre[:, :, size // 2]
        if not label.is_floating_point():
            return centre[:, 0].long()
        if not self.regions:
            return centre.argmax(1)
        numbers = torch.arange(1, label.shape[1] + 1, device=label.device)
        return (numbers * (centre > 0)).amax(1)


def output_of(prepared: Prepared, batch: Batch | None, prediction: Any, converter: Converter) -> dict[str, Any]:
    """Image, label and prediction as the network saw them, by MONAI's names.

    Args:
        prepared: the loader's batch.
        batch: what became of it; None: the network saw it as it is, and the prediction gets its metadata.
        prediction: of the network.
        converter: that prepared it.
    """
    if batch is None:
        inputs = prepared.inputs
        if isinstance(inputs, MetaTensor) and isinstance(prediction, Tensor):
            # not through the constructor, which can't take a batch's metadata (a channel axis for each sample)
            prediction = MetaTensor(prediction)
            prediction.copy_meta_from(inputs, copy_attr=False)
        return {Keys.PRED: prediction}
    valid = None if batch.valid is None else batch.valid.detach()
    label = batch.label.detach() if valid is None else batch.label.detach() * valid
    target = hard_target(label, converter.form or "index", converter.ignore, valid)
    return {Keys.IMAGE: batch.image.detach(), Keys.LABEL: target, Keys.PRED: prediction}


class EngineBatches:
    """The streams of a MONAI engine (`monai_autoaug.methods.Batches`): "train" is this iteration's batch.

    Args:
        side: draws the next batch of another stream; called only when a method asks.

    >>> EngineBatches(side=lambda name: f"a {name} batch").next("meta")
    'a meta batch'
    """

    def __init__(self, side: Callable[[str], Batch]) -> None:
        self.current: Batch | None = None
        self._side = side

    def next(self, stream: str) -> Batch:
        """The next batch of a stream.

        Raises:
            ConfigError: there is no such stream, or no iteration has begun.
        """
        if stream != "train":
            return self._side(stream)
        if self.current is None:
            raise ConfigError("there is no training batch before the first iteration")
        return self.current
