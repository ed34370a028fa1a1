# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Three layouts are told apart and read, splits are reproducible, and what can't be meant is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_autoaug.data import Case, DataList, read_datalist, read_images, split, write_phantom
from monai_autoaug.errors import ConfigError, DataError


def _volume(path: Path, values: object = 0, shape: tuple[int, ...] = (4, 5, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros(shape, np.uint8)
    data.flat[: np.size(values)] = values
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


def _rewrite(folder: Path, **changes: object) -> Path:
    content = json.loads((folder / "dataset.json").read_text())
    content.update(changes)
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("layout", ["decathlon", "nnunet", "folders"])
def test_layouts_are_recognised(tmp_path: Path, layout: str, channels: int) -> None:
    data = read_datalist(write_phantom(tmp_path, cases=3, size=16, layout=layout, channels=channels, test=1))
    assert data.layout == layout
    assert len(data.channels) == channels
    assert data.label_values == (0, 1, 2, 3)
    assert data.num_outputs == 4
    assert [c.name for c in data.training] == ["phantom_000", "phantom_001", "phantom_002"]
    assert [c.name for c in data.test] == ["phantom_003"]
    assert data.test[0].label is None
    for case in data.training:
        files = 1 if layout == "decathlon" else channels
        assert len(case.images) == files
        assert all(f.is_file() for f in (*case.images, case.label))
        loaded = [nib.load(f).shape for f in case.images]
        assert all(s[:3] == nib.load(case.label).shape for s in loaded)
        assert sum(s[3] if len(s) == 4 else 1 for s in loaded) == channels


def test_real_decathlon(hippocampus: Path) -> None:
    data = read_datalist(hippocampus)
    listed = json.loads((hippocampus / "dataset.json").read_text())
    assert data.layout == "decathlon"
    assert data.channels == ("MRI",)
    assert data.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert len(data.training) == len(listed["training"]) > 100
    assert read_datalist(hippocampus / "dataset.json") == data


def test_to_monai_is_a_monai_data_list(tmp_path: Path) -> None:
    one = read_datalist(write_phantom(tmp_path / "one", cases=1, size=16))
    two = read_datalist(write_phantom(tmp_path / "two", cases=1, size=16, layout="nnunet", channels=2))
    row = one.to_monai()[0]
    assert row == {"image": str(one.training[0].images[0]), "label": str(one.training[0].label), "case": "phantom_000"}
    assert two.to_monai()[0]["image"] == [str(f) for f in two.training[0].images]
    assert "label" not in one.to_monai([Case("x", (Path("x.nii"),))])[0]


def test_nnunet_regions_and_ignore_mean_what_nnunet_means(tmp_path: Path) -> None:
    labels = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling")
    folder = write_phantom(tmp_path, cases=2, size=16, layout="nnunet", regions=True, ignore=True)
    content = json.loads((folder / "dataset.json").read_text())
    theirs = labels.LabelManager(content["labels"], content["regions_class_order"])
    data = read_datalist(folder)
    assert data.has_regions == theirs.has_regions
    assert data.ignore_label == theirs.ignore_label == 4
    assert data.label_values == tuple(theirs.all_labels)
    assert data.num_outputs == theirs.num_segmentation_heads == 3
    # nnU-Net keeps [1] as (1,): the same set of values
    assert [set(np.atleast_1d(r)) for r in theirs.all_regions] == [set(r) for r in data.regions]
    assert data.regions_class_order == tuple(theirs.regions_class_order)


def test_nnunet_explicit_file_table(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, cases=2, size=16, layout="nnunet", channels=2)
    (folder / "elsewhere").mkdir()
    shutil.move(folder / "labelsTr" / "phantom_001.nii.gz", folder / "elsewhere" / "b.nii.gz")
    images = ["imagesTr/phantom_001_0000.nii.gz", "imagesTr/phantom_001_0001.nii.gz"]
    data = read_datalist(_rewrite(folder, dataset={"b": {"images": images, "label": "elsewhere/b.nii.gz"}}))
    assert [c.name for c in data.training] == ["b"]
    assert data.training[0].images == tuple(folder / f for f in images)


def test_first_nnunet_form_of_the_decathlon_json(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, cases=1, size=16, channels=2)
    shutil.rmtree(folder / "imagesTr")
    for c in range(2):
        _volume(folder / "imagesTr" / f"phantom_000_{c:04d}.nii.gz")
    assert [f.name for f in read_datalist(folder).training[0].images] == [
        "phantom_000_0000.nii.gz",
        "phantom_000_0001.nii.gz",
    ]


@pytest.mark.parametrize(
    ("folders", "pairs"),
    [
        (("images", "labels"), [("a", "a"), ("b", "b")]),
        (("img", "seg"), [("img_1", "seg_1"), ("img_2", "seg_2")]),
        (("Images", "Masks"), [("007-image", "007-mask"), ("008-image", "008-mask")]),
        (("imagesTr", "labelsTr"), [("p_1_scan", "p_1_segmentation"), ("p_11_scan", "p_11_segmentation")]),
        (("images", "labels"), [("x_0000", "x"), ("y_0000", "y")]),
        (("images", "labels"), [("x_0000", "x_0000"), ("x_0001", "x_0001")]),
    ],
)
def test_pairs_of_folders(tmp_path: Path, folders: tuple[str, str], pairs: list[tuple[str, str]]) -> None:
    for image, label in pairs:
        _volume(tmp_path / folders[0] / f"{image}.nii.gz")
        _volume(tmp_path / folders[1] / f"{label}.nii", [0, 5, 17])
    (tmp_path / folders[0] / "._a.nii.gz").write_bytes(b"macOS writes such files")
    data = read_datalist(tmp_path)
    assert data.layout == "folders"
    assert data.labels == {"background": 0, "label_5": 5, "label_17": 17}
    assert sorted((c.images[0].name[:-7], c.label.name[:-4]) for c in data.training) == sorted(pairs)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (["a", "b"], ["a"], "without a partner: b"),
        (["a"], ["a", "c"], "without a partner: c"),
        (["img_1", "scan_1"], ["seg_1", "mask_1"], "several with the same name"),
        ([], ["a"], "0 images, 1 labels"),
        (["case_1"], ["case_01"], "without a partner"),
    ],
)
def test_pairs_that_need_guessing_are_refused(
    tmp_path: Path, images: list[str], labels: list[str], says: str
) -> None:
    for place, names in (("images", images), ("labels", labels)):
        (tmp_path / place).mkdir()
        for name in names:
            _volume(tmp_path / place / f"{name}.nii.gz")
    with pytest.raises(DataError, match=says) as caught:
        read_datalist(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty folder"):
        read_datalist(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_datalist(tmp_path / "nowhere")
    for name in ("images", "scans", "labels"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"which folder holds the images .* \['images', 'scans'\]"):
        read_datalist(tmp_path)


@pytest.mark.parametrize(
    ("layout", "changes", "says"),
    [
        ("decathlon", {"training": None}, "neither a Decathlon nor an nnU-Net"),
        ("decathlon", {"training": []}, "lists no training case"),
        ("decathlon", {"training": [{"image": "a.nii"}]}, "without image and label"),
        ("decathlon", {"labels": {"1": "organ"}}, "declares no background"),
        ("decathlon", {"labels": {"0": "background", "x": "organ"}}, "unusable value"),
        ("decathlon", {"labels": {"0": "background", "-1": "organ"}}, "unusable value"),
        ("decathlon", {"modality": {"1": "CT"}}, "without gaps"),
        ("nnunet", {"file_ending": ".nrrd"}, "not NIfTI"),
        ("nnunet", {"labels": {"background": 0, "a": 1, "b": 1}}, "the same value"),
        ("nnunet", {"labels": {"background": 0, "a": 1, "ignore": 7}}, "ignore label"),
        ("nnunet", {"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order"),
        ("nnunet", {"channel_names": {"0": "A", "2": "B"}}, "without gaps"),
    ],
)
def test_contradictory_json_is_refused(tmp_path: Path, layout: str, changes: dict[str, object], says: str) -> None:
    folder = write_phantom(tmp_path, cases=1, size=16, layout=layout)
    with pytest.raises(DataError, match=says):
        read_datalist(_rewrite(folder, **changes))


def test_broken_json_and_missing_labels(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, cases=2, size=16, layout="nnunet")
    (folder / "labelsTr" / "phantom_001.nii.gz").unlink()
    with pytest.raises(DataError, match="1 alone: phantom_001"):
        read_datalist(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="can't be read as JSON"):
        read_datalist(folder)


def test_missing_channel_files_are_listed_so_that_the_audit_names_them(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, cases=2, size=16, layout="nnunet", channels=2)
    (folder / "imagesTr" / "phantom_001_0001.nii.gz").unlink()
    assert not read_datalist(folder).training[1].images[1].exists()


def test_read_images(tmp_path: Path) -> None:
    for name in ("b_0000", "b_0001", "a_0000", "a_0001"):
        _volume(tmp_path / f"{name}.nii.gz")
    assert [(c.name, len(c.images)) for c in read_images(tmp_path)] == [("a", 2), ("b", 2)]
    assert len(read_images(tmp_path, channels=2)) == 2
    assert len(read_images(tmp_path, channels=1)) == 4
    assert read_images(tmp_path / "a_0000.nii.gz") == (Case("a_0000", (tmp_path / "a_0000.nii.gz",)),)
    with pytest.raises(DataError, match="expected 3 files"):
        read_images(tmp_path, channels=3)
    (tmp_path / "b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="b: has another number of channels"):
        read_images(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_images(tmp_path / "c.nii.gz")
    with pytest.raises(DataError, match="neither a folder nor a NIfTI file"):
        read_images(tmp_path / "c.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no NIfTI file"):
        read_images(tmp_path / "empty")


def test_same_name_twice_is_refused(tmp_path: Path) -> None:
    _volume(tmp_path / "a.nii")
    _volume(tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="two files of the same name"):
        read_images(tmp_path)


class TestSplit:
    cases = tuple(Case(f"case_{i:03d}", (Path(f"{i}.nii"),)) for i in range(50))

    def test_disjoint_and_complete(self) -> None:
        parts = split(self.cases, seed=1, validation=0.2, meta=0.25)
        assert [len(p) for p in parts] == [30, 10, 10]
        assert sorted(c.name for part in parts for c in part) == [c.name for c in self.cases]

    def test_independent_of_order_and_dependent_on_seed(self) -> None:
        rng = np.random.default_rng(0)
        shuffled = [self.cases[i] for i in rng.permutation(50)]
        assert split(shuffled, seed=1, validation=10) == split(self.cases, seed=1, validation=10)
        assert split(self.cases, seed=2, validation=10) != split(self.cases, seed=1, validation=10)

    def test_pinned(self) -> None:
        # a split must never change between versions: results would no longer be comparable
        assert [c.name for c in split(self.cases, seed=0, validation=3).validation] == PINNED

    def test_fewer_training_cases_are_nested_and_share_validation(self) -> None:
        few, many = (split(self.cases, seed=3, validation=10, train=n) for n in (8, 32))
        assert few.validation == many.validation
        assert few.train == many.train[:8]

    def test_meta_is_carved_out_of_the_training_cases(self) -> None:
        parts = split(self.cases, seed=3, validation=10, train=20, meta=0.2)
        assert len(parts.train) + len(parts.meta) == 20
        assert len(parts.meta) == 4
        without = split(self.cases, seed=3, validation=10, train=20)
        assert {c.name for c in parts.meta} <= {c.name for c in without.train}

    @pytest.mark.parametrize(
        "options",
        [{"validation": 50}, {"validation": 10, "train": 41}, {"validation": 1.0}, {"validation": -1},
         {"validation": 10, "meta": 40}, {"validation": 0, "train": 0}],
    )
    def test_impossible_numbers(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigError):
            split(self.cases, seed=0, **options)

    def test_duplicate_names(self) -> None:
        with pytest.raises(DataError, match="not unique"):
            split([*self.cases, self.cases[0]], seed=0, validation=1)


def test_a_list_of_images_has_no_labels() -> None:
    data = DataList.of_images([Case("a", (Path("a.nii"),))], channels=("CT",))
    assert data.training == ()
    assert data.test[0].name == "a"
    assert data.foreground == {}


# printf "0:case_NNN" | sha256sum, sorted
PINNED = ["case_012", "case_011", "case_026"]
