# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Views at test time as MONAI transforms of one image (C, D, H, W), and what brings a prediction back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from monai_autoaug.policies.export.plan import Deed, Plan
from monai_autoaug.policies.laterality import Laterality

__all__ = ["test_time_config", "view_transform", "way_back"]

_UNSEEN = 1e-3  # of the weights, as when this package predicts
_PLAIN = "monai.utils.convert_to_tensor({}, track_meta=False)"


def test_time_config(found: Plan) -> dict[str, Any]:
    """The section ``test_time``: the views, and ``predict``, which takes images (B, C, ...) and a network.

    >>> from monai_autoaug.policies import Policies, TestTimePolicy
    >>> from monai_autoaug.policies.export.plan import plan
    >>> test_time_config(plan(Policies(test_time=TestTimePolicy.preset("nnunet"))))["views"][1]["transform"]
    {'_target_': 'monai.transforms.Flip', 'spatial_axis': [0]}
    """
    policy = found.test_time
    assert policy is not None  # noqa: S101  # for the type checker: there are views
    views = [
        {
            "name": view.operation.name, "weight": round(view.weight, 9),
            "transform": view_transform(view.deed, found.spatial_dims),
            "inverse": way_back(view.deed, found.spatial_dims, policy.laterality),
        }
        for view in found.views
    ]  # fmt: skip
    average = {"logits": "y", "probabilities": "y.sigmoid()" if policy.regions else "y.softmax(1)"}[policy.average]
    seen = f"torch.stack([{_PLAIN.format('''view['transform'](x)''')} for x in image])"
    back = f"torch.stack([{_PLAIN.format('''view['inverse'](y)''')} for y in @test_time::output(network(seen))])"
    covered = _PLAIN.format("view['inverse'](torch.ones_like(seen[0][:1]))")
    return {
        "views": views,
        "output": f"$lambda y: (lambda y: {average})((y[0] if isinstance(y, (list, tuple)) else y).float())",
        "one": f"$lambda view, image, network: (lambda seen: ({back}, {covered}))({seen})",
        # what no view has seen is predicted as it is
        "average": (
            "$lambda parts, plain: (lambda total, seen: (lambda blind: (total + blind * plain()) / (seen + blind)"
            f" if bool(blind.any()) else total / seen)((seen < {_UNSEEN}).to(seen)))"
            "(sum(w * y for w, (y, _) in parts), sum(w * c for w, (_, c) in parts))"
        ),
        "predict": (
            "$lambda image, network: (lambda image: @test_time::average([(view['weight'], @test_time::one(view, image,"
            " network)) for view in @test_time::views], lambda: @test_time::output(network(image))))"
            f"({_PLAIN.format('image')})"
        ),
    }  # fmt: skip


def view_transform(deed: Deed, dims: int) -> dict[str, Any]:
    """What makes a view of an image.

    >>> view_transform(Deed("brightness_add", (), 0.05, 0.05), 3)
    {'_target_': 'monai.transforms.ShiftIntensity', 'offset': 0.05}
    """
    amount, what = float(deed.low), deed.what
    if what in ("scale", "rotate"):
        arguments = ", ".join(f"{k}={v!r}" for k, v in _affine(deed, dims).items() if k != "_target_")
        move = f"$lambda x, move=monai.transforms.Affine({arguments}): @on_darkest(x, move)"
        return {"_target_": "monai.transforms.Lambda", "func": move}
    if what == "flip":
        return {"_target_": "monai.transforms.Flip", "spatial_axis": list(deed.axes)}
    if what == "turn":
        return _turn(deed, amount)
    linear = "trilinear" if dims == 3 else "bilinear"
    named: dict[str, tuple[str, dict[str, Any]]] = {
        "identity": ("Identity", {}),
        "gamma": ("AdjustContrast", {"gamma": amount, "retain_stats": True}),
        "inverted_gamma": ("AdjustContrast", {"gamma": amount, "retain_stats": True, "invert_image": True}),
        "brightness_add": ("ShiftIntensity", {"offset": amount}),
        "brightness_multiply": ("ScaleIntensity", {"minv": None, "maxv": None, "factor": amount - 1}),
        "contrast": ("ScaleIntensityFixedMean", {"factor": amount - 1, "preserve_range": True, "channel_wise": True}),
        "blur": ("Lambda", {"func": f"$lambda x: @blurred(x, {amount!r})"}),
        "sharpen": ("Lambda", {"func": f"$lambda x: @sharpened(x, {amount!r})"}),
        "noise": ("RandGaussianNoise", {"prob": 1.0, "std": amount, "sample_std": False}),
        "low_resolution": ("RandSimulateLowResolution", {
            "prob": 1.0, "downsample_mode": linear, "upsample_mode": "nearest-exact", "zoom_range": [amount, amount],
        }),
    }  # fmt: skip
    target, options = named[what]
    return {"_target_": f"monai.transforms.{target}", **options}


def way_back(deed: Deed, dims: int, sides: Laterality | None) -> dict[str, Any]:
    """What moves a prediction (K, ...) of a view to where it belongs.

    Args:
        deed: what the view does.
        dims: spatial dimensions.
        sides: channels that change places when left and right do.

    >>> way_back(Deed("gamma", (), 1.1, 1.1), 3, None)
    {'_target_': 'monai.transforms.Identity'}
    """
    if deed.what in ("scale", "rotate"):
        opposite = 1 / deed.low if deed.what == "scale" else -deed.low
        return _affine(replace(deed, low=opposite), dims)
    if deed.what == "turn":
        return _turn(deed, -float(deed.low))
    if deed.what != "flip":
        return {"_target_": "monai.transforms.Identity"}
    flip = view_transform(deed, dims)
    if sides is None or sides.axis not in deed.axes:
        return flip
    other = {v: w for a, b in sides.pairs for v, w in ((a, b), (b, a))}
    # one channel is not a prediction, but the mask of what was seen
    swap = f"$lambda y: y if len(y) == 1 else y[[{other}.get(k, k) for k in range(len(y))]]"
    return {
        "_target_": "monai.transforms.Compose",
        "transforms": [flip, {"_target_": "monai.transforms.Lambda", "func": swap}],
    }


def _turn(deed: Deed, amount: float) -> dict[str, Any]:
    """A quarter turn, exact."""
    quarters = round(amount / 90) * (-1 if deed.axes == (0, 2) else 1)
    return {"_target_": "monai.transforms.Rotate90", "k": quarters % 4, "spatial_axes": list(deed.axes)}


def _affine(deed: Deed, dims: int) -> dict[str, Any]:
    """A zoom or rotation that keeps the size; MONAI's angles are in radians and count the other way."""
    amount = float(deed.low)
    if deed.what == "scale":
        how: dict[str, Any] = {"scale_params": [amount] * dims}
    else:
        angle = -math.radians(amount)
        how = {"rotate_params": angle if dims == 2 else [0.0 if a in deed.axes else angle for a in range(3)]}
    return {"_target_": "monai.transforms.Affine", **how, "padding_mode": "zeros", "image_only": True}
