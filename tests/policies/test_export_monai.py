# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies exported to MONAI, run by MONAI on real patches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from export_helpers import (
    ALL,
    CLASSES,
    at_the_middle,
    check_frequencies,
    difference,
    expected,
    mixed_policy,
    real_patch,
    tables,
)
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from torch import Tensor, nn

from monai_autoaug.policies import Policies, TestTimePolicy, TrainingPolicy
from monai_autoaug.policies.export import export
from monai_autoaug.policies.export.monai_config import to_monai
from monai_autoaug.policies.export.monai_views import view_transform, way_back
from monai_autoaug.policies.export.plan import deed
from monai_autoaug.transforms import Operation, operations_at_test_time, training_cascades
from monai_autoaug.transforms.views import apply_view, revert_view

Pair = tuple[Tensor, Tensor]
# MONAI has no counterpart of these, and the file says so
APPROXIMATED = {"elastic", "bias_field", "gibbs", "channel_scale"}


def parser(text: str, folder: Path) -> ConfigParser:
    file = folder / "policy.yaml"
    file.write_text(text)
    return ConfigParser(ConfigParser.load_config_file(str(file)))


@pytest.fixture(scope="module")
def patch(hippocampus: Path) -> Pair:
    return real_patch(hippocampus)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Operation], dict[str, Any]]:
    """All operations with fixed amounts, and their transforms, by name."""
    operations, found = at_the_middle(ALL)
    config = parser(to_monai(found).text, tmp_path_factory.mktemp("fixed"))
    (one_of,) = config.get_parsed_content("policies::0").transforms
    return operations, dict(zip(operations, one_of.transforms, strict=True))


def run(fixed: tuple[dict[str, Operation], dict[str, Any]], name: str, patch: Pair) -> Pair:
    """One operation of a pipeline."""
    done = fixed[1][name]({"image": patch[0], "label": patch[1]})
    assert set(done) == {"image", "label"}
    return torch.as_tensor(done["image"]), torch.as_tensor(done["label"])


@pytest.mark.parametrize("name", [o.name for o in ALL if o.cascade not in APPROXIMATED])
def test_a_fixed_amount_gives_the_voxels_of_this_package(name: str, fixed: Any, patch: Pair) -> None:
    """To 5e-5 standard deviations, corners included; before gamma's power the darkest voxel has a floor here, 1e-7."""
    operation = fixed[0][name]
    image, label = run(fixed, name, patch)
    if deed(operation).what == "noise":
        assert abs(float((image - patch[0]).std()) / operation.low - 1) < 0.02
        return
    wanted = min(expected(operation, *patch), key=lambda w: difference(image, w[0], 8))
    assert difference(image, wanted[0]) < (2e-4 if "gamma" in name else 5e-5)
    assert float((label != wanted[1]).float().mean()) < 0.02  # the nearest voxel in place of one-hot and linear
    assert difference(wanted[0], patch[0]) > 0.05  # it does something


@pytest.mark.parametrize("cascade", sorted(APPROXIMATED))
def test_what_is_approximated_runs_and_is_about_as_large(cascade: str, fixed: Any, patch: Pair) -> None:
    operation = next(o for o in fixed[0].values() if o.cascade == cascade and o.index == 2)
    torch.manual_seed(1)

    def change(image: Tensor) -> float:
        return float((image - patch[0])[:, 4:-4, 4:-4, 4:-4].std())

    theirs = [change(run(fixed, operation.name, patch)[0]) for _ in range(6)]
    ours = [change(expected(operation, *patch)[k][0]) for _ in range(3) for k in (0, 1)]
    assert 0.4 < sum(theirs) / sum(ours) < 2.5
    told = export(Policies(TrainingPolicy.preset("nnunet", extra=[cascade])), "monai").limits
    assert any(limit.startswith(cascade.replace("_", " ")) for limit in told)


def test_amounts_are_of_their_range_and_of_either_sign(patch: Pair, tmp_path: Path) -> None:
    """Brightness, whose amount can be read from the result, in both of the forms in which amounts are drawn."""
    names = ["brightness_add_0.10_0.20", "brightness_multiply_1.10_1.20", "brightness_add_0.00_0.10"]
    policy = TrainingPolicy.preset("nnunet", ("all",))
    content = parser(export(Policies(policy), "monai").text, tmp_path)
    content.config["some"] = [f"%operations::{name}" for name in names]
    add, multiply, small = content.get_parsed_content("some", lazy=False)
    image = patch[0]
    shifts = torch.stack([(add({"image": image})["image"] - image).mean() for _ in range(60)])
    assert bool(((shifts.abs() > 0.0999) & (shifts.abs() < 0.2001)).all())
    assert 15 < int((shifts > 0).sum()) < 45
    assert abs(float(shifts.abs().mean()) - 0.15) < 0.02
    both = torch.stack([(small({"image": image})["image"] - image).mean() for _ in range(60)])
    assert bool((both.abs() < 0.1001).all())
    assert 15 < int((both > 0).sum()) < 45
    factors = torch.stack([(multiply({"image": image})["image"] / image).median() for _ in range(60)])
    bigger = torch.maximum(factors, 1 / factors)
    assert bool(((bigger > 1.1) & (bigger < 1.2)).all())
    assert 15 < int((factors > 1).sum()) < 45


@pytest.mark.parametrize(("value", "name"), [(0, "background"), (2, "foreground")])
def test_every_class_gets_its_own_probabilities(value: int, name: str, hippocampus: Path, tmp_path: Path) -> None:
    """200 patches of one class of the centre; what was drawn is in the trace that MONAI leaves."""
    policy = mixed_policy()
    config = parser(export(Policies(policy), "monai").text, tmp_path)
    training = config.get_parsed_content("training").set_random_state(5)
    place = CLASSES.index(name)
    pipeline = config.get_parsed_content(f"policies::{place}")
    one_ofs = [t for t in pipeline.transforms if type(t).__name__ == "OneOf"]
    text = yaml.safe_load((tmp_path / "policy.yaml").read_text())
    members = {
        t["_desc_"]: [m.removeprefix("%operations::") for m in t["transforms"]]
        for t in text["policies"][place]["transforms"] if isinstance(t, dict)
    }  # fmt: skip
    image, label = (x[:, 10:22, 12:24, 9:21] for x in real_patch(hippocampus))
    label = label.clone()
    label[0, 6, 6, 6] = value
    counts: dict[str, Counter[str]] = {cascade: Counter() for cascade in members}
    for _ in range(200):
        done = training({"image": image, "label": label})
        assert set(done) == {"image", "label"}
        trace = {entry["id"]: entry["extra_info"]["index"] for entry in done["image"].applied_operations
                 if entry["class"] == "OneOf"}  # fmt: skip
        for (cascade, names), one_of in zip(members.items(), one_ofs, strict=True):
            counts[cascade][names[trace[id(one_of)]]] += 1
    wanted = tables(policy, name)
    for cascade in members:
        check_frequencies(counts[cascade], wanted[cascade], f"{name}, {cascade}")


def test_the_label_at_the_centre_decides_which_policy_is_applied(tmp_path: Path) -> None:
    """The background's always mirrors one axis, each label's another one, and what is hidden from one comes back."""
    flips = [c for c in training_cascades() if c.name.startswith("mirror")]
    policy = TrainingPolicy(flips, ("background", "one", "two"))
    with torch.no_grad():
        for k in range(3):
            policy.logits[k] = torch.tensor([0.0, -1000.0] * 3)
            policy.logits[k, 2 * k : 2 * k + 2] = torch.tensor([-1000.0, 0.0])
    training = parser(export(Policies(policy), "monai").text, tmp_path).get_parsed_content("training")
    image = torch.rand(2, 7, 8, 6)
    for value in range(3):
        label = torch.zeros(1, 7, 8, 6)
        label[0, 3, 4, 3] = value
        done = training({"image": image, "label": label, "case": "a"})
        assert set(done) == {"image", "label", "case"}
        assert torch.equal(done["image"].as_tensor(), image.flip(value + 1))
        assert torch.equal(done["label"].as_tensor(), label.flip(value + 1))


def test_a_label_without_a_class_is_refused(tmp_path: Path) -> None:
    policy = TrainingPolicy.preset("nnunet", ("background", "left", "right"))
    training = parser(export(Policies(policy), "monai").text, tmp_path).get_parsed_content("training")
    with pytest.raises(RuntimeError) as caught:
        training({"image": torch.rand(1, 6, 6, 6), "label": torch.full((1, 6, 6, 6), 3)})
    assert isinstance(caught.value.__cause__, IndexError)


def test_mirroring_exchanges_the_labels_of_a_pair(patch: Pair, tmp_path: Path) -> None:
    policy = TrainingPolicy.preset("none", ("all",), laterality=[(1, 2)])
    place = [c.name for c in policy.cascades].index("mirrorS")
    start = sum(len(c) for c in policy.cascades[:place])
    with torch.no_grad():
        policy.logits[0, start], policy.logits[0, start + 1] = -1000.0, 1.0
    done = parser(export(Policies(policy), "monai").text, tmp_path).get_parsed_content("training")(
        {"image": patch[0], "label": patch[1]}
    )
    assert torch.equal(done["image"].as_tensor(), patch[0].flip(1))
    assert torch.equal(done["label"].as_tensor(), torch.tensor([0.0, 2.0, 1.0])[patch[1].flip(1).long()])


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    policy = TestTimePolicy.preset("uniform", z=84)
    config = parser(export(Policies(test_time=policy), "monai").text, tmp_path_factory.mktemp("views"))
    return {view["name"]: view for view in config.get_parsed_content("test_time::views")}


@pytest.mark.parametrize("view", operations_at_test_time(), ids=lambda o: o.name)
def test_a_view_and_its_way_back_are_those_of_this_package(view: Operation, views: dict[str, Any], patch: Pair) -> None:
    """The same size for both, as MONAI keeps it, and the same voxels."""
    image, shape = patch[0], tuple(patch[0].shape[1:])
    seen = torch.as_tensor(views[view.name]["transform"](image))
    wanted = apply_view(view, image[None], enlarge=False, generator=torch.Generator().manual_seed(0))[0]
    if deed(view).what == "noise":
        assert abs(float((seen - image).std()) / view.low - 1) < 0.05
    else:
        assert difference(seen, wanted) < (2e-4 if "gamma" in view.name else 5e-5)
    logits = torch.rand(3, *seen.shape[1:])
    returned = torch.as_tensor(views[view.name]["inverse"](logits))
    assert difference(returned, revert_view(view, logits[None], shape)[0]) < 5e-5


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_the_average_of_views_is_that_of_this_package(average: str, patch: Pair, tmp_path: Path) -> None:
    """Of views that need no more room; a network without symmetry, and sides that change places."""
    views = {o.name: o for o in operations_at_test_time()}
    chosen = [
        views[n] for n in ("identity", "flip_d", "rotate_hw_+90", "gamma_1.3", "scale_1.15", "low_resolution_0.5")
    ]
    torch.manual_seed(1)
    policy = TestTimePolicy(chosen, torch.randn(6), z=6, level="patch", average=average, laterality=[(1, 2)])  # type: ignore[arg-type]
    network = nn.Conv3d(1, 3, 3, padding=1).eval()
    images = torch.stack([patch[0][:, :, 3:33], patch[0][:, :, :30].flip(1)])
    predict = parser(export(Policies(test_time=policy), "monai").text, tmp_path).get_parsed_content(
        "test_time::predict"
    )
    with torch.no_grad():
        wanted = torch.cat([policy.apply(network, one[None]) for one in images])
        assert torch.allclose(predict(images, network), wanted, atol=1e-4)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_what_no_view_has_seen_is_predicted_as_it_is(average: str, patch: Pair, tmp_path: Path) -> None:
    """Without the identity among the views; a network that always says class 1, and one that doesn't."""
    (view,) = (o for o in operations_at_test_time() if o.name == "scale_0.69")
    policy = TestTimePolicy([view], z=1, level="patch", average=average)  # type: ignore[arg-type]
    text = export(Policies(test_time=policy), "monai").text
    predict = parser(text, tmp_path).get_parsed_content("test_time::predict")
    image = patch[0][None]
    always = torch.tensor([0.0, 5.0, -1.0]).view(1, 3, 1, 1, 1)

    def one(seen: Tensor) -> Tensor:
        return always.expand(len(seen), -1, *seen.shape[2:])

    assert bool((predict(image, one).argmax(1) == 1).all())
    wanted = always if average == "logits" else always.softmax(1)
    assert torch.allclose(predict(image, one), wanted.expand(1, -1, *image.shape[2:]), atol=1e-4)
    network = nn.Conv3d(1, 3, 3, padding=1).eval()
    with torch.no_grad():
        found, plain = predict(image, network), network(image) if average == "logits" else network(image).softmax(1)
        assert torch.allclose(found, policy.apply(network, image), atol=1e-4)
        assert torch.allclose(found[..., 0, 0, 0], plain[..., 0, 0, 0], atol=1e-5)
        assert not torch.allclose(found, plain, atol=1e-2)


def test_views_keep_the_number_of_channels_of_the_mask() -> None:
    """Sides change places in predictions; the mask of what was seen has one channel, which stays."""
    view = operations_at_test_time()[29]
    policy = TestTimePolicy([view], z=1, laterality=[(1, 2)])
    assert "len(y) == 1" in str(way_back(deed(view), 3, policy.laterality))
    assert view_transform(deed(view), 3)["spatial_axis"] == [0]


def test_worker_processes_draw_otherwise(tmp_path: Path) -> None:
    """MONAI's loader seeds what it finds; nothing random may hide where it finds nothing."""
    training = parser(export(Policies(mixed_policy()), "monai").text, tmp_path).get_parsed_content("training")
    torch.manual_seed(0)
    items = [{"image": torch.arange(512.0).view(1, 8, 8, 8), "label": torch.ones(1, 8, 8, 8)} for _ in range(8)]
    loader = DataLoader(Dataset(items, training), batch_size=4, num_workers=2)
    batches = [batch["image"].as_tensor() for batch in loader]
    images = list(torch.cat(batches))
    assert sum(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i]) <= 2
