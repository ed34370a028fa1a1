# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned views of whole volumes, as in paper 002: nnU-Net's sliding window predicts one view after the other."""

from __future__ import annotations

from copy import deepcopy

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet import ranks, test_time

__all__ = ["VolumePredictor"]


class VolumePredictor(nnUNetPredictor):
    """nnU-Net's predictor that views whole volumes, not the patches of its sliding window.

    A rotated view then shows real voxels at a patch's border, and intensities are compared over the volume. Views are
    made on the CPU, where only one is kept at a time, beside the sum of what has been predicted.
    """

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        """Logits (K, X, Y, Z) of an image (C, X, Y, Z), averaged over the network's views of it.

        Raises:
            ConfigError: the network has no learned views.
        """
        network = ranks.unwrapped(self.network)
        views = getattr(network, "autoaug_views", None)
        if not isinstance(views, test_time.Views) or views.policy is None:
            raise ConfigError(
                f"--tea volume: the checkpoint of {self.trainer_name} holds no learned views; predict without it, or"
                " with the trainer that learned some"
            )
        z = test_time.views_wanted(views.policy)
        with test_time.activated(network, False):
            if z == 0:
                return super().predict_sliding_window_return_logits(input_image)
            policy = deepcopy(views.policy)
            policy.level = "volume"
            slices = policy.spatial_dims == 2  # of a 2D configuration: each is an image of its own

            def predict(view: Tensor) -> Tensor:
                volume = view.transpose(0, 1) if slices else view[0]
                logits = super(VolumePredictor, self).predict_sliding_window_return_logits(volume).cpu()
                return logits.transpose(0, 1) if slices else logits[None]

            image = input_image.transpose(0, 1) if slices else input_image[None]
            logits = test_time.as_logits(policy, policy.apply(predict, image.float(), z, still=views.still))
            return logits.transpose(0, 1) if slices else logits[0]
