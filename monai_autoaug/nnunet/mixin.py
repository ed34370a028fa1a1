# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a trainer with learned augmentation does otherwise than its base class (see `with_autoaug`)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from monai_autoaug import augmenters
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.nnunet import checkpoint, journal, ranks
from monai_autoaug.nnunet.building import BuildingMixin
from monai_autoaug.nnunet.exporting import whole_json
from monai_autoaug.nnunet.finishing import finish
from monai_autoaug.nnunet.given_policy import find_policy
from monai_autoaug.nnunet.keeping import KeepingMixin
from monai_autoaug.nnunet.layers import apply_to_plans, read_options
from monai_autoaug.nnunet.patches import label_names
from monai_autoaug.nnunet.phases import PhasesMixin
from monai_autoaug.nnunet.rehearsal import rehearse
from monai_autoaug.nnunet.resuming import ResumingMixin
from monai_autoaug.nnunet.serving import ServingMixin
from monai_autoaug.nnunet.showing import ShowingMixin
from monai_autoaug.nnunet.task import TrainerBatches
from monai_autoaug.nnunet.test_time import attaching

__all__ = ["AutoAugMixin"]


class AutoAugMixin(BuildingMixin, PhasesMixin, ServingMixin, ResumingMixin, ShowingMixin, KeepingMixin):
    """Learned augmentation for the trainer class that follows in the method resolution order.

    Attributes:
        autoaug: the options of this run.
        method: the method, after ``initialize``.
    """

    autoaug_defaults: ClassVar[Mapping[str, Any]] = {}
    autoaug_base: ClassVar[type[Any]]

    def __init_subclass__(cls, **given: Any) -> None:
        """nnU-Net's predictor builds the network by the class alone, so the class says that views belong to it."""
        super().__init_subclass__(**given)
        cls.build_network_architecture = staticmethod(attaching(cls.build_network_architecture))

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's own signature, copied name by name
    ) -> None:
        given = {"continue_training": False, **plans}
        self._continues = bool(given["continue_training"])  # --c
        wanted = read_options(self.autoaug_defaults, given, configuration)
        self.autoaug, given = apply_to_plans(wanted, given, configuration)
        manager = PlansManager(given)
        patch_size = manager.get_configuration(configuration).patch_size
        # before folders are made and data are prepared
        self._said: set[str] = set()
        self._given_policy = find_policy(
            self.autoaug, self._fold_folder(manager, configuration, fold), continues=self._continues
        )
        rehearse(
            self.autoaug, spatial_dims=len(patch_size), label_names=label_names(dataset_json), policy=self._given_policy
        )
        super().__init__(given, configuration, fold, dataset_json, device)
        if self.is_ddp and device.type == "cpu":
            self.device, self.grad_scaler = device, None  # nnU-Net takes several ranks to be several GPUs
        self.batches: TrainerBatches
        self._streams = {}
        self._positions = {}
        self._split = None
        self._resumed = None
        self._shared_policy, self._policy_versions = None, None
        self._refusal = None
        self._samples, self._board, self._line, self._cases = None, None, None, {}
        self._apply_options()

    def _fold_folder(self, plans: PlansManager, configuration: str, fold: Any) -> Path | None:
        """Where nnU-Net's trainer will write, or has written before."""
        if not nnUNet_results.is_set():
            return None
        name = f"{type(self).__name__}__{plans.plans_name}__{configuration}"
        return Path(str(nnUNet_results)) / plans.dataset_name / name / f"fold_{fold}"

    def _apply_options(self) -> None:
        """Options that are attributes of nnU-Net's trainer."""
        names = {
            "epochs": "num_epochs",
            "iterations_per_epoch": "num_iterations_per_epoch",
            "val_iterations_per_epoch": "num_val_iterations_per_epoch",
            "lr": "initial_lr",
            "weight_decay": "weight_decay",
            "save_every": "save_every",
        }
        for option, attribute in names.items():
            if getattr(self.autoaug, option) is not None:
                setattr(self, attribute, getattr(self.autoaug, option))
        if self.autoaug.optimizer == "adamw" and self.autoaug.lr is None:
            self.initial_lr = 1e-3
        changes = list(inspect.signature(self.autoaug_base.configure_optimizers).parameters)[1:]
        if self.autoaug.optimizer is not None and changes:
            raise ConfigError(
                f"{self.autoaug_base.__name__} changes its optimiser in the course of training ({', '.join(changes)});"
                " leave the autoaug options optimizer and momentum out, lr and weight_decay reach it"
            )

    def run_training(self) -> None:
        """Train, and leave no worker behind whatever happens."""
        try:
            super().run_training()
        finally:
            self._close_streams()

    def on_train_start(self) -> None:
        """Loaders and folders; then the random numbers of a resumed run go on where they stopped.

        Raises:
            CheckpointError: a checkpoint was loaded from which this training can't go on.
            ConfigError: the file of a policy that this training is given is gone, or weights were loaded that a fresh
                network would replace.
        """
        if self._given_policy is not None and self._given_policy.missing is not None:
            raise ConfigError(self._given_policy.missing)
        if self._refusal is not None:
            raise CheckpointError(self._refusal)
        if self.was_initialized and self._resumed is None:
            self._check_weights()
        self._continues = False  # what is loaded from now on (--val_best) is validated only
        with whole_json():
            super().on_train_start()
        self.batches = TrainerBatches(self.layout, self.device, self._streams, values=self.method.draws_operations)
        if self._resumed is not None:
            checkpoint.restore_random_states(self._resumed)
        if self.local_rank == 0:
            journal.cut(self._log_path(), self.current_epoch)  # epochs that this run will do again
            self._begin_showing()
            self.print_to_log_file(f"Learned augmentation: {json.dumps(self.autoaug.as_dict())}")
            self._say(self.method.announcement())

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of the method: all players, one backward."""
        self.task.optimizer = self.optimizer  # some trainers change it
        self._offer_patch(batch)
        figures = self.method.step(self.batches.begin(batch))
        return {"loss": np.asarray(figures["loss"], dtype=np.float32)}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the losses and what the method says of the epoch."""
        super().on_train_epoch_end(train_outputs)
        ranks.average_statistics(self.task.network)
        figures = self.method.on_epoch(self.current_epoch)
        figures |= {f"skipped_{name}": float(count) for name, count in self.task.precision.skipped.items()}
        figures = ranks.mean_over_ranks(figures)
        warnings = self._doubts()
        if self.local_rank != 0:
            return
        train_loss = float(self.logger.get_value("train_losses", step=-1))
        self._line = {"epoch": self.current_epoch, "train_loss": train_loss, **figures}
        if warnings:
            self._line["warnings"] = warnings
        told = [journal.in_short(figures, self.method.policies().get("training"))] if figures else []
        self.print_to_log_file("autoaug", *told, journal.memory(self.device))
        for logger in self.logger.loggers:  # those beside nnU-Net's own file, which takes its own keys only
            for name, value in figures.items():
                logger.log(f"autoaug/{name}", value, self.current_epoch)
        self._say([f"WARNING: {sentence}" for sentence in warnings])

    def on_epoch_end(self) -> None:
        """As nnU-Net; before, the epoch's line is written, with the pseudo Dice of its online validation."""
        if self._line is not None:
            pseudo = dict(zip(label_names(self.dataset_json)[1:],
                              self.logger.get_value("dice_per_class_or_region", step=-1), strict=False))  # fmt: skip
            dice = {"dice": self.logger.get_value("mean_fg_dice", step=-1)}
            dice |= {f"dice_{name}": value for name, value in pseudo.items()}
            line = self._line | {name: float(value) for name, value in dice.items() if np.isfinite(value)}
            journal.append(self._log_path(), line)
            self._keep_showing(line)
            self._line = None
        super().on_epoch_end()

    def _say(self, sentences: Iterable[str]) -> None:
        """Print each sentence to nnU-Net's log the first time that it is said."""
        for sentence in sentences:
            if sentence not in self._said:
                self._said.add(sentence)
                self.print_to_log_file(sentence)

    def _log_path(self) -> Path:
        return Path(self.output_folder) / "autoaug.jsonl"

    def on_train_end(self) -> None:
        """What the method does last, and the final checkpoint; the learned augmenters as files of their own."""
        finish(self)
        super().on_train_end()
        self._close_streams()
        if self.local_rank == 0:
            self._end_showing()
        learned = self.method.augmenters()
        if learned and self.local_rank == 0 and not self.disable_checkpointing:
            path = augmenters.save(Path(self.output_folder) / "augmenters.pt", learned)
            self.print_to_log_file(f"Learned augmenters: {path}")
