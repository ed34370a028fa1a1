# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Operations as MONAI transforms, in the words of a bundle's configuration.

Where MONAI draws an amount as this package does, its random transform is taken; where it would draw another one for
every axis, or another distribution, one of `STEPS` transforms of fixed, equally probable amounts is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from monai_autoaug.policies.export.plan import Deed
from monai_autoaug.policies.laterality import Laterality

__all__ = ["FUNCTIONS", "MOVING", "STEPS", "dictionary_transform"]

STEPS = 16
MOVING = ("scale", "rotate", "turn", "elastic")  # what resamples
_T = "monai.transforms"
# what the rows call; references in expressions are resolved by MONAI
FUNCTIONS = {
    "amounts": f"$lambda low, high: [low + (high - low) * (k + 0.5) / {STEPS} for k in range({STEPS})]",
    "darkest": "$lambda x: x.amin(dim=tuple(range(1, x.ndim)), keepdim=True)",
    # the darkest value, which is what is outside of an image, is 0 while it is moved
    "on_zero": (
        "$lambda d: {**d, @image: d[@image] - @darkest(d[@image]), 'darkest': @darkest(d[@image])}"
        " if @image in d else d"
    ),
    "as_before": (
        "$lambda d: {k: v + d['darkest'] if k == @image else v for k, v in d.items() if k != 'darkest'}"
        " if @image in d else d"
    ),
    "mirrored": "$lambda n, r: (lambda k: torch.minimum(k, 2 * n - 1 - k))(torch.arange(-r, n + r) % (2 * n))",
    "filtered": (
        "$lambda x, kernels: functools.reduce(lambda y, a: y.index_select(a[0], @mirrored(y.shape[a[0]],"
        " len(a[1]) // 2)).unfold(a[0], len(a[1]), 1).matmul(a[1]), enumerate(kernels, 1), x)"
    ),
    "square": "$lambda s: torch.arange(-int(4 * s + 0.5), int(4 * s + 0.5) + 1.0) ** 2",
    "bell": "$lambda s: torch.softmax(-@square(s) / (2 * s * s), 0)",
    "second": "$lambda s: @bell(s) * (@square(s) / s**2 - 1) / s**2",
    "blurred": "$lambda x, s: @filtered(x, [@bell(s)] * (x.ndim - 1))",
    "laplacian": (
        "$lambda x, s: sum(@filtered(x, [@second(s) if a == axis else @bell(s) for a in range(x.ndim - 1)])"
        " for axis in range(x.ndim - 1))"
    ),
    "sharpened": "$lambda x, s: torch.minimum(torch.maximum(x - @laplacian(x, s), @darkest(x)), -@darkest(-x))",
    "on_darkest": "$lambda x, move: move(x - @darkest(x)) + @darkest(x)",
}  # fmt: skip


def dictionary_transform(deed: Deed, dims: int, sides: Laterality | None) -> dict[str, Any]:
    """What an operation is while training.

    Args:
        deed: what it does.
        dims: spatial dimensions.
        sides: labels that change places when left and right do.

    >>> dictionary_transform(Deed("flip", (0,)), 3, None)["_target_"]
    'monai.transforms.Flipd'
    """
    if deed.what == "flip":
        return _mirror(deed, sides)
    made = _MAKERS[deed.what](deed, dims)
    if deed.what not in (*MOVING, "bias_field"):
        return made
    return {"_target_": f"{_T}.Compose", "transforms": ["@on_zero", made, "@as_before"]}


def _all(target: str, **arguments: Any) -> dict[str, Any]:
    """A transform of image and label."""
    return {"_target_": f"{_T}.{target}", "keys": "@keys", **arguments, "allow_missing_keys": True}


def _image(target: str, **arguments: Any) -> dict[str, Any]:
    """A transform of the image."""
    return {"_target_": f"{_T}.{target}", "keys": "@image", **arguments, "allow_missing_keys": True}


def _random(target: str, **arguments: Any) -> dict[str, Any]:
    """A random transform of the image, which is always applied: whether it is, is drawn before."""
    return _image(target, prob=1.0, **arguments)


def _one_of(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": f"{_T}.OneOf", "transforms": list(transforms)}


def _stepped(call: str, deed: Deed) -> dict[str, Any]:
    """One of many fixed transforms: ``call`` says which one for the amount ``a``."""
    other = {"none": "", "negative": " for a in (a, -a)", "reciprocal": " for a in (a, 1 / a)"}[deed.opposite]
    return {"_target_": f"{_T}.OneOf", "transforms": f"$[{call} for a in @amounts({deed.low!r}, {deed.high!r}){other}]"}


def _call(target: str, arguments: str, keys: str = "@image") -> str:
    return f"{_T}.{target}({keys}, {arguments}, allow_missing_keys=True)"


def _mirror(deed: Deed, sides: Laterality | None) -> dict[str, Any]:
    flip = _all("Flipd", spatial_axis=list(deed.axes))
    if sides is None or sides.axis not in deed.axes:
        return flip
    swap = [v for pair in sides.pairs for v in pair], [v for a, b in sides.pairs for v in (b, a)]
    # the keys: image and label; the label alone changes
    labels = {"_target_": f"{_T}.MapLabelValued", "keys": "@label", "orig_labels": swap[0], "target_labels": swap[1],
              "allow_missing_keys": True}  # fmt: skip
    return {"_target_": f"{_T}.Compose", "transforms": [flip, labels]}


def _zoom(deed: Deed, dims: int) -> dict[str, Any]:
    arguments = f"scale_params=[a] * {dims}, mode=@modes, padding_mode='zeros'"
    return _stepped(_call("Affined", arguments, "@keys"), deed)


def _about(axes: tuple[int, ...], angle: Any, dims: int) -> list[Any]:
    """An angle, or a range, for the axis that a plane turns about; in 2D there is one angle."""
    if dims == 2:
        return [angle]
    return [angle if axis not in axes else 0.0 for axis in range(3)]


def _rotation(deed: Deed, dims: int) -> dict[str, Any]:
    low, high = math.radians(deed.low), math.radians(deed.high)
    ranges = [[-high, high]] if low == 0 else [[low, high], [-high, -low]]
    found = [
        _all("RandAffined", prob=1.0, rotate_range=_about(deed.axes, r, dims), mode="@modes", padding_mode="zeros")
        for r in ranges
    ]
    return found[0] if len(found) == 1 else _one_of(*found)


def _quarter(deed: Deed, dims: int) -> dict[str, Any]:
    angles = (math.pi / 2, -math.pi / 2)
    return _one_of(*(
        _all("Affined", rotate_params=_angles(deed.axes, a, dims), mode="@modes", padding_mode="zeros") for a in angles
    ))  # fmt: skip


def _angles(axes: tuple[int, ...], angle: float, dims: int) -> Any:
    return angle if dims == 2 else _about(axes, angle, dims)


def _gamma(deed: Deed, dims: int) -> dict[str, Any]:
    inverted = deed.what == "inverted_gamma"
    return _stepped(_call("AdjustContrastd", f"gamma=a, invert_image={inverted}, retain_stats=True"), deed)


def _shift(deed: Deed, dims: int) -> dict[str, Any]:
    low, high = float(deed.low), float(deed.high)
    if low == 0:
        return _random("RandShiftIntensityd", offsets=[-high, high])
    return _one_of(*(_random("RandShiftIntensityd", offsets=ends) for ends in ([low, high], [-high, -low])))


def _multiply(deed: Deed, dims: int) -> dict[str, Any]:
    return _stepped(_call("ScaleIntensityd", "minv=None, maxv=None, factor=a - 1"), deed)


def _contrast(deed: Deed, dims: int) -> dict[str, Any]:
    arguments = "prob=1.0, factors=(a - 1, a - 1), fixed_mean=True, preserve_range=True, channel_wise=True"
    return _stepped(_call("RandScaleIntensityFixedMeand", arguments), deed)


def _blur(deed: Deed, dims: int) -> dict[str, Any]:
    return _stepped(_call("Lambdad", "func=lambda x, a=a: @blurred(x, a)"), deed)


def _sharpen(deed: Deed, dims: int) -> dict[str, Any]:
    return _stepped(_call("Lambdad", "func=lambda x, a=a: @sharpened(x, a)"), deed)


def _noise(deed: Deed, dims: int) -> dict[str, Any]:
    if deed.low == 0:
        return _random("RandGaussianNoised", mean=0.0, std=float(deed.high), sample_std=True)
    return _stepped(_call("RandGaussianNoised", "prob=1.0, std=a, sample_std=False"), deed)


def _low_resolution(deed: Deed, dims: int) -> dict[str, Any]:
    down = "trilinear" if dims == 3 else "bilinear"
    return _random(
        "RandSimulateLowResolutiond",
        downsample_mode=down,
        upsample_mode="nearest-exact",
        zoom_range=[deed.low, deed.high],
    )


def _elastic(deed: Deed, dims: int) -> dict[str, Any]:
    low, high = float(deed.low), float(deed.high)
    if dims == 2:
        return _all("Rand2DElasticd", prob=1.0, spacing=[16, 16], magnitude_range=[low / 2, high / 2], mode="@modes",
                    padding_mode="zeros")  # fmt: skip
    # smoothing noise by a Gaussian of 5.4 voxels leaves 0.012 of its deviation
    return _all("Rand3DElasticd", prob=1.0, sigma_range=[5.4, 5.4], magnitude_range=[45 * low, 45 * high],
                mode="@modes", padding_mode="zeros")  # fmt: skip


def _bias(deed: Deed, dims: int) -> dict[str, Any]:
    # with coefficients up to 1 the field's deviation is 1.07 (in 2D 0.61), and here 0.23 (0.33) of the strength
    bound = round((deed.low + deed.high) / 2 / (4.6 if dims == 3 else 1.8), 6)
    return _random("RandBiasFieldd", degree=3, coeff_range=[-bound, bound])


def _gibbs(deed: Deed, dims: int) -> dict[str, Any]:
    # a ball of frequencies that is as large as the cube that this package keeps
    ratio = math.sqrt(2) * ((3 / (4 * math.pi)) ** (1 / 3) if dims == 3 else math.sqrt(1 / math.pi))
    return _random("RandGibbsNoised", alpha=[max(0.0, 1 - ratio * deed.high), 1 - ratio * deed.low])


def _channels(deed: Deed, dims: int) -> dict[str, Any]:
    return _stepped(_call("RandScaleIntensityd", "prob=1.0, factors=(1 / a - 1, a - 1), channel_wise=True"), deed)


_MAKERS: dict[str, Callable[[Deed, int], dict[str, Any]]] = {
    "identity": lambda deed, dims: _image("Identityd"), "scale": _zoom, "rotate": _rotation, "turn": _quarter,
    "gamma": _gamma, "inverted_gamma": _gamma, "brightness_add": _shift, "brightness_multiply": _multiply,
    "contrast": _contrast, "blur": _blur, "sharpen": _sharpen, "noise": _noise, "low_resolution": _low_resolution,
    "elastic": _elastic, "bias_field": _bias, "gibbs": _gibbs, "channel_scale": _channels,
}  # fmt: skip
