# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies exported to batchgeneratorsv2 and TorchIO, run by these on real patches."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from export_helpers import (
    ALL,
    CLASSES,
    at_the_middle,
    check_frequencies,
    difference,
    expected,
    mixed_policy,
    module,
    real_patch,
    tables,
)
from torch import Tensor, nn

from monai_autoaug.policies import Policies, TestTimePolicy, TrainingPolicy
from monai_autoaug.policies.export import export
from monai_autoaug.policies.export.plan import Exported, Plan, deed
from monai_autoaug.policies.export.python_file import to_batchgeneratorsv2, to_torchio
from monai_autoaug.transforms import Cascade, Operation, apply, operations_at_test_time, training_cascades

Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def patch(hippocampus: Path) -> Pair:
    return real_patch(hippocampus)


def by_batchgenerators(loaded: ModuleType, pair: Pair, **options: Any) -> tuple[Pair, Any]:
    transform = loaded.build(options.pop("patch_size", pair[0].shape[1:]), **options)
    done = transform(image=pair[0].clone(), segmentation=pair[1].short())
    return (done["image"], done["segmentation"].float()), transform


def by_torchio(loaded: ModuleType, pair: Pair, **options: Any) -> tuple[Pair, Any]:
    """In an orientation and with a spacing that no angle may depend on."""
    transform, affine = loaded.build(**options), np.diag([-2.0, 1.0, 3.0, 1.0])
    done = transform(tio.Subject(a=tio.ScalarImage(tensor=pair[0], affine=affine),
                                 b=tio.LabelMap(tensor=pair[1].short(), affine=affine)))  # fmt: skip
    np.testing.assert_array_equal(done.a.affine, affine)
    assert done.b.data.dtype == torch.int16
    return (done.a.data, done.b.data.float()), transform


LIBRARIES: dict[str, tuple[Callable[[Plan], Exported], Callable[..., tuple[Pair, Any]]]] = {
    "batchgeneratorsv2": (to_batchgeneratorsv2, by_batchgenerators),
    "torchio": (to_torchio, by_torchio),
}


@pytest.fixture(scope="module", params=list(LIBRARIES))
def fixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """All operations with fixed amounts, and the file with all of them."""
    operations, found = at_the_middle(ALL)
    text = LIBRARIES[request.param][0](found).text
    return request.param, operations, module(text, tmp_path_factory.mktemp("fixed"), f"fixed_{request.param}")


def alone(fixed: tuple[str, Any, Any], names: list[str], patch: Pair, *, sign: int = 0, size: Any = None) -> Pair:
    """Some operations of the file, one of each cascade; with their opposites, or without."""
    library, _, loaded = fixed
    rows = {name: loaded.OPERATIONS[name] for name in names}
    if sign:
        rows = {name: (*row[:4], "none", row[5]) for name, row in rows.items()}
    table = loaded.Table(("all",), {name: {name: (1.0,)} for name in names}, rows)

    class Loaded:
        @staticmethod
        def build(*arguments: Any) -> Any:
            return loaded.LearnedPolicy(table, *arguments)

    options = {"patch_size": size} if size else {}
    done, transform = LIBRARIES[library][1](Loaded, patch, **options)
    assert list(transform.drawn) == names
    return done


@pytest.mark.parametrize("name", [o.name for o in ALL if o.cascade_index is not None or o.name == "gibbs_0.6_0.8"])
def test_a_fixed_amount_gives_the_voxels_of_this_package(name: str, fixed: tuple[str, Any, Any], patch: Pair) -> None:
    """To 5e-5 standard deviations; in TorchIO but for where the outside begins, and the label by its nearest voxel."""
    operation = fixed[1][name]
    image, label = alone(fixed, [name], patch)
    what = deed(operation).what
    if what == "noise":
        assert abs(float((image - patch[0]).std()) / operation.low - 1) < 0.02
        return
    wanted = min(expected(operation, *patch), key=lambda w: difference(image, w[0], 8))
    far = 8 if fixed[0] == "torchio" and what in ("rotate", "turn", "scale") else 0
    tolerance = 2e-4 if "gamma" in name else 5e-5  # its darkest voxel has a floor of 1e-7 here, before the power
    assert difference(image, wanted[0], far) < tolerance
    assert float((image - wanted[0]).abs().gt(tolerance).float().mean()) < (0.1 if far else 1e-9)
    assert float((label != wanted[1]).float().mean()) < 0.02  # ties, and in TorchIO the nearest voxel
    assert difference(wanted[0], patch[0]) > 0.05


def test_several_rotations_and_a_zoom_are_one_resampling_in_the_right_order(
    fixed: tuple[str, Any, Any], patch: Pair
) -> None:
    """A cube, on which this package makes quarter turns by exchanging axes, after rotations and the zoom."""
    cube = (patch[0][:, 2:32, 3:33, :30].contiguous(), patch[1][:, 2:32, 3:33, :30].contiguous())
    names = ["rotate_dh_90", "flip_w", "scale_1.10_1.20", "rotate_hw_10_20", "rotate_dw_20_30"]
    image, _ = alone(fixed, names, cube, sign=1)
    cascades = [c for c in training_cascades() if c.name in ("scale", "rotF", "rotS", "rotL", "mirrorA")]
    chosen = torch.tensor([[next((k for k, o in enumerate(c.operations) if o.name in names), 0) for c in cascades]])
    ones = torch.ones(1, 1, 30, 30, 30)
    wanted, inside = apply(cube[0][None], ones, chosen, cascades, quantile=0.5, sign=1, outside=(0.0,))
    assert inside is not None
    known = inside[0] > 0.999 if fixed[0] == "torchio" else torch.ones_like(inside[0]).bool()
    assert int(known.sum()) > 10_000
    assert float((image - wanted[0])[known].abs().max()) < 5e-5


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("value", "name"), [(0, "background"), (2, "foreground")])
def test_every_class_gets_its_own_probabilities(
    value: int, name: str, library: str, patch: Pair, tmp_path: Path
) -> None:
    """300 patches of one class of the centre, read from the label."""
    policy = mixed_policy()
    loaded = module(export(Policies(policy), library).text, tmp_path, f"classes_{library}_{name}")
    image, label = (x[:, 10:22, 12:24, 9:21].clone() for x in patch)
    label[0, 6, 6, 6] = value
    counts: dict[str, Counter[str]] = {c.name: Counter() for c in policy.cascades}
    for _ in range(300):
        _, transform = LIBRARIES[library][1](loaded, (image, label))
        for cascade, operation in transform.drawn.items():
            counts[cascade][operation] += 1
    wanted = tables(policy, name)
    for cascade, found in counts.items():
        check_frequencies(found, wanted[cascade], f"{library}, {name}, {cascade}")


@pytest.mark.parametrize("library", LIBRARIES)
def test_data_without_a_label_needs_the_name_of_a_class(library: str, tmp_path: Path) -> None:
    policy = mixed_policy()
    loaded = module(export(Policies(policy), library).text, tmp_path, f"unlabelled_{library}")
    image = torch.rand(1, 6, 6, 6)
    named = ((6, 6, 6),) if library == "batchgeneratorsv2" else ()

    def call(**options: Any) -> Any:
        transform = loaded.build(*named, **options)
        return transform(image=image.clone()) if named else transform(tio.Subject(a=tio.ScalarImage(tensor=image)))

    with pytest.raises(ValueError, match="only="):
        call()
    call(only=CLASSES[1])
    with pytest.raises(ValueError, match="is not in list"):
        call(only="kidney")


@pytest.mark.parametrize("library", LIBRARIES)
def test_labels_beyond_the_classes_are_refused(library: str, tmp_path: Path) -> None:
    policy = TrainingPolicy.preset("nnunet", ("background", "left", "right"))
    loaded = module(export(Policies(policy), library).text, tmp_path, f"beyond_{library}")
    with pytest.raises(ValueError, match="none for label 3"):
        LIBRARIES[library][1](loaded, (torch.rand(1, 6, 6, 6), torch.full((1, 6, 6, 6), 3.0)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_mirroring_exchanges_the_labels_of_a_pair(library: str, patch: Pair, tmp_path: Path) -> None:
    policy = mixed_policy(laterality=[(1, 2)])
    exported = export(Policies(policy), library)
    loaded = module(exported.text, tmp_path, f"sides_{library}")
    pair = (patch[0], patch[1])
    seen = set()
    for _ in range(12):
        (_, label), transform = LIBRARIES[library][1](loaded, pair, only="foreground")
        drawn = transform.drawn
        if drawn["rotS"] == drawn["rotF"] == "identity":
            wanted = patch[1] if drawn["mirrorS"] == "identity" else torch.tensor([0.0, 2, 1])[patch[1].flip(1).long()]
            assert torch.equal(label, wanted)
            seen.add(drawn["mirrorS"])
    assert "flip_d" in seen


def test_larger_patches_come_in_so_that_nothing_does_from_outside(fixed: tuple[str, Any, Any], patch: Pair) -> None:
    """Of batchgenerators, as nnU-Net cuts them; this package's margin does the same."""
    library, operations, _ = fixed
    if library == "torchio":
        return
    name, size = "rotate_hw_10_20", (21, 24, 18)
    image, label = alone(fixed, [name], patch, sign=1, size=size)
    assert tuple(image.shape[1:]) == tuple(label.shape[1:]) == size
    cascade = [Cascade("one", (Operation("identity"), operations[name]))]
    wanted, _ = apply(patch[0][None], None, torch.tensor([[1]]), cascade, quantile=0.0, sign=1, margin=(6, 6, 6))
    assert difference(image, wanted[0]) < 5e-5


@pytest.mark.parametrize("cascade", ["elastic", "bias_field", "channel_scale"])
def test_what_draws_fields_and_factors_is_as_large_as_here(
    cascade: str, fixed: tuple[str, Any, Any], patch: Pair
) -> None:
    operation = next(o for o in fixed[1].values() if o.cascade == cascade and o.index == 2)

    def change(image: Tensor) -> float:
        return float((image - patch[0])[:, 4:-4, 4:-4, 4:-4].std())

    theirs = [change(alone(fixed, [operation.name], patch)[0]) for _ in range(6)]
    ours = [change(expected(operation, *patch)[k][0]) for _ in range(3) for k in (0, 1)]
    assert 0.5 < sum(theirs) / sum(ours) < 2
    told = export(Policies(TrainingPolicy.preset("nnunet", extra=[cascade])), fixed[0]).limits
    assert any("elastic" in limit for limit in told) == (cascade == "elastic")


@pytest.mark.parametrize("level", ["volume", "patch"])
def test_the_average_of_all_views_is_that_of_this_package(level: str, patch: Pair, tmp_path: Path) -> None:
    """With room for all of a rotated volume, noise of the same seeds, and sides that change places."""
    rows = [o for o in operations_at_test_time() if level == "volume" or o.acts != "permutation" or not o.turns]
    torch.manual_seed(2)
    policy = TestTimePolicy(rows, torch.randn(len(rows)), level=level, average="probabilities",  # type: ignore[arg-type]
                            laterality=[(1, 2)], z=len(rows) - 4 if level == "volume" else len(rows))  # fmt: skip
    loaded = module(export(Policies(test_time=policy), "torchio").text, tmp_path, f"views_{level}")
    network = nn.Conv3d(1, 3, 3, padding=1).eval()
    image = patch[0][None, :, :20, :22, :18]
    with torch.no_grad():
        wanted = policy.apply(network, image)
    assert torch.allclose(loaded.VIEWS.predict(network, image), wanted, atol=2e-5)
    # both files have the same views
    other = export(Policies(test_time=policy), "batchgeneratorsv2").text
    assert other.split("VIEWS = ")[1] == (tmp_path / f"views_{level}.py").read_text().split("VIEWS = ")[1]


def test_what_only_enlarging_views_have_not_seen_is_predicted_as_it_is(tmp_path: Path) -> None:
    views = [o for o in operations_at_test_time() if o.name in ("scale_0.8", "scale_0.69")]
    policy = TestTimePolicy(views, z=2, level="patch")
    loaded = module(export(Policies(test_time=policy), "torchio").text, tmp_path, "blind")
    image = torch.rand(1, 1, 12, 12, 12)
    network = nn.Conv3d(1, 2, 3, padding=1)
    with torch.no_grad():
        assert torch.allclose(loaded.VIEWS.predict(network, image), policy.apply(network, image), atol=1e-5)


def test_slices_in_batchgenerators(tmp_path: Path) -> None:
    policy = TrainingPolicy.preset("uniform", ("all",), spatial_dims=2)
    loaded = module(export(Policies(policy), "batchgeneratorsv2").text, tmp_path, "slices")
    transform = loaded.build((16, 16))
    for _ in range(10):
        done = transform(image=torch.rand(1, 20, 20), segmentation=torch.ones(1, 20, 20).short())
        assert tuple(done["image"].shape) == tuple(done["segmentation"].shape) == (1, 16, 16)
        assert bool(done["image"].isfinite().all())


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_file_imports_its_library_torch_and_numpy_alone(library: str) -> None:
    """And no name of it is defined elsewhere, or the tests above would have failed."""
    both = Policies(TrainingPolicy.preset("uniform"), TestTimePolicy.preset("uniform"))
    imported = set()
    for node in ast.walk(ast.parse(export(both, library).text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {library, "torch", "numpy"}
