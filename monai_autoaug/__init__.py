# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Learned data augmentation for 3D medical image segmentation: a MONAI extension with drop-in nnU-Net trainers."""

__version__ = "0.1.0"
