# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The rows: 15 cascades for training (62 entries, 47 operations), 84 operations at test time, and cascades beyond them.

Order and ranges are those of paper 002 as its authors meant them; its code's slips are behind ``compat`` in
`execution`. In 2D what needs a third axis is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from monai_autoaug.transforms import intensity, resolution, spatial
from monai_autoaug.transforms.registry import Cascade, Context, Operation

__all__ = ["PLANES", "extra_cascades", "operations_at_test_time", "training_cascades"]

# the paper's names of the planes of rotation; the same letters name the mirrors in another order
PLANES = {"rotF": (1, 2), "rotS": (0, 2), "rotL": (0, 1)}
AXES = "dhw"
# order of execution, which is not that of the catalogue: one affine map (rotS, rotL, rotF, scale), an elastic field,
# quarter turns, then noise, sharpness, brightness, contrast, resolution, gamma, and flips at the end
ORDER = {
    "rotS": 10, "rotL": 11, "rotF": 12, "scale": 13, "elastic": 15, "turn_rotF": 20, "turn_rotS": 21, "turn_rotL": 22,
    "bias_field": 30, "noise": 40, "sharpen": 50, "gibbs": 55, "badd": 60, "bmul": 61, "contrast": 70, "simulow": 80,
    "invgamma": 90, "gamma": 100, "channel_scale": 105, "mirrorS": 110, "mirrorF": 111, "mirrorA": 112,
}  # fmt: skip


def _values(function: Callable[..., Tensor], *wants: str) -> Callable[[Tensor, Tensor, Context], Tensor]:
    """A function of image and magnitude as a row wants it; ``wants`` are the parts of the context that it takes.

    Rows travel to worker processes, so what they hold can be pickled: no function within a function.
    """
    return partial(with_context, function, wants)


def with_context(
    function: Callable[..., Tensor], wants: tuple[str, ...], image: Tensor, magnitude: Tensor, context: Context
) -> Tensor:
    """A function of image and magnitude, and of the parts of the context that it ``wants``."""
    return function(image, magnitude, **{name: getattr(context, name) for name in wants})


def _back(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, magnitude: Tensor) -> Tensor:
    return function(x, -magnitude)


def _scale(low: float, high: float, **more: Any) -> Operation:
    return Operation(
        f"scale_{low:.2f}_{high:.2f}", "spatial", "matrix", spatial.zoom, low, high, "factor of the field of view",
        "reciprocal", 1.0, ORDER["scale"], moves_label=True, **more,
    )  # fmt: skip


def _rotate(name: str, low: float, high: float, **more: Any) -> Operation:
    plane = PLANES[name]
    return Operation(
        f"rotate_{_plane(plane)}_{low:g}_{high:g}", "spatial", "matrix", partial(spatial.rotation, plane=plane), low,
        high, "degrees", "negative", 0.0, ORDER[name], moves_label=True, **more,
    )  # fmt: skip


def _turn(name: str, degrees: float = 90.0, **more: Any) -> Operation:
    plane = PLANES[name]
    function = partial(spatial.half_turn if degrees == 180 else spatial.quarter_turn, plane=plane)
    return Operation(
        f"rotate_{_plane(plane)}_{degrees:g}", "spatial", "permutation", function, degrees, degrees, "degrees",
        "none" if degrees == 180 else "negative", None, ORDER[f"turn_{name}"], moves_label=True,
        inverse=partial(_back, function), matrix=partial(spatial.rotation, plane=plane),
        mirrors=plane if degrees == 180 else (), turns=None if degrees == 180 else plane, **more,
    )  # fmt: skip


def _flip(axes: tuple[int, ...], order: int, **more: Any) -> Operation:
    function = partial(spatial.flip, axes=axes)
    name = "flip_" + "".join(AXES[a] for a in axes)
    return Operation(
        name, "spatial", "permutation", function, unit="always", neutral=None, order=order, moves_label=True,
        inverse=function, mirrors=axes, **more,
    )  # fmt: skip


def _plane(plane: tuple[int, int]) -> str:
    return "".join(AXES[a] for a in plane)


def _intensity(cascade: str, low: float, high: float, **more: Any) -> Operation:
    """Rows of the cascades 7 to 11, by the paper's names."""
    function, name, unit = {
        "gamma": (_values(intensity.gamma, "reference", "compat"), "gamma", "exponent"),
        "invgamma": (_values(intensity.inverted_gamma, "reference", "compat"), "inverted_gamma", "exponent"),
        "badd": (_values(intensity.add), "brightness_add", "standard deviations"),
        "bmul": (_values(intensity.multiply), "brightness_multiply", "factor"),
        "contrast": (_values(intensity.contrast, "reference"), "contrast", "factor"),
    }[cascade]
    shifts = cascade == "badd"
    return Operation(
        f"{name}_{low:.2f}_{high:.2f}", "intensity", "values", function, low, high, unit,
        "negative" if shifts else "reciprocal", 0.0 if shifts else 1.0, ORDER[cascade], moves_reference=True, **more,
    )  # fmt: skip


def _blur(low: float, high: float, **more: Any) -> Operation:
    function = _values(partial(resolution.blur, largest=high))
    return Operation(
        f"blur_{low:.1f}_{high:.1f}", "resolution", "values", function, low, high, "sigma in voxels",
        order=ORDER["sharpen"], **more,
    )  # fmt: skip


def _sharpen(low: float, high: float, **more: Any) -> Operation:
    function = _values(partial(resolution.sharpen, largest=high), "reference")
    return Operation(
        f"sharpen_{low:.1f}_{high:.1f}", "resolution", "values", function, low, high, "sigma in voxels",
        neutral=float("inf"), order=ORDER["sharpen"], **more,
    )  # fmt: skip


def _noise(low: float, high: float, **more: Any) -> Operation:
    function = _values(intensity.add_noise, "generator", "noise")
    return Operation(
        f"noise_{low:.3f}_{high:.3f}", "noise", "values", function, low, high, "standard deviations",
        order=ORDER["noise"], **more,
    )  # fmt: skip


def _low_resolution(low: float, high: float, **more: Any) -> Operation:
    return Operation(
        f"low_resolution_{low:.1f}_{high:.1f}", "resolution", "values", _values(resolution.low_resolution), low, high,
        "fraction of the voxels along each axis", neutral=1.0, order=ORDER["simulow"], **more,
    )  # fmt: skip


def _ranges(start: float, step: float, count: int) -> list[tuple[float, float]]:
    return [(round(start + i * step, 6), round(start + (i + 1) * step, 6)) for i in range(count)]


def _cascade(name: str, place: int | None, operations: list[Operation]) -> Cascade:
    rows = [Operation("identity"), *operations]
    return Cascade(name, tuple(replace(r, cascade=name, cascade_index=place, index=i) for i, r in enumerate(rows)))


@lru_cache(maxsize=2)
def training_cascades(spatial_dims: int = 3) -> tuple[Cascade, ...]:
    """The paper's cascades in its order: 15 in 3D; 12 in 2D, without rotF, rotS and mirrorA.

    >>> [len(cascade) for cascade in training_cascades()]
    [6, 5, 5, 5, 2, 2, 2, 4, 4, 4, 4, 4, 7, 4, 4]
    """
    rotations = {n: [_rotate(n, *ends) for ends in _ranges(0, 10, 3)] + [_turn(n)] for n in PLANES}
    mirrors = {n: [_flip((axis,), ORDER[n])] for axis, n in enumerate(("mirrorS", "mirrorF", "mirrorA"))}
    rows: dict[str, list[Operation]] = {
        "scale": [_scale(*ends) for ends in _ranges(1, 0.1, 5)],
        **rotations,
        **mirrors,
        **{n: [_intensity(n, *ends) for ends in _ranges(1, 0.2, 3)] for n in ("gamma", "invgamma")},
        "badd": [_intensity("badd", *ends) for ends in _ranges(0, 0.1, 3)],
        **{n: [_intensity(n, *ends) for ends in _ranges(1, 0.1, 3)] for n in ("bmul", "contrast")},
        "sharpen": [_blur(*e) for e in _ranges(0.4, 0.2, 3)] + [_sharpen(*e) for e in _ranges(0.4, 0.2, 3)[::-1]],
        "noise": [_noise(*ends) for ends in _ranges(0, 0.05, 3)],
        "simulow": [_low_resolution(*ends) for ends in _ranges(0.4, 0.2, 3)[::-1]],
    }
    absent = () if spatial_dims == 3 else ("rotF", "rotS", "mirrorA")
    return tuple(_cascade(n, place, r) for place, (n, r) in enumerate(rows.items()) if n not in absent)


@lru_cache(maxsize=1)
def extra_cascades() -> dict[str, Cascade]:
    """Cascades beyond the paper, by name: elastic, bias_field, gibbs, channel_scale.

    >>> list(extra_cascades())
    ['elastic', 'bias_field', 'gibbs', 'channel_scale']
    """
    bias = _values(intensity.bias_field, "generator")
    channels = _values(intensity.scale_channels, "generator")
    ringing = _values(resolution.gibbs)
    rows = {
        "elastic": [
            Operation(f"elastic_{a:g}_{b:g}", "spatial", "field", spatial.elastic, a, b, "voxels", moves_label=True)
            for a, b in ((0, 2), (2, 4), (4, 6))
        ],
        "bias_field": [
            Operation(f"bias_field_{a:g}_{b:g}", "intensity", "values", bias, a, b, "logarithm of the field")
            for a, b in _ranges(0, 0.2, 3)
        ],
        "gibbs": [
            Operation(f"gibbs_{a:g}_{b:g}", "resolution", "values", ringing, a, b, "kept frequencies", neutral=1.0)
            for a, b in _ranges(0.4, 0.2, 3)[::-1]
        ],
        "channel_scale": [
            Operation(f"channel_scale_{a:g}_{b:g}", "intensity", "values", channels, a, b, "factor", neutral=1.0)
            for a, b in _ranges(1, 0.1, 3)
        ],
    }  # fmt: skip
    return {n: _cascade(n, None, [replace(r, order=ORDER[n]) for r in some]) for n, some in rows.items()}


def _fixed(operation: Operation, value: float, name: str) -> Operation:
    """A row whose magnitude is one number, which at test time is not drawn."""
    return replace(operation, name=name, low=value, high=value, opposite="none")


@lru_cache(maxsize=2)
def operations_at_test_time(spatial_dims: int = 3) -> tuple[Operation, ...]:
    """The paper's operations at test time in its order, ``index`` being that order: 84 in 3D; 64 in 2D.

    >>> len(operations_at_test_time()), [o.name for o in operations_at_test_time()[29:32]]
    (84, ['flip_d', 'flip_h', 'flip_w'])
    """
    rows = [Operation("identity")]

    def pairs(name: str, make: Callable[[float, float], Operation], values: tuple[float, ...], signed: bool) -> None:
        for v in values:
            for value in (v, -v if signed else 1 / v):
                rows.append(_fixed(make(v, v), value, f"{name}_{value:+g}" if signed else f"{name}_{value:.3g}"))

    pairs("scale", _scale, (1.05, 1.15, 1.25, 1.35, 1.45), False)
    for name, plane in PLANES.items():
        pairs(f"rotate_{_plane(plane)}", partial(_rotate, name), (5, 15, 25), True)
    rows += [_flip((axis,), 0) for axis in range(3)]
    for name, plane in PLANES.items():
        for value in (90.0, -90.0, 180.0):
            turn = _turn(name, abs(value))
            rows.append(_fixed(turn, value, f"rotate_{_plane(plane)}_{value:+g}" if value != 180 else turn.name))
    for name in ("gamma", "invgamma"):
        pairs("inverted_gamma" if name == "invgamma" else name, partial(_intensity, name), (1.1, 1.3, 1.5), False)
    pairs("brightness_add", partial(_intensity, "badd"), (0.05, 0.15, 0.25), True)
    pairs("brightness_multiply", partial(_intensity, "bmul"), (1.05, 1.15, 1.25), False)
    pairs("contrast", partial(_intensity, "contrast"), (1.05, 1.15, 1.25), False)
    singles: tuple[tuple[str, Callable[[float, float], Operation], tuple[float, ...]], ...] = (
        ("blur", _blur, (0.5, 0.7, 0.9)),
        ("sharpen", _sharpen, (0.9, 0.7, 0.5)),
        ("noise", _noise, (0.025, 0.075, 0.125)),
        ("low_resolution", _low_resolution, (0.9, 0.7, 0.5)),
    )
    rows += [_fixed(make(v, v), v, f"{name}_{v:g}") for name, make, values in singles for v in values]
    rows.append(_flip((0, 1, 2), 0))
    numbered = [replace(r, index=i) for i, r in enumerate(rows)]
    flat = {*range(17, 23), *range(11, 17), 31, *range(32, 38), 83} if spatial_dims == 2 else set()
    return tuple(r for r in numbered if r.index not in flat)
