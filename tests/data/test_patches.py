# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A batch is a function of seed, rank, stream and number, and holds what the volumes hold."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose, Lambdad, RandGaussianNoised, Transform
from torch.utils.data import ConcatDataset, Subset

from monai_autoaug.data import Batch, PatchBatches, loader
from monai_autoaug.data.randomness import random_transforms
from monai_autoaug.errors import ConfigError, DataError

SIZE = (14, 12, 10)


def _items(count: int = 5, shape: tuple[int, ...] = SIZE, classes: int = 3) -> list[dict[str, Any]]:
    """Cases whose voxels tell where they come from: case + position / 10,000."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        position = torch.arange(int(np.prod(shape))).reshape(1, *shape) / 10_000
        label = torch.from_numpy(rng.integers(0, classes, (1, *shape)).astype(np.uint8))
        items.append({"image": position + i, "label": label, "case": f"case_{i}"})
    return items


def _batches(items: Any, **options: Any) -> PatchBatches:
    settings: dict[str, Any] = {"patch_size": (6, 6, 6), "batch_size": 4, "seed": 7, "num_classes": 3, "length": 50}
    return PatchBatches(items, **(settings | options))


def _equal(a: Batch, b: Batch) -> bool:
    tensors = ("image", "label", "valid", "classes", "spacing")
    pairs = [(getattr(a, n), getattr(b, n)) for n in tensors]
    return a.case == b.case and all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def test_same_batches_whatever_the_workers() -> None:
    batches = _batches(_items())
    expected = [batches[n] for n in range(8)]
    for workers in (0, 1, 2):
        drawn = list(loader(batches, stop=8, num_workers=workers))
        assert len(drawn) == 8
        assert all(_equal(a, b) for a, b in zip(expected, drawn, strict=True))
    resumed = list(loader(batches, start=5, stop=8, num_workers=2))
    assert all(_equal(a, b) for a, b in zip(expected[5:], resumed, strict=True))


@pytest.mark.long
def test_same_batches_from_spawned_workers() -> None:
    batches = _batches(_items())
    drawn = list(loader(batches, stop=4, num_workers=2, multiprocessing_context="spawn"))
    assert all(_equal(batches[n], b) for n, b in enumerate(drawn))


def test_streams_pickle() -> None:
    batches = _batches(_items())
    before = batches[3]  # finds the locations of some cases, which travel along
    assert _equal(pickle.loads(pickle.dumps(batches))[3], before)  # noqa: S301


@pytest.mark.parametrize("changed", [{"seed": 8}, {"rank": 1}, {"stream": "meta"}])
def test_seed_rank_and_stream_give_other_batches(changed: dict[str, Any]) -> None:
    first, second = _batches(_items()), _batches(_items(), **changed)
    assert not any(_equal(first[n], second[n]) for n in range(10))


def test_global_random_streams_are_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert len(list(loader(_batches(_items()), stop=3, num_workers=1))) == 3
    assert len(list(loader(_batches(_items()), stop=3))) == 3
    torch.testing.assert_close(torch.rand(3), expected[0], rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_patches_are_cut_where_the_label_is_cut() -> None:
    items = _items()
    for n in range(5):
        batch = _batches(items)[n]
        for image, label, name in zip(batch.image, batch.label, batch.case, strict=True):
            case = int(name[-1])
            index = ((image[0] - case) * 10_000).round().long()  # where each voxel comes from
            torch.testing.assert_close(label.argmax(0), items[case]["label"].flatten()[index].long())
            corner = np.unravel_index(int(index[0, 0, 0]), SIZE)
            window = tuple(slice(c, c + 6) for c in corner)
            torch.testing.assert_close(image, items[case]["image"][(slice(None), *window)])


def test_labels_are_one_hot_and_the_class_is_the_centre() -> None:
    batch = _batches(_items())[0]
    assert batch.label.dtype == torch.float32
    torch.testing.assert_close(batch.label.sum(1), torch.ones(4, 6, 6, 6))
    assert batch.valid is None
    torch.testing.assert_close(batch.classes, batch.label.argmax(1)[:, 3, 3, 3])


def test_forced_foreground_is_centred_and_classes_are_drawn_evenly() -> None:
    items = _items(classes=1)
    for item in items:  # class 1 is a single voxel, class 2 many
        item["label"][0, 6, 6, 5] = 1
        item["label"][0, 4:6, 4:6, 4:6] = 2
    batches = _batches(items, batch_size=6, foreground=1 / 3, length=300)
    forced = torch.stack([batches[n].classes for n in range(300)])
    assert torch.all(forced[:, 4:] > 0)  # the last third
    share = (forced[:, 4:] == 1).float().mean()
    assert abs(share - 0.5) < 4 * 0.5 / 600**0.5
    assert (forced[:, :4] > 0).float().mean() < 0.2


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 1 / 3), (2, 1 / 2), (4, 1 / 4), (9, 1 / 3)])
def test_share_of_forced_patches(batch_size: int, expected: float) -> None:
    items = _items(classes=1)
    for item in items:
        item["label"][0, 6, 6, 5] = 2
    batches = _batches(items, batch_size=batch_size, length=60, patch_size=(3, 3, 3))
    centred = torch.stack([batches[n].classes > 0 for n in range(60)]).float().mean()
    assert abs(float(centred) - expected) < 0.03  # a patch that lies anywhere seldom meets the one voxel


def test_patches_at_the_border_stay_in_the_volume() -> None:
    items = _items(1, classes=1)
    items[0]["label"][0, -1, -1, -1] = 1
    batch = _batches(items, foreground=1.0)[0]
    torch.testing.assert_close(batch.image, items[0]["image"][None, :, -6:, -6:, -6:].expand(4, -1, -1, -1, -1))


@pytest.mark.parametrize("regions", [None, [(1, 2), (2,)]])
def test_a_patch_is_of_the_class_that_it_was_cut_for(regions: Any) -> None:
    """Near the border that is not at its centre."""
    items = _items(1, classes=1)
    items[0]["label"][:] = 0
    items[0]["label"][0, 0, 0, 0] = 2
    stream = _batches(items, foreground=1.0, batch_size=1, regions=regions)
    for number in range(5):
        batch = stream[number]
        assert batch.label[0, -1, 0, 0, 0] == 1
        assert batch.label[0, -1, 3, 3, 3] == 0
        assert batch.classes.tolist() == [2]
    assert _batches(items, foreground=0.0, batch_size=1, regions=regions)[0].classes.tolist() == [0]


def test_volume_smaller_than_the_patch_continues_by_its_border() -> None:
    items = _items(1, shape=(4, 9, 5))
    items[0]["label"][:] = 2
    batch = _batches(items, patch_size=(7, 6, 8))[0]
    padding = ((0, 0), (1, 2), (0, 0), (1, 2))
    for image, label in zip(batch.image, batch.label, strict=True):
        corner = int((image[0, 1, 0, 1] * 10_000).round()) // 5 % 9
        cut = (slice(None), slice(None), slice(corner, corner + 6), slice(None))
        np.testing.assert_array_equal(image, np.pad(items[0]["image"][cut], padding, mode="edge"))
        np.testing.assert_array_equal(label.argmax(0), np.pad(items[0]["label"][cut], padding)[0])


def test_margin_adds_real_context() -> None:
    items = _items()
    plain, wide = _batches(items), _batches(items, margin=(2, 0, 1))
    for n in range(5):
        a, b = plain[n], wide[n]
        assert b.image.shape == (4, 1, 10, 6, 8)
        assert b.margin == (2, 0, 1)
        assert _equal(a, b.cropped())
    inner = _batches(_items(1, shape=(40, 40, 40)), patch_size=(4, 4, 4), margin=3, foreground=0.0, length=400)
    whole = next(b for b in (inner[n] for n in range(400)) if 200 < b.image[0].min() * 1e4 and b.image[0].max() < 6)
    assert len(whole.image[0].unique()) == 1000  # no voxel twice: nothing was padded


def test_regions() -> None:
    items = _items(classes=4)
    plain = _batches(items, num_classes=4)[0]
    regions = _batches(items, num_classes=4, regions=[(1, 2, 3), (3,)])[0]
    assert regions.label.shape[1] == 2
    # regions are drawn as classes, so compare the patches that lie anywhere
    for i in range(3):
        if torch.equal(plain.image[i], regions.image[i]):
            torch.testing.assert_close(regions.label[i, 0], plain.label[i, 1:].sum(0))
            torch.testing.assert_close(regions.label[i, 1], plain.label[i, 3])
    assert torch.equal(plain.image[0], regions.image[0])


def test_ignore_label() -> None:
    items = _items()
    for item in items:
        item["label"][..., 2:] = 3  # known in two slices of ten only
    batches = _batches(items, ignore_label=3, patch_size=(5, 5, 5))
    for n in range(10):
        batch = batches[n]
        index = [((im[0] - int(c[-1])) * 1e4).round().long() for im, c in zip(batch.image, batch.case, strict=True)]
        raw = torch.stack([items[int(c[-1])]["label"].flatten()[i] for i, c in zip(index, batch.case, strict=True)])
        torch.testing.assert_close(batch.valid[:, 0], (raw != 3).float())
        assert torch.all(batch.label[:, 0][raw == 3] == 1)
        assert torch.all(batch.valid.flatten(1).sum(1) > 0)  # also the patches that lie anywhere hold known voxels


def test_cases_without_replacement() -> None:
    batches = _batches(_items(5), batch_size=2, replacement=False)
    drawn = [c for n in range(25) for c in batches[n].case]
    assert all(Counter(drawn[i : i + 5]).most_common(1)[0][1] == 1 for i in range(0, 50, 5))
    assert drawn[:5] != drawn[5:10]
    random = [c for n in range(25) for c in _batches(_items(5), batch_size=2)[n].case]
    assert any(Counter(random[i : i + 5]).most_common(1)[0][1] > 1 for i in range(0, 50, 5))


def test_cases_are_drawn_evenly() -> None:
    batches = _batches(_items(5), length=250)
    counts = Counter(c for n in range(250) for c in batches[n].case)
    assert sum((v - 200) ** 2 / 200 for v in counts.values()) < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_two_dimensions() -> None:
    batch = _batches(_items(shape=(20, 18)), patch_size=(8, 24), margin=1)[2]
    assert batch.image.shape == (4, 1, 10, 26)
    assert batch.label.shape == (4, 3, 10, 26)
    assert batch.spacing.shape == (4, 2)
    assert batch.cropped().image.shape == (4, 1, 8, 24)


def test_spacing_of_metatensors() -> None:
    items = _items(1)
    items[0]["image"] = MetaTensor(items[0]["image"], affine=torch.diag(torch.tensor([2.0, 0.5, 3.0, 1.0])))
    batch = _batches(items)[0]
    assert type(batch.image) is torch.Tensor
    torch.testing.assert_close(batch.spacing, torch.tensor([[2.0, 0.5, 3.0]]).expand(4, 3))


@pytest.mark.parametrize("kind", ["dataset", "cache", "persistent"])
def test_random_monai_transforms_are_reseeded(kind: str, tmp_path: Any) -> None:
    transform = Compose([Lambdad("image", _double), RandGaussianNoised("image", prob=1.0, std=0.1)])
    items: Any
    if kind == "dataset":
        items = Dataset(_items(), transform)
    elif kind == "cache":
        items = CacheDataset(_items(), transform, progress=False)
    else:
        items = PersistentDataset(_items(), transform, cache_dir=tmp_path)
    batches = _batches(items)
    expected = [batches[n] for n in range(4)]
    assert not torch.equal(expected[0].image[0] * 1e4, (expected[0].image[0] * 1e4).round())
    for workers in (0, 2):
        assert all(_equal(a, b) for a, b in zip(expected, loader(batches, stop=4, num_workers=workers), strict=True))


class Within(Transform):
    """A transform that is not random itself, but holds one that is."""

    def __init__(self) -> None:
        self.noise = RandGaussianNoised("image", prob=1.0, std=0.1)

    def __call__(self, data: Any) -> Any:
        return self.noise(data)


@pytest.mark.parametrize("transform", ["plain", "nested", "within"])
@pytest.mark.parametrize("wrapped", ["subset", "subset_of_subset", "concatenated", "list_dataset"])
def test_random_transforms_in_wrapped_data_sets_are_reseeded(wrapped: str, transform: str) -> None:
    """The same batch whatever was drawn before, in whichever process; and the noise of two batches differs."""
    noise = RandGaussianNoised("image", prob=1.0, std=0.1)
    inner: Any = {"plain": noise, "nested": Compose([Compose([Lambdad("image", _double), noise])]), "within": Within()}
    dataset = Dataset(_items(4, classes=1), inner[transform])
    items: Any = {
        "subset": lambda: Subset(dataset, [0, 2]),
        "subset_of_subset": lambda: Subset(Subset(dataset, [0, 2, 3]), [1]),
        "concatenated": lambda: ConcatDataset([Dataset(_items(2)), Subset(dataset, [1, 2])]),
        "list_dataset": lambda: dataset,
    }[wrapped]()
    batches = _batches(items)
    expected = [batches[n] for n in range(4)]
    assert all(_equal(batches[n], expected[n]) for n in (3, 0, 2, 1))
    for workers in (0, 2):
        assert all(_equal(a, b) for a, b in zip(expected, loader(batches, stop=4, num_workers=workers), strict=True))
    seeds = {int(t.R.get_state()[1][0]) for t in random_transforms(items)}
    batches[1]
    assert not seeds & {int(t.R.get_state()[1][0]) for t in random_transforms(items)}


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_misfits_are_named() -> None:
    items = _items(1)
    items[0]["label"] = items[0]["label"][:, 1:]
    with pytest.raises(DataError, match="case_0: does not fit the patches"):
        _batches(items)[0]
    items = _items(1)
    items[0]["label"][:] = 5
    with pytest.raises(DataError, match=r"case_0: holds an undeclared label.*\[5\]"):
        _batches(items)[0]
    with pytest.raises(IndexError, match="batch 50 of a stream of 50"):
        _batches(_items())[50]


@pytest.mark.parametrize(
    "options",
    [{"patch_size": (4,)}, {"patch_size": (4, 0, 4)}, {"margin": (1, 1)}, {"margin": -1}, {"batch_size": 0},
     {"num_classes": 1}, {"foreground": 1.5}, {"regions": [(1, 3)]}, {"ignore_label": 2}, {"seed": -1}],
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        _batches(_items(), **options)


def test_no_cases_and_loader_options() -> None:
    with pytest.raises(ConfigError, match="has no cases"):
        _batches([])
    with pytest.raises(ConfigError, match="batches 60 to 50"):
        loader(_batches(_items()), start=60)
    with pytest.raises(ConfigError, match="shuffle"):
        loader(_batches(_items()), shuffle=True)


def test_labels_as_values_become_the_channels() -> None:
    values, channels = _batches(_items(), values=True)[5], _batches(_items())[5]
    assert values.heads == channels.label.shape[1]
    assert values.label.shape == (*values.image.shape[:1], 1, *values.image.shape[2:])
    assert torch.equal(values.with_channels().label, channels.label)
    assert torch.equal(values.cropped().with_channels().label, channels.cropped().label)
    assert channels.with_channels() is channels
    assert _batches(_items(), values=True, regions=[[1], [1, 2]])[0].heads == 0  # what overlaps has no values
