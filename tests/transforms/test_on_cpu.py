# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The faster way on a CPU gives what the faithful one gives, for label values, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, Literal

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.autograd import forward_ad

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import TrainingPolicy
from monai_autoaug.policies.augmentation import augment
from monai_autoaug.policies.drawing import Compared, Drawing
from monai_autoaug.tensors import one_hot
from monai_autoaug.transforms import (
    execution,
    extra_cascades,
    in_place,
    intensity,
    label_cells,
    on_cpu,
    spatial,
    training_cascades,
)
from monai_autoaug.transforms.geometry import compose, resample
from monai_autoaug.transforms.gridded import Gridded
from monai_autoaug.transforms.intensity import Reference
from monai_autoaug.transforms.on_cpu import apply_to_values
from monai_autoaug.transforms.registry import Cascade, Context, Operation
from monai_autoaug.transforms.separable import Separable

SHAPE, MARGIN, INNER = (20, 17, 14), (4, 3, 2), (12, 11, 10)


def sample(batch: int, channels: int, classes: int, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, channels, *shape, generator=generator)
    coarse = torch.rand(batch, 1, 4, 4, 4, generator=generator)[..., : 4 if len(shape) == 3 else 1]
    coarse = coarse if len(shape) == 3 else coarse[..., 0]
    smooth = torch.nn.functional.interpolate(coarse, shape, mode="trilinear" if len(shape) == 3 else "bilinear")
    return image, (smooth * classes).floor().clamp(max=classes - 1).short()


def turn(plane: tuple[int, int], degrees: float, zoom: float) -> Tensor:
    a, b = plane
    angle = torch.tensor(degrees).deg2rad().double()
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[a, a] = matrix[b, b] = angle.cos()
    matrix[a, b], matrix[b, a] = angle.sin(), -angle.sin()
    return (matrix * zoom).float()


@pytest.mark.parametrize("plane", [(1, 2), (0, 2), (0, 1)])
@pytest.mark.parametrize(("degrees", "zoom"), [(25.0, 1.0), (0.0, 1.4), (-10.0, 0.7), (90.0, 1.0), (20.0, 1.5)])
@pytest.mark.parametrize("classes", [3, 10])
def test_a_separable_resampling_is_that_of_a_grid(
    plane: tuple[int, int], degrees: float, zoom: float, classes: int
) -> None:
    image, label = sample(1, 2, classes)
    matrix = turn(plane, degrees, zoom)
    way = Separable.of(matrix, SHAPE, INNER)
    assert way is not None
    grid = compose(torch.cat([matrix, torch.zeros(3, 1)], 1)[None], None, SHAPE, margin=MARGIN, like=image)
    moved, soft = resample(image, grid, label=one_hot(label, classes))
    assert soft is not None
    torch.testing.assert_close(way.image(image[0]), moved[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(way.label(label[0, 0].to(torch.uint8), classes), soft[0], atol=2e-5, rtol=0)
    outside = (0.0, -2.5)
    _, channels = resample(image, grid, label=image, outside=outside)
    assert channels is not None
    torch.testing.assert_close(way.image(image[0], outside), channels[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("signs", list(product((1.0, -1.0), repeat=3)))
@pytest.mark.parametrize("turned", [False, True])
def test_axes_may_be_reversed(signs: tuple[float, ...], turned: bool) -> None:
    """As they are after three quarter turns."""
    image, label = sample(1, 1, 3)
    matrix = torch.diag(torch.tensor(signs)) @ (turn((0, 1), 90, 1) if turned else torch.eye(3))
    grid = compose(torch.cat([matrix, torch.zeros(3, 1)], 1)[None], None, SHAPE, margin=MARGIN, like=image)
    moved, soft = resample(image, grid, label=one_hot(label, 3))
    assert soft is not None
    way = Separable.of(matrix, SHAPE, INNER)
    assert way is not None
    torch.testing.assert_close(way.image(image[0]), moved[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(way.label(label[0, 0].to(torch.uint8), 3), soft[0], atol=2e-5, rtol=0)


def test_every_second_voxel_is_not_the_first_ones() -> None:
    x = torch.rand(1, 9, 9, 9)
    way = Separable.of(2 * torch.eye(3), (9, 9, 9), (5, 5, 5))
    assert way is not None
    torch.testing.assert_close(way.image(x), x[:, ::2, ::2, ::2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_read_as_a_grid_reads_it(axis: int) -> None:
    """Wherever it is asked: a rotation out of its plane, which a policy for volumes may draw, leaves it as it is."""
    shape = [14, 14, 14]
    shape[axis] = 1
    image, label = sample(1, 2, 3, tuple(shape))
    hot, cascades = one_hot(label, 3), training_cascades()
    for column in range(4):  # a zoom, and rotations in each plane
        chosen = torch.zeros(1, 15, dtype=torch.long)
        chosen[0, column] = 3 if column else 1
        random = [torch.Generator().manual_seed(column) for _ in range(3)]
        second, expected = execution.apply(image, hot, chosen, cascades, generator=random[0])
        for first, soft in (
            on_cpu.apply(image, hot, chosen, cascades, generator=random[1]),
            apply_to_values(image, label, 3, chosen, cascades, generator=random[2]),
        ):
            torch.testing.assert_close(first, second, atol=2e-5, rtol=0)
            torch.testing.assert_close(soft, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("zoom", [0.6, 1.0, 1.5])
def test_a_matrix_that_leaves_no_axis_alone_goes_by_a_grid(zoom: float) -> None:
    image, label = sample(1, 2, 4)
    matrix = turn((0, 1), 10, zoom) @ turn((1, 2), 20, 1)
    assert Separable.of(matrix, SHAPE, INNER) is None
    way = Gridded(matrix, SHAPE, INNER)
    grid = compose(torch.cat([matrix, torch.zeros(3, 1)], 1)[None], None, SHAPE, margin=MARGIN, like=image)
    moved, soft = resample(image, grid, label=one_hot(label, 4))
    assert soft is not None
    torch.testing.assert_close(way.image(image[0]), moved[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(way.label(label[0, 0].to(torch.uint8), 4), soft[0], atol=2e-5, rtol=0)
    for outside in ((0.0, -2.5), (0.0, 0.0)):
        _, channels = resample(image, grid, label=image, outside=outside)
        assert channels is not None
        torch.testing.assert_close(way.image(image[0], outside), channels[0], atol=2e-5, rtol=0)


def test_operations_that_write_over_their_input_are_those_that_do_not() -> None:
    seen = 0
    for cascade in training_cascades():
        for operation in cascade.operations[1:]:
            image = sample(1, 2, 2)[0]
            before = image.clone()
            for quantile in (0.1, 0.9):
                given, magnitude = [before.clone()], operation.magnitude(torch.tensor([quantile]), torch.ones(1))
                random = torch.Generator().manual_seed(3)
                if in_place.run(given, operation, [0], magnitude, random):
                    seen += 1
                    expected = operation(before, magnitude, Context(torch.Generator().manual_seed(3)))
                    torch.testing.assert_close(given[0], expected, atol=1e-5, rtol=1e-5)
    assert seen == 2 * 27


@pytest.mark.parametrize("margin", [MARGIN, None])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_draw_of_a_policy_is_that_of_the_faithful_way(margin: tuple[int, ...] | None, channels: int) -> None:
    policy = TrainingPolicy.preset("uniform", ("all",), extra=["elastic", "channel_scale"])
    image, label = sample(2, channels, 3)
    hot = one_hot(label, 3)
    for seed in range(25):
        indices = policy.sample(torch.zeros(2, dtype=torch.long), torch.Generator().manual_seed(seed))[0]
        before = image.clone(), label.clone()
        first, soft = apply_to_values(
            image, label, 3, indices, policy.cascades, generator=torch.Generator().manual_seed(seed), margin=margin
        )
        assert torch.equal(image, before[0])
        assert torch.equal(label, before[1])
        second, expected = execution.apply(
            image, hot, indices, policy.cascades, generator=torch.Generator().manual_seed(seed), margin=margin
        )
        # low resolution takes the nearest voxel and sharpening divides by small sigmas, so rounding grows a little
        torch.testing.assert_close(first, second, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(soft, expected, atol=2e-5, rtol=0)


def faithful(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whatever would go the faster way goes the other one and is counted."""
    seen: list[int] = []

    def apply(image: Tensor, channels: Tensor, *given: Any, **named: Any) -> Any:
        seen.append(channels.shape[1])
        return execution.apply(image, channels, *given, **named)

    monkeypatch.setattr(on_cpu, "apply_to_channels", apply)
    return seen


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("known_outside", [False, True])
def test_all_that_moves_with_an_image_moves_as_it_does_by_the_faithful_way(
    regions: bool, known_outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = TrainingPolicy.preset("uniform", ("all",), extra=["elastic"])
    image, label = sample(2, 2, 3)
    hot = one_hot(label, 3)
    batch = Batch(
        image, torch.stack([hot[:, 1:].sum(1), hot[:, 2]], 1) if regions else hot, margin=MARGIN,
        valid=(sample(2, 1, 5)[1] > 0).float(), mask=(image > -1).float(), extra=hot[:, 1:].roll(2, 2),
    )  # fmt: skip
    drawn = [policy.sample(torch.zeros(2, dtype=torch.long), torch.Generator().manual_seed(n))[0] for n in range(20)]

    def made(number: int) -> Batch:
        random = torch.Generator().manual_seed(number)
        return augment(policy, batch, drawn[number], random, regions=regions, known_outside=known_outside)

    first = [made(number) for number in range(20)]
    seen = faithful(monkeypatch)
    for number, one in enumerate(first):
        other = made(number)
        for name, atol in (("valid", 2e-5), ("extra", 2e-5), ("image", 2e-3)):
            a, b = (getattr(x, name) for x in (one, other))
            # the mask is a threshold: a voxel on it may fall to either side
            apart = (a - b).abs() > atol + (1e-3 * b.abs() if name == "image" else 0)
            assert float(apart.float().mean()) <= (1e-3 if name == "image" else 0), name
        # where next to nothing is known, the label is a quotient of two roundings
        assert one.valid is not None
        torch.testing.assert_close(one.label * one.valid, other.label * one.valid, atol=5e-5, rtol=0)
        total = one.label[:, :1] if regions else one.label.sum(1, keepdim=True)
        assert float(((total - 1) * one.valid.clamp(min=0)).max()) < 1e-4  # of what is known, not of what lies beyond
    assert len(seen) == 20


def test_what_the_faster_way_is_not_for_goes_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = faithful(monkeypatch)
    image, label = sample(1, 1, 3)
    hot = one_hot(label, 3)
    cascades = training_cascades()
    chosen = torch.zeros(1, len(cascades), dtype=torch.long)
    chosen[0, 0] = 1
    leaf = image.clone().requires_grad_()
    moved, _ = on_cpu.apply(leaf, hot, chosen, cascades)
    assert moved.requires_grad
    for given in ((image.double(), hot), (image, hot.to(torch.uint8)), (image, None)):
        on_cpu.apply(*given, chosen, cascades)
    on_cpu.apply(image, hot, chosen, cascades, reference=Reference(image), margin=MARGIN)
    on_cpu.apply(image, hot, chosen, cascades, compat=True)
    assert not seen
    with torch.no_grad():
        on_cpu.apply(leaf, hot, chosen, cascades)
    assert seen == [3]


def test_a_users_metadata_do_not_come_along() -> None:
    image, label = sample(1, 1, 3)
    policy = TrainingPolicy.preset("nnunet")
    for indices in (torch.zeros(1, 15, dtype=torch.long), policy.sample(torch.zeros(1, dtype=torch.long))[0]):
        moved, soft = policy.apply(MetaTensor(image), MetaTensor(one_hot(label, 3)), indices)
        assert {type(moved), type(soft)} == {Tensor}


def test_results_are_the_callers_own() -> None:
    image, label = sample(1, 1, 2)
    hot = one_hot(label, 2)
    nothing = torch.zeros(1, 15, dtype=torch.long)
    for moved, soft in (
        apply_to_values(image, label, 2, nothing, training_cascades()),
        on_cpu.apply(image, hot, nothing, training_cascades()),
    ):
        assert soft is not None
        moved.zero_()
        soft.zero_()
    assert image.any()
    assert hot.any()


def test_two_dimensions_and_many_classes_go_the_faithful_way() -> None:
    for shape, classes in (((16, 12), 3), (SHAPE, label_cells.MOST_CLASSES + 1)):
        dims = len(shape)
        image, label = sample(1, 1, classes, shape)
        cascades = training_cascades(dims)
        chosen = torch.zeros(1, len(cascades), dtype=torch.long)
        chosen[0, 0] = chosen[0, 1] = 1  # a zoom and a rotation
        first, soft = apply_to_values(
            image, label, classes, chosen, cascades, generator=torch.Generator().manual_seed(0)
        )
        second, expected = execution.apply(
            image, one_hot(label, classes), chosen, cascades, generator=torch.Generator().manual_seed(0)
        )
        torch.testing.assert_close(first, second)
        torch.testing.assert_close(soft, expected)


def test_one_hot_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected label values"):
        apply_to_values(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8), 2, torch.zeros(1, 15), extra_cascades())  # type: ignore[arg-type]


@pytest.mark.parametrize("class_of", ["centre", "sampled"])
def test_a_drawing_takes_values_as_the_faithful_way_takes_channels(
    class_of: Literal["centre", "sampled"], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = faithful(monkeypatch)
    policy = TrainingPolicy.preset("uniform", laterality=[(1, 2)])
    drawing = Drawing(policy, class_of, compared=Compared(lambda step: True, below=9))
    image, label = sample(2, 1, 3)
    hot = one_hot(label, 3)
    given = {"image": image, "classes": torch.tensor([2, 0]), "margin": MARGIN}
    for seed in range(6):
        first = drawing(Batch(label=label, heads=3, **given), torch.Generator().manual_seed(seed), 0)
        second = drawing(Batch(label=hot, **given), torch.Generator().manual_seed(seed), 0)
        assert first.operations is not None
        assert first.classes is not None
        assert first.plain is not None
        assert second.plain is not None
        assert torch.equal(first.operations, second.operations)
        assert torch.equal(first.classes, second.classes)
        assert torch.equal(first.plain.label, second.plain.label)
        torch.testing.assert_close(first.label, second.label, atol=2e-5, rtol=0)
        torch.testing.assert_close(first.image, second.image, atol=2e-3, rtol=1e-3)
    assert len(seen) == 6


def test_a_patch_of_one_class_has_no_boundary() -> None:
    image = sample(1, 1, 3)[0]
    chosen = torch.zeros(1, 15, dtype=torch.long)
    chosen[0, :3] = 1  # a zoom and rotations in two planes; then one of them alone
    for value, outside in ((0, 0), (2, 1)):
        label = torch.full((1, 1, *SHAPE), value, dtype=torch.short)
        for indices in (chosen, chosen * (torch.arange(15) < 2)):
            soft = apply_to_values(image, label, 3, indices, training_cascades(), margin=MARGIN)[1]
            assert soft.shape == (1, 3, *INNER)
            torch.testing.assert_close(soft.sum(1), torch.ones(1, *INNER))
            assert bool(soft[:, value].mean() > (0.3 if outside else 0.999))


def test_a_quarter_turn_of_samples_of_which_some_are_resampled() -> None:
    """Some labels have their channels by then and some are still values."""
    policy = TrainingPolicy.preset("uniform", ("all",))
    image, label = sample(3, 1, 3, (20, 20, 14))
    chosen = torch.zeros(3, len(policy.cascades), dtype=torch.long)
    column = [c.name for c in policy.cascades].index("rotL")
    chosen[:, column], chosen[1, 0] = 4, 2  # all are turned, the second is zoomed, too
    turn = policy.cascades[column][4]
    assert turn.acts == "permutation"
    given: dict[str, Any] = {"margin": (4, 4, 2)}
    first, soft = apply_to_values(
        image, label, 3, chosen, policy.cascades, generator=torch.Generator().manual_seed(0), **given
    )
    second, expected = execution.apply(
        image, one_hot(label, 3), chosen, policy.cascades, generator=torch.Generator().manual_seed(0), **given
    )
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(soft, expected, atol=1e-5, rtol=0)


def test_three_quarter_turns_of_a_patch_of_unequal_sizes() -> None:
    """They join the matrix, which then reverses axes."""
    cascades = training_cascades()
    image, label = sample(1, 1, 3, (12, 16, 10))
    chosen = torch.zeros(1, len(cascades), dtype=torch.long)
    for name in ("rotF", "rotS", "rotL"):
        chosen[0, [c.name for c in cascades].index(name)] = 4
    for seed in range(12):
        random = [torch.Generator().manual_seed(seed) for _ in range(3)]
        second, expected = execution.apply(image, one_hot(label, 3), chosen, cascades, generator=random[0])
        for first, soft in (
            on_cpu.apply(image, one_hot(label, 3), chosen, cascades, generator=random[1]),
            apply_to_values(image, label, 3, chosen, cascades, generator=random[2]),
        ):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
            torch.testing.assert_close(soft, expected, atol=1e-5, rtol=0)


def both_ways(cascades: list[Cascade]) -> tuple[Tensor, Tensor]:
    """What the faster way and the faithful one make of an image, where each cascade's first operation is drawn."""
    image, label = sample(1, 1, 2, (12, 12, 12))
    chosen = torch.ones(1, len(cascades), dtype=torch.long)
    made = [way(image, one_hot(label, 2), chosen, cascades)[0] for way in (on_cpu.apply, execution.apply)]
    return made[0], made[1]


def own(name: str, order: int, function: Callable[..., Tensor], *mirrors: int) -> Cascade:
    mine = Operation(name, order=order, acts="permutation", function=function, mirrors=mirrors)
    return Cascade(name, (Operation("identity"), mine))


def test_flips_around_a_quarter_turn_stay_where_they_are() -> None:
    flips = [own(f"flip_{a}", order, partial(spatial.flip, axes=(a,)), a) for a, order in ((0, 0), (2, 110), (1, 111))]
    turn = own("turn", 21, lambda x, magnitude: x.transpose(2, 4))
    first, second = both_ways([*flips, turn])
    assert torch.equal(first, second)


def test_a_users_function_is_taken_whatever_it_is_called() -> None:
    first, second = both_ways([own("flip_d", 0, lambda x, magnitude: x.roll(1, 3), 0)])
    assert torch.equal(first, second)


@pytest.mark.parametrize("bound", [intensity.gamma, partial(intensity.gamma, compat=True), [1, 2]])
def test_a_users_function_around_one_of_ours_is_called(bound: Any) -> None:
    def half(function: Any, image: Tensor, magnitude: Tensor, context: Context) -> Tensor:
        return torch.where(image > 0, function(image, magnitude) if callable(function) else -image, image)

    mine = Operation("mine", "intensity", "values", partial(half, bound), 1.5, 1.5)
    first, second = both_ways([Cascade("mine", (Operation("identity"), mine))])
    assert torch.equal(first, second)


def test_infinite_sharpening_changes_nothing() -> None:
    sharpen = next(o for c in training_cascades() for o in c.operations if o.name.startswith("sharpen_"))
    image = torch.randn(1, 1, 6, 6, 6)
    given = [image.clone()]
    assert in_place.run(given, sharpen, [0], torch.tensor([float("inf")]), None)
    assert torch.equal(given[0], image)


def test_autocast_changes_nothing() -> None:
    policy = TrainingPolicy.preset("uniform", ("all",)).requires_grad_(False)
    image, label = sample(1, 1, 2)
    chosen = torch.zeros(1, len(policy.cascades), dtype=torch.long)
    for column, cascade in enumerate(policy.cascades):
        indices = chosen.clone()
        indices[0, column] = len(cascade) - 1
        made = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                random = torch.Generator().manual_seed(0)
                made += [policy.apply(image, one_hot(label, 2), indices, random, margin=MARGIN)]
        assert all(torch.equal(a, b) for a, b in zip(*made, strict=True)), cascade.name


def test_a_forward_derivative_goes_the_faithful_way() -> None:
    image, label = sample(1, 1, 2)
    for column in range(1, 4):  # a rotation in each plane
        chosen = torch.zeros(1, 15, dtype=torch.long)
        chosen[0, column] = 1
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(image, torch.ones_like(image))
            moved, _ = on_cpu.apply(dual, one_hot(label, 2), chosen, training_cascades())
            assert forward_ad.unpack_dual(moved).tangent is not None


def test_what_does_not_fit_is_refused() -> None:
    image, label = sample(1, 1, 3)
    nothing, cascades = torch.zeros(1, 15, dtype=torch.long), training_cascades()
    with pytest.raises(ConfigError, match="same samples and size"):
        on_cpu.apply(image, one_hot(label, 3)[..., :-1], nothing, cascades)
    with pytest.raises(ConfigError, match="same samples and size"):
        apply_to_values(image, label[:, :, 1:], 3, nothing, cascades)
    with pytest.raises(ConfigError, match="an image in float32, got torch.float16"):
        apply_to_values(image.half(), label, 3, nothing, cascades)
    drawing = Drawing(TrainingPolicy.preset("nnunet"))  # which takes the other way
    assert drawing(Batch(image.double(), label, heads=3)).image.dtype == torch.float64
    for outside in ((0.0,), (0.0, 0.0, 0.0, 1.0)):
        with pytest.raises(ConfigError, match="a number a channel, 3 of them"):
            on_cpu.apply(image, one_hot(label, 3), nothing, cascades, outside=outside)


def test_without_a_channel_for_what_is_known_the_outside_is_background() -> None:
    policy = TrainingPolicy.preset("uniform")
    image, label = sample(1, 1, 3)
    chosen = torch.zeros(1, 15, dtype=torch.long)
    chosen[0, 1] = 3
    made = augment(policy, Batch(image, one_hot(label, 3)), chosen, known_outside=False)
    torch.testing.assert_close(made.label.sum(1), torch.ones(1, *SHAPE))
