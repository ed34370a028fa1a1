# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a trainer with learned augmentation builds its network, optimiser, loss and method."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.nn.modules.batchnorm import _BatchNorm

from monai_autoaug import methods
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import Losses, Method
from monai_autoaug.networks.auxiliary_norm import AuxiliaryNorm
from monai_autoaug.nnunet import ranks
from monai_autoaug.nnunet.course import course
from monai_autoaug.nnunet.given_policy import GivenPolicy
from monai_autoaug.nnunet.losses import soft_losses
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.orientation import laterality_of
from monai_autoaug.nnunet.patches import PatchLayout, label_names
from monai_autoaug.nnunet.task import TrainingTask
from monai_autoaug.policies import Laterality, lateral_pairs
from monai_autoaug.precision import Precision, gather_over_ranks, rank, world_size

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["BuildingMixin"]


class BuildingMixin(_Host):
    """The part of `AutoAugMixin` that builds."""

    autoaug: Options
    autoaug_base: ClassVar[type[Any]]
    method: Method
    task: TrainingTask
    layout: PatchLayout
    run_seed: int
    _course: dict[str, Any]
    _given_policy: GivenPolicy | None
    _build_again: Callable[[], torch.nn.Module]
    _prepare_phases: Any
    _prepare_views: Any
    _laterality: tuple[Laterality | None] | None = None
    is_ddp: bool
    network: torch.nn.Module

    def initialize(self) -> None:
        """Build the network with what the method needs in it, optimiser, loss and the method."""
        if self.was_initialized:
            super().initialize()  # says what is wrong
        seed = self.autoaug.seed
        if seed is not None:
            random.seed(seed + rank())
            np.random.seed((seed + rank()) % 2**32)  # noqa: NPY002  # the generator that nnU-Net draws from
            torch.manual_seed(seed + rank())
        # without a seed the first rank's torch seed, so that all ranks make the same players
        self.run_seed = gather_over_ranks(torch.initial_seed() % 2**31 if seed is None else seed)[0]
        build = self.build_network_architecture

        @functools.wraps(build)
        def prepared(*args: Any, **kwargs: Any) -> torch.nn.Module:
            self._build_again = functools.partial(prepared, *args, **kwargs)
            return methods.prepare(self.autoaug.method, build(*args, **kwargs), **self._method_options())

        # an attribute of this object, because the class's function also builds the plain network for prediction
        self.__dict__["build_network_architecture"] = prepared
        together, self.is_ddp = self.is_ddp, False  # nnU-Net's own wrapping knows GPUs only
        try:
            super().initialize()
        finally:
            self.is_ddp = together
            del self.__dict__["build_network_architecture"]
        self._check_features()
        if super()._do_i_compile() and not self._do_i_compile():
            self.print_to_log_file(
                "torch.compile is off: this network's batch norms have auxiliary groups of varying size"
            )
        if self.is_ddp:
            self.network, synchronised = ranks.wrapped(self.network, self.device)
            if not synchronised:
                self.print_to_log_file(
                    "Batch norm sees each rank's own samples (its statistics are averaged after each epoch):"
                    " SyncBatchNorm has no CPU form and no auxiliary groups"
                )
        self._build_method()
        self._warn_of_sides()
        self._prepare_views()

    def _check_features(self) -> None:
        network = ranks.unwrapped(self.network)
        built = getattr(getattr(network, "encoder", None), "output_channels", None)
        if self.autoaug.features is not None and list(built or []) != list(self.autoaug.features):
            raise ConfigError(
                f"{self.autoaug_base.__name__} builds its network without the plans' features_per_stage (its stages"
                f" have {built}); leave the autoaug options features and width out"
            )

    def _image_channels(self) -> int:
        extra = len(self.label_manager.foreground_labels) if self.is_cascaded else 0
        return int(self.num_input_channels) - extra

    def _method_options(self) -> dict[str, Any]:
        """The user's options and those that only the trainer knows."""
        given = {**self.autoaug.method_options, "seed": self.run_seed}
        known = methods.options(self.autoaug.method)
        if "image_channels" in known:
            given["image_channels"] = self._image_channels()
        if self.autoaug.base_augmentation == "stock":
            given = {**methods.find(self.autoaug.method).over_augmentation, **given}
        sides = self._sides()
        if sides:
            if self._laterality is None:
                folder, plans = Path(self.preprocessed_dataset_folder), self.plans_manager
                dims = len(self.configuration_manager.patch_size)
                self._laterality = (laterality_of(sides, folder, plans.transpose_forward, dims),)
                self._check_sides(self._laterality[0])
            (given["laterality"],) = self._laterality
        if self._given_policy is not None:
            self._given_policy.check_sides(given.get("laterality") or None)
            given["policy"] = self._given_policy.build()
        return given

    def _check_sides(self, known: Laterality | None) -> None:
        """Refuse pairs of labels that the network doesn't tell."""
        largest = self.label_manager.num_segmentation_heads - 1  # channel k is label k, or region k
        unknown = [] if known is None else sorted(v for pair in known.pairs for v in pair if v > largest)
        if unknown:
            kind = "region" if self.label_manager.has_regions else "label"
            raise ConfigError(
                f"method option laterality: there is no {kind} {unknown[0]}, the largest is {largest}; correct it"
            )

    def _sides(self) -> Any:
        """Which labels are each other's mirror image: what the option says, or else a policy that is given."""
        given = self.autoaug.method_options.get("laterality")
        return given or (None if self._given_policy is None else self._given_policy.sides)

    def _warn_of_sides(self) -> None:
        """Say that labels look lateral, where mirroring may teach the network to confuse them."""
        known = methods.options(self.autoaug.method)
        if "laterality" not in known or self._sides():
            return
        values = {name: value for name, value in self.dataset_json["labels"].items() if isinstance(value, int)}
        pairs = lateral_pairs(values)
        if pairs:
            listed = ", ".join(str(list(pair)) for pair in pairs)
            self.print_to_log_file(
                f"WARNING: the labels {listed} look like left and right of one structure, and mirroring exchanges them;"
                f" set method_options: {{laterality: [{listed}]}}"
            )

    def _build_method(self) -> None:
        dtype = self.autoaug.precision or ("float16" if self.device.type == "cuda" else "float32")
        if dtype != "float16":
            self.grad_scaler = None
        patch_size = self.configuration_manager.patch_size
        self.task = TrainingTask(
            ranks.unwrapped(self.network), self.optimizer, self.loss, self._losses(),
            Precision(self.device, dtype, scaler=self.grad_scaler), spatial_dims=len(patch_size),
            regions=self.label_manager.has_regions, call=ranks.called(self.network),
            steps=self.num_epochs * self.num_iterations_per_epoch, patch_size=tuple(int(n) for n in patch_size),
            label_names=label_names(self.dataset_json), build=self._build_again,
        )  # fmt: skip
        self.method = methods.build(self.autoaug.method, self.task, **self._method_options())
        self._prepare_phases()
        self.layout = PatchLayout(
            heads=self.label_manager.num_segmentation_heads,
            image_channels=self._image_channels(),
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            spacing=tuple(float(s) for s in self.configuration_manager.spacing[-len(patch_size) :]),
            masked_channels=tuple(bool(m) for m in self.configuration_manager.use_mask_for_norm),
            margin=self.autoaug.margins(patch_size, self.configuration_manager.median_image_size_in_voxels),
            scales=self._get_deep_supervision_scales(),
        )
        self._course = course(self.autoaug, self, self.layout.margin)

    def build_soft_losses(self) -> Losses:
        """The loss for soft labels, one value a sample; override it for a loss of your own (or see `soft_term`)."""
        return soft_losses(self.loss)

    def _losses(self) -> Losses:
        if self.autoaug.method != "none":
            return self.build_soft_losses()
        # the plain step uses the trainer's own loss, which need not have a form for soft labels
        return lambda output, label, valid: self.build_soft_losses()(output, label, valid)

    def _do_i_compile(self) -> bool:
        """As nnU-Net, but not where batch norm has auxiliary groups: how many samples each has, no graph can know."""
        wanted = bool(super()._do_i_compile())
        return wanted and not any(isinstance(m, AuxiliaryNorm) and isinstance(m, _BatchNorm) for m in self._layers())

    def _layers(self) -> Iterator[torch.nn.Module]:
        """All layers of the network, which is None until nnU-Net has built it."""
        yield from () if self.network is None else self.network.modules()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        before, self.is_ddp = self.is_ddp, dist.is_available() and dist.is_initialized()
        try:
            yield
        finally:
            self.is_ddp = before

    def _set_batch_size_and_oversample(self) -> None:
        with self._together():
            super()._set_batch_size_and_oversample()
            size, share = self.configuration_manager.batch_size, world_size()
            if self.configuration_manager.batch_dice and size % share:
                # a gather of tensors of different size: gloo aborts, NCCL waits for ever
                raise ConfigError(
                    f"nnU-Net's batch Dice takes the same number of patches on each rank: {size} is not divisible by"
                    f" {share}; set the autoaug option batch_size to {size - size % share or share}"
                )

    def _build_loss(self) -> Any:
        # of a network of two stages: nnU-Net weighs its lowest output by 0, and then divides by the sum of all weights
        with self._together(), np.errstate(invalid="ignore"):
            loss = super()._build_loss()
        if isinstance(loss, DeepSupervisionWrapper) and len(loss.weight_factors) == 1:
            loss.weight_factors = (1.0,)
        return loss

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own optimiser and schedule, or those that the options name."""
        options = self.autoaug
        if options.optimizer is None:
            return super().configure_optimizers(*args, **kwargs)
        parameters = self.network.parameters()
        optimizer: torch.optim.Optimizer
        if options.optimizer == "sgd":
            momentum = 0.99 if options.momentum is None else options.momentum
            optimizer = torch.optim.SGD(
                parameters, self.initial_lr, weight_decay=self.weight_decay, momentum=momentum, nesterov=momentum > 0
            )
        else:
            optimizer = torch.optim.AdamW(parameters, self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
