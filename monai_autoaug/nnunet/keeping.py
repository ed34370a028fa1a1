# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a trainer keeps of what its policies have learned: a file beside the checkpoints, views in the network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from monai_autoaug import policies
from monai_autoaug.methods import Method
from monai_autoaug.nnunet import progress, ranks, test_time
from monai_autoaug.nnunet.exporting import whole_json, whole_picture
from monai_autoaug.nnunet.options import Options
from monai_autoaug.policies import TestTimePolicy, TrainingPolicy

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["KeepingMixin"]


class KeepingMixin(_Host):
    """The part of `AutoAugMixin` that hands policies on to prediction and to people."""

    autoaug: Options
    method: Method
    run_seed: int
    network: torch.nn.Module
    _image_channels: Any
    _log_path: Any
    _start_of_views: Tensor | None

    def _prepare_views(self) -> None:
        """Keep views out of training: probes and the online validation look at the network as it is."""
        network = ranks.unwrapped(self.network)
        test_time.views_of(network).active = False
        policy = self._test_time()
        self._start_of_views = None if policy is None else policy.logits.detach().cpu().clone()

    def _test_time(self) -> TestTimePolicy | None:
        policy = self.method.policies().get("test_time")
        return policy if isinstance(policy, TestTimePolicy) else None

    def _keep_views(self) -> None:
        """Write the views into the network's state as soon as anything has been learned of them, if anything shall."""
        policy, start = self._test_time(), self._start_of_views
        if policy is None or start is None:
            return
        if self.method.views_learn and torch.equal(policy.logits.detach().cpu(), start):
            return
        still = int(self.num_input_channels) - int(self._image_channels())
        test_time.learn(ranks.unwrapped(self.network), policy, still)
        self.inference_allowed_mirroring_axes = None  # nnU-Net's mirroring would multiply the views

    def _keep_policies(self) -> None:
        """Write ``policy.json``: that of the checkpoint that was written last."""
        learned = self.method.policies()
        if not learned:
            return
        training = learned.get("training")
        policies.save(
            Path(self.output_folder) / "policy.json",
            training=training if isinstance(training, TrainingPolicy) else None,
            test_time=self._test_time(),
            seen=self.method.seen(),
            provenance={
                "method": self.method.name, "trainer": type(self).__name__, "plans": self.plans_manager.plans_name,
                "configuration": self.configuration_name, "fold": str(self.fold), "epochs": self.current_epoch + 1,
                "seed": self.run_seed, "data_fingerprint": self._fingerprint(),
            },
        )  # fmt: skip

    def _fingerprint(self) -> str | None:
        """Of the data set: of what nnU-Net has measured on it, which names neither files nor patients."""
        file = Path(self.preprocessed_dataset_folder_base) / "dataset_fingerprint.json"
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else None

    def on_epoch_end(self) -> None:
        """As nnU-Net; its progress.png also shows how decided the policies are."""
        policy = self.method.policies().get("training")
        panels: list[progress.Panel] = []
        if self.local_rank == 0 and isinstance(policy, TrainingPolicy):
            panels = progress.entropy_panels(self._log_path(), policy.classes, [c.name for c in policy.cascades])
        with progress.panels_below(panels), whole_picture(self.logger):
            super().on_epoch_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation, with the learned views as in prediction."""
        self._keep_views()
        with test_time.activated(ranks.unwrapped(self.network)), whole_json():
            super().perform_actual_validation(save_probabilities)
