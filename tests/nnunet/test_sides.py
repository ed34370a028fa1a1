# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Left and right in nnU-Net's arrays, whose axes are neither in the order of the file nor oriented."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from test_joint_trainer import joint

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.orientation import axis_of_case, laterality_of, left_right_of_dataset
from monai_autoaug.policies import Laterality


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("transposed", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_the_axis_is_that_of_the_array(
    tmp_path: Path, reader: Any, order: tuple[int, ...], transposed: tuple[int, ...]
) -> None:
    """An image that grows from left to right, in files of any orientation, as nnU-Net reads and transposes it."""
    ramp = np.broadcast_to(np.arange(6.0)[:, None, None], (6, 7, 8)).transpose(order).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)]
    nib.save(nib.Nifti1Image(ramp, affine), tmp_path / "image.nii.gz")
    data, properties = reader().read_images([str(tmp_path / "image.nii.gz")])
    data = data[0].transpose(transposed)
    varies = [axis for axis in range(3) if np.abs(np.diff(data, axis=axis)).max() > 0]
    assert [axis_of_case(properties, transposed)] == varies


def test_a_data_set_has_one_axis_or_is_refused(tmp_path: Path) -> None:
    def write(case: str, properties: dict[str, Any]) -> None:
        (tmp_path / f"{case}.pkl").write_bytes(pickle.dumps(properties))

    with pytest.raises(ConfigError, match="got no case"):
        left_right_of_dataset(tmp_path, (0, 1, 2))
    straight = {"sitk_stuff": {"direction": tuple(np.eye(3).flatten())}}
    for case in ("a", "b"):
        write(case, straight)
    assert left_right_of_dataset(tmp_path, (0, 1, 2)) == 2
    found = laterality_of([[1, 2]], tmp_path, (0, 1, 2), 2)
    assert found is not None
    assert (found.pairs, found.axis) == (((1, 2),), 1)
    assert laterality_of([[1, 2]], tmp_path, (2, 0, 1), 2) is None  # sagittal slices
    assert laterality_of([], tmp_path, (0, 1, 2), 3) is None
    for off in ("off", False):  # YAML reads the word so
        assert laterality_of({"pairs": [[1, 2]], "mirrors": off}, tmp_path, (0, 1, 2), 3) == Laterality(
            ((1, 2),), 2, "off"
        )
    with pytest.raises(ConfigError, match="the trainer finds the axis itself"):
        laterality_of({"pairs": [[1, 2]], "axis": 1}, tmp_path, (0, 1, 2), 3)
    with pytest.raises(ConfigError, match="expected pairs, and perhaps axis and mirrors"):
        laterality_of({"pair": [[1, 2]]}, tmp_path, (0, 1, 2), 3)
    write("c", {"sitk_stuff": {"direction": tuple(np.eye(3)[[2, 1, 0]].flatten())}})
    with pytest.raises(ConfigError, match=r"axis 2 \(a\), axis 0 \(c\)"):
        left_right_of_dataset(tmp_path, (0, 1, 2))
    write("c", {})
    with pytest.raises(ConfigError, match=r"unknown \(c\)"):
        left_right_of_dataset(tmp_path, (0, 1, 2))


def test_the_trainer_gives_the_axis_to_both_policies(tiny: Any) -> None:
    trainer = joint(tiny, method_options={"laterality": [[1, 2]]})
    trainer.initialize()
    for policy in trainer.method.policies().values():
        assert (policy.laterality.pairs, policy.laterality.axis) == (((1, 2),), 2)
    assert trainer._course["method_options"]["laterality"] == [[1, 2]]


@pytest.mark.parametrize("mirrors", ["swap", "off"])
def test_labels_are_swapped_or_mirroring_is_left_out(tiny: Any, mirrors: str) -> None:
    """In training and at test time, where left and right are."""
    option: Any = [[1, 2]] if mirrors == "swap" else {"pairs": [[1, 2]], "mirrors": "off"}
    trainer = joint(tiny, method_options={"laterality": option}, iterations_per_epoch=2)
    trainer.run_training()
    assert trainer.method.updates == 2
    training, views = trainer.method.training, trainer.method.test_time
    for operations in ([o for c in training.cascades for o in c.operations], views.operations):
        turned = [o.name for o in operations if views.laterality.reverses(o)]
        assert bool(turned) == (mirrors == "swap"), turned


def test_labels_that_there_are_not_have_no_sides(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"laterality: there is no label 3, the largest is 2"):
        joint(tiny, method_options={"laterality": [[1, 3]]}).initialize()


@pytest.mark.parametrize("declared", [False, True])
def test_labels_that_look_lateral_are_warned_of(tiny: Any, declared: bool, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = joint(tiny, method_options={"laterality": [[1, 2]]} if declared else {})
    trainer.dataset_json["labels"] = {"background": 0, "left kidney": 1, "right kidney": 2}
    trainer.initialize()
    assert ("set method_options: {laterality: [[1, 2]]}" in capsys.readouterr().out) != declared
