# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Left and right in the MONAI host: labels by name, the axis of the volumes' orientation, and who is warned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import loader, trainer
from run_helpers import options

from monai_autoaug.data import DataList
from monai_autoaug.engines import building
from monai_autoaug.engines.building import Labels
from monai_autoaug.engines.rehearsal import rehearse
from monai_autoaug.engines.sides import find_sides, sides_warning
from monai_autoaug.errors import AutoAugWarning, ConfigError
from monai_autoaug.policies import Laterality, TestTimePolicy, TrainingPolicy

NAMES = ("background", "left lung", "right lung", "heart")


@pytest.mark.parametrize(("orientation", "axis"), [("RAS", 0), ("LPI", 0), ("ASR", 2), ("SLA", 1), ("PL", 1)])
def test_the_axis_is_that_of_the_orientation(orientation: str, axis: int) -> None:
    dims = len(orientation)
    assert find_sides([[1, 2]], orientation=orientation, spatial_dims=dims) == Laterality(((1, 2),), axis=axis)


def test_labels_go_by_name_or_value() -> None:
    here: dict[str, Any] = {"orientation": "RAS"}
    wanted = Laterality(((1, 2),))
    assert find_sides([["left lung", "right lung"]], NAMES, **here) == wanted
    assert find_sides([["left lung", 7]], NAMES, values=(0, 3, 7, 9), **here) == wanted
    assert find_sides([["left lung", "right lung"]], NAMES, regions=True, **here) == Laterality(((0, 1),))
    given = {"pairs": [[1, 2]], "mirrors": "off", "axis": 2}
    assert find_sides(given, NAMES) == Laterality(((1, 2),), axis=2, mirrors="off")
    assert find_sides({"pairs": [[1, 2]], "mirrors": False}, **here) == Laterality(((1, 2),), mirrors="off")  # YAML
    assert find_sides(wanted, NAMES) is wanted
    assert find_sides([[1, 2]], orientation="AS", spatial_dims=2) is None  # sagittal slices have no sides
    assert find_sides(None) is find_sides([]) is None


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ([[1, 2]], {}, "which axis of the patches runs between left and right"),
        ([["left", "right lung"]], {"orientation": "RAS"}, "there is no label 'left'; there are background, left lung"),
        ([[1, 2]], {"orientation": "RAS", "values": (0, 3, 7, 9)}, "there is no label 1; there are .*heart, 0, 3, 7"),
        ([[0, 1]], {"orientation": "RAS", "regions": True}, "there is no label 0; there are background"),
        ([[1, 2, 3]], {"orientation": "RAS"}, "pairs must be such as"),
        ({"mirrors": "off"}, {"orientation": "RAS"}, "pairs must be such as"),
        ({"pair": [[1, 2]]}, {"orientation": "RAS"}, "there are pairs, mirrors and axis, got pair"),
        ({"pairs": [[1, 2]], "mirrors": "of"}, {"orientation": "RAS"}, "mirrors must be 'swap' or 'off'"),
    ],
)
def test_what_cannot_be_is_refused(given: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_sides(given, NAMES, **more)


def test_names_that_look_lateral_are_warned_of_where_something_mirrors() -> None:
    blind = {"training": TrainingPolicy.preset("nnunet"), "test_time": TestTimePolicy.preset("nnunet")}
    told = sides_warning(blind, NAMES)
    assert told is not None
    assert "option laterality to [[left lung, right lung]]" in told
    assert sides_warning(blind, ("background", "left lung", "heart")) is None
    knowing = {"training": TrainingPolicy.preset("nnunet", laterality=[(1, 2)])}
    assert sides_warning(knowing, NAMES) is None
    assert sides_warning(knowing | {"test_time": blind["test_time"]}, NAMES) is not None
    upright = TrainingPolicy.preset("nnunet", without=["mirrorS"])  # along the first axis
    assert sides_warning({"training": upright}, NAMES, orientation="ASR") is not None
    assert sides_warning({"training": upright}, NAMES, orientation="RAS") is None
    assert sides_warning({}, NAMES) is None


FAST: dict[str, Any] = {"warm_up": 0, "update_every": 1, "meta_batch": 2, "views": 2, "pool": 2}


def joint(**changes: Any) -> Any:
    given: dict[str, Any] = {"patch_size": (12, 8, 10), "meta_data_loader": loader(batch_size=4), "num_classes": 3}
    more = FAST | changes.pop("method_options", {})
    return trainer("joint_policy", more, **(given | changes))


def test_an_engine_takes_names_and_orientation_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    """As a bundle gives them."""
    names = ("background", "left lung", "right lung")
    engine = joint(label_names=names, orientation="SRA", method_options={"laterality": [["left lung", "right lung"]]})
    for policy in engine.method.policies().values():
        assert policy.laterality == Laterality(((1, 2),), axis=1)
    assert engine.doubts == []
    with pytest.raises(ConfigError, match="which axis of the patches"):
        joint(label_names=names, method_options={"laterality": [[1, 2]]})
    blind = joint(label_names=names)
    with caplog.at_level(logging.WARNING):
        blind.run()
    assert sum("look like left and right" in r.getMessage() for r in caplog.records) == 1
    assert joint(label_names=("background", "a", "b")).doubts == []


def test_a_run_maps_label_values_and_is_warned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label files with values 0, 3 and 8: the pair is told by these, by name, and lies at channels 1 and 2."""
    data = DataList(Path("."), "decathlon", ("MRI",), {"background": 0, "kidney_l": 8, "kidney_r": 3})
    assert Labels.of_datalist(data) == Labels(("background", "kidney_r", "kidney_l"), (0, 3, 8), "RAS")
    given: dict[str, Any] = {"method": "joint_policy", "epochs": 20}
    seen: list[Any] = []
    plain = building.AutoAugTrainer
    monkeypatch.setattr(building, "AutoAugTrainer", lambda *a, **o: seen.append(o) or plain(*a, **o))
    with pytest.warns(AutoAugWarning, match=r"laterality to \[\[kidney_l, kidney_r\]\]"):
        rehearse(options(Path("nowhere"), Path("nowhere"), **given), data)
    for pairs in ([[8, 3]], [["kidney_l", "kidney_r"]]):
        known = given | {"method_options": {"laterality": pairs}}
        rehearse(options(Path("nowhere"), Path("nowhere"), **known), data)
        assert seen[-1]["method_options"]["laterality"] == Laterality(((2, 1),))
    with pytest.raises(ConfigError, match="there is no label 1"):
        rehearse(options(Path("nowhere"), Path("nowhere"), **given, method_options={"laterality": [[1, 2]]}), data)
