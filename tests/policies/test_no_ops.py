# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Operations that a network can't see are found, and only those."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from monai.networks.nets import UNet
from monai.transforms import ScaleIntensity
from torch import Tensor, nn

from monai_autoaug.policies import no_ops, sensitivity
from monai_autoaug.transforms import Cascade, Operation, extra_cascades, from_monai, training_cascades

FACTORS = {"brightness_multiply_1.00_1.10", "brightness_multiply_1.10_1.20", "brightness_multiply_1.20_1.30"}


def patch(channels: int = 1) -> Tensor:
    return F.interpolate(torch.randn(2, channels, 6, 6, 6), size=(16, 16, 16), mode="trilinear")


def unet(norm: str, channels: int = 1) -> nn.Module:
    return UNet(3, channels, 2, (4, 8), (2,), num_res_units=0, norm=norm)


def test_a_factor_before_instance_norm_does_nothing() -> None:
    """One channel: scaling it is such a factor, too; of two channels, the second can be told from the first."""
    cascades = [*training_cascades(), extra_cascades()["channel_scale"]]
    found = no_ops(unet("INSTANCE"), patch(), cascades)
    assert set(found) == FACTORS | {o.name for o in extra_cascades()["channel_scale"].operations[1:]}
    assert set(no_ops(unet("INSTANCE", 2), patch(2), cascades)) == FACTORS


def test_batch_norm_sees_it() -> None:
    network = unet("BATCH")
    for _ in range(3):
        network(patch())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert no_ops(network, patch(), training_cascades()) == ()
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_network_that_moves_with_its_input_sees_no_flip() -> None:
    """The output is compared with the moved output; an affine map leaves interpolation as a difference."""
    seen = sensitivity(nn.Conv3d(1, 2, 1), patch(), training_cascades())
    assert all(seen[f"flip_{a}"] < 1e-6 for a in "dhw")
    assert all(seen[f"rotate_{p}_90"] < 1e-6 for p in ("hw", "dw", "dh"))
    directed = nn.Conv3d(1, 2, 3, padding=1)
    assert all(sensitivity(directed, patch(), training_cascades())[f"flip_{a}"] > 0.01 for a in "dhw")


def test_every_range_is_measured_at_its_strong_end() -> None:
    """Low resolution is strong at small magnitudes, and so is sharpening."""
    seen = sensitivity(nn.Conv3d(1, 2, 1), patch(), training_cascades())
    for weak, strong in (
        ("low_resolution_0.8_1.0", "low_resolution_0.4_0.6"),
        ("sharpen_0.8_1.0", "sharpen_0.4_0.6"),
        ("blur_0.4_0.6", "blur_0.8_1.0"),
    ):
        assert 0.01 < seen[weak] < seen[strong]


@pytest.mark.parametrize("levels", [list, tuple])
def test_own_operations_and_networks_with_several_outputs(levels: type) -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> object:
            return levels([x / x.std(), x[..., ::2]])

    twice = from_monai(lambda x: 2 * x, "twice")
    unit = from_monai(ScaleIntensity(), "unit_range")
    assert no_ops(Deep(), patch()[:1], [Cascade("mine", (Operation("identity"), twice, unit))]) == ("twice",)
