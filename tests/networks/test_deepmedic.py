# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""DeepMedic: what each output voxel sees, in both paddings, and that hosts and look-aheads can use it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import monai.networks.nets
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedTrainer
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.networks import DeepMedic, add_auxiliary_norms, frozen, with_parameters
from monai_autoaug.optim import per_sample_hypergradient

SMALL: dict[str, Any] = {"features": (3, 3, 4, 4), "fc_features": (6, 6)}


def narrow(**options: Any) -> DeepMedic:
    """The paper's eight layers and three pathways in 2D, with few channels, as it predicts."""
    torch.manual_seed(0)
    return DeepMedic(2, 1, 2, features=(2, 2, 3, 3, 3, 3, 2, 2), fc_features=(4, 4), **options).double().eval()


def influence(network: nn.Module, size: int, place: int | None = None) -> list[int]:
    """The rows of the image on which the output at (place, place) depends; the centre if no place is given."""
    image = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    output = network(image)
    place = output.shape[2] // 2 if place is None else place
    output[0, :, place, place].sum().backward()
    assert image.grad is not None
    touched = image.grad[0, 0] != 0
    assert torch.equal(touched.any(0), touched.any(1))
    return touched.any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("shape", [(16, 16, 16), (7, 16, 11), (9, 8, 1)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_output_is_as_large_as_the_image(spatial_dims: int, shape: tuple[int, ...]) -> None:
    network, shape = DeepMedic(spatial_dims, 2, 3, **SMALL), shape[:spatial_dims]
    for batch in (1, 2):
        output = network.train()(torch.randn(batch, 2, *shape))
        assert output.shape == (batch, 3, *shape)
        assert output.isfinite().all()


def test_a_batch_of_one_predicts_as_in_a_batch_of_many() -> None:
    network, image = DeepMedic(3, 1, 2, **SMALL).eval(), torch.randn(3, 1, 12, 12, 12)
    torch.testing.assert_close(network(image[1:2]), network(image)[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("factors", "size"), [((1,), 45), ((1, 3, 5), 113)])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_valid_convolutions_make_29_of_45(spatial_dims: int, factors: tuple[int, ...], size: int) -> None:
    network = DeepMedic(
        spatial_dims, 1, 2, features=(2,) * 8, fc_features=(4,), down_factors=factors, padding="valid"
    ).eval()
    seen: list[int] = []
    for pathway in network.pathways:
        pathway.register_forward_pre_hook(lambda _m, i: seen.append(i[0].shape[-1]))
    assert network.input_size(29) == size
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *[size] * spatial_dims)).shape[2:] == (29,) * spatial_dims
    assert seen == [45, 26, 22][: len(factors)], "a pathway's input is its blocks of the output and 8 more on each side"


@pytest.mark.parametrize(("upsample", "size"), [("nearest", 113), ("linear", 123)])
def test_pathways_of_low_resolution_need_a_margin_around_the_output(upsample: str, size: int) -> None:
    network = narrow(padding="valid", upsample=upsample)
    assert network.input_size(29) == size
    assert network(torch.zeros(1, 1, size, size + 7, dtype=torch.float64)).shape[2:] == (29, 36)
    smallest = network.input_size(1)
    assert network(torch.zeros(1, 1, smallest, smallest, dtype=torch.float64)).shape[2:] == (1, 1)
    with pytest.raises(ConfigError, match=f"at least {smallest} voxels.*got \\({smallest - 1}, 200\\)"):
        network(torch.zeros(1, 1, smallest - 1, 200, dtype=torch.float64))


def test_even_factors_fit_too() -> None:
    network = narrow(padding="valid", down_factors=(1, 2, 4))
    for output in (1, 2, 3, 4, 5):
        size = network.input_size(output)
        assert network(torch.zeros(1, 1, size, size, dtype=torch.float64)).shape[2:] == (output, output)


def test_blocks_that_stand_out_are_filled_from_the_border() -> None:
    network, image = narrow(down_factors=(5,)), torch.randn(1, 1, 7, 7, dtype=torch.float64)
    whole_blocks = nn.functional.pad(image, [1, 2, 1, 2], mode="replicate")
    torch.testing.assert_close(network(image), network(whole_blocks)[..., 1:8, 1:8])


# sizes for which both paddings put the blocks of 3 and of 5 at the same voxels of the image
@pytest.mark.parametrize(("upsample", "size"), [("nearest", 110), ("linear", 115)])
def test_paddings_agree_away_from_the_border(upsample: str, size: int) -> None:
    same, valid = narrow(upsample=upsample), narrow(upsample=upsample, padding="valid")
    valid.load_state_dict(same.state_dict())
    image = torch.randn(1, 1, size, size, dtype=torch.float64)
    inside = slice(valid.margin, -valid.margin)
    torch.testing.assert_close(valid(image), same(image)[..., inside, inside])


@pytest.mark.parametrize(("factors", "field"), [((1,), 17), ((3,), 51), ((1, 3), 51), ((1, 3, 5), 85)])
def test_receptive_field_is_centred_and_as_large_as_it_says(factors: tuple[int, ...], field: int) -> None:
    network = narrow(down_factors=factors)
    assert network.receptive_field == field
    assert influence(network, 121) == list(range(60 - field // 2, 60 + field // 2 + 1))


def test_receptive_field_of_every_voxel_with_valid_convolutions() -> None:
    network = narrow(padding="valid")
    for place in (0, 2, 14, 28):
        rows = influence(network, 113, place)
        assert len(rows) == network.receptive_field == 85
        assert abs((rows[0] + rows[-1]) / 2 - (place + network.margin)) <= 2, "off by more than half a block of 5"


def test_linear_interpolation_sees_one_block_more() -> None:
    network = narrow(upsample="linear")
    assert network.receptive_field == 90
    assert len(influence(network, 121, 61)) == 90
    with torch.no_grad():
        steps = narrow(down_factors=(5,))(torch.randn(1, 1, 50, 50, dtype=torch.float64))
    assert torch.equal(steps[..., 0:1, :].expand(1, 2, 5, 50), steps[..., :5, :]), "nearest repeats whole blocks"


def test_parameters_are_those_of_the_paper() -> None:
    widths = (1, 30, 30, 40, 40, 40, 40, 50, 50)
    pathway = sum(27 * a * b + b for a, b in pairwise(widths))
    pathway += sum(2 * c + 1 for c in widths[1:-1])  # batch norms and PReLUs
    joining = sum(a * b + b + 2 * a + 1 for a, b in pairwise((150, 250, 250, 2)))
    count = sum(p.numel() for p in DeepMedic(3, 1, 2).parameters())
    assert count == 3 * pathway + joining == 1_030_736


def test_weights_are_he_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    for module in DeepMedic(3, 1, 2).modules():
        if isinstance(module, nn.Conv3d):
            fan_in = module.in_channels * math.prod(module.kernel_size)
            assert module.bias is not None
            assert not module.bias.any()
            if module.weight.numel() > 10_000:
                assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)


@pytest.mark.parametrize(("part", "pair"), [("pathways.0", (2, 3)), ("joining", (0, 1))])
def test_features_pass_by_every_second_layer(part: str, pair: tuple[int, int]) -> None:
    network = narrow(down_factors=(1,))
    layers = network.get_submodule(part)
    given = torch.randn(1, 1 if part != "joining" else 2, 40, 40, dtype=torch.float64)
    for module in layers.layers[pair[1]].modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    seen: dict[str, Tensor] = {}
    layers.layers[pair[0]].register_forward_hook(lambda _m, i, _o: seen.update(before=i[0]))
    if part == "joining":
        seen["after"] = layers(given)
    else:
        layers.layers[pair[1] + 1].register_forward_hook(lambda _m, i, _o: seen.update(after=i[0]))
        layers(given)
    before, after = seen["before"], seen["after"]
    assert torch.equal(after[:, : before.shape[1]], before)
    assert not after[:, before.shape[1] :].any()


def test_dropout_is_where_pathways_have_been_joined_only() -> None:
    network = DeepMedic(3, 1, 2)
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout) and m.p}
    assert rates == {"joining.layers.1.2": 0.5, "classification.2": 0.5}
    assert all(m.p == 0 for m in DeepMedic(3, 1, 2, dropout=0).modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("upsample", ["nearest", "linear"])
def test_hypergradients_pass_through_it(upsample: str) -> None:
    torch.manual_seed(0)
    network = DeepMedic(3, 1, 2, **SMALL, upsample=upsample).double().train()
    parameters = dict(network.named_parameters())
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    image, label = torch.randn(3, 1, 8, 7, 9, dtype=torch.float64), torch.randint(2, (3, 8, 7, 9))

    def losses(given: Any) -> Tensor:
        with with_parameters(network, given), frozen(network):
            return nn.functional.cross_entropy(network(image), label, reduction="none").flatten(1).mean(1)

    forward = per_sample_hypergradient(losses, parameters, direction, mode="jvp")
    torch.testing.assert_close(
        forward, per_sample_hypergradient(losses, parameters, direction, mode="double_backward"), rtol=1e-9, atol=1e-12
    )
    assert forward.std() > 0


def test_the_images_gradient_is_right() -> None:
    torch.manual_seed(0)
    network = DeepMedic(2, 1, 2, features=(2, 2, 2, 2), fc_features=(3,), act="swish").double().eval()
    assert torch.autograd.gradcheck(network, torch.randn(1, 1, 7, 6, dtype=torch.float64, requires_grad=True))


def test_state_dict_round_trip() -> None:
    a, b, image = DeepMedic(3, 1, 2, **SMALL), DeepMedic(3, 1, 2, **SMALL), torch.randn(2, 1, 8, 8, 8)
    a(image)  # batch norm's statistics are part of the state
    assert not torch.equal(a.eval()(image), b.eval()(image))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(image), b(image))


def test_hosts_can_use_it() -> None:
    network = DeepMedic(3, 1, 2, **SMALL)
    before = [p.detach().clone() for p in network.parameters()]
    image, label = MetaTensor(torch.randn(1, 12, 12, 12)), torch.randint(2, (12, 12, 12))
    batch = [{"image": image, "label": label}, {"image": -image, "label": label}]
    SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=DataLoader(batch, batch_size=2), network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.01), loss_function=nn.functional.cross_entropy,
    ).run()  # fmt: skip
    assert all(not torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True) if p.grad.any())
    with torch.no_grad():
        output = sliding_window_inference(image[None], (8, 8, 8), 2, network.eval())
    assert output.shape == (1, 2, 12, 12, 12)
    assert add_auxiliary_norms(network)(image[None]).shape[1] == 2
    assert not hasattr(monai.networks.nets, "DeepMedic"), "MONAI has one of its own: rename ours"


@pytest.mark.parametrize("options", [
    {"norm": "instance"}, {"norm": ("group", {"num_groups": 1}), "act": "relu"}, {"norm": "", "act": "swish"},
    {"fc_features": ()}, {"features": (4,)}, {"features": (6, 4, 4, 3)},
])  # fmt: skip
def test_other_norms_activations_and_depths(options: dict[str, Any]) -> None:
    assert DeepMedic(2, 1, 2, **{**SMALL, **options})(torch.randn(2, 1, 12, 12)).shape == (2, 2, 12, 12)


@pytest.mark.parametrize(("options", "message"), [
    ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
    ({"features": ()}, "features must be integers of at least 1"),
    ({"fc_features": (4, 0)}, "fc_features must be integers of at least 1"),
    ({"down_factors": (1, 2.5)}, "down_factors must be integers of at least 1"),
    ({"down_factors": ()}, "down_factors must be"),
    ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1.0"),
    ({"padding": "zeros"}, "padding must be one of same, valid, got 'zeros'"),
    ({"upsample": "cubic"}, "upsample must be one of nearest, linear, got 'cubic'"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeepMedic(**{"spatial_dims": 3, "in_channels": 1, "out_channels": 2, **options})


def test_images_that_cannot_work_are_refused() -> None:
    network = DeepMedic(3, 1, 2, **SMALL)
    with pytest.raises(ConfigError, match="more than 5 voxels or smaller down_factors"):
        network(torch.zeros(1, 1, 5, 5, 5))
    with pytest.raises(ConfigError, match="needs an image of 5 axes"):
        network(torch.zeros(1, 8, 8, 8))
    valid = DeepMedic(3, 1, 2, padding="valid", features=(2,) * 8, fc_features=())
    with pytest.raises(ConfigError, match="at least 85 voxels along each axis, 42 more than the output on each side"):
        valid(torch.zeros(1, 1, 45, 45, 45))
