# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What tells that an augmenter has collapsed: to the identity, to its bounds, or to one transformation for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monai_autoaug.augmenters import Transformation, TrunkAugmenter

__all__ = [
    "WARN_ABOVE", "WARN_BELOW", "collapse_figures", "collapse_warnings", "magnitude_figures", "noise_share",
]  # fmt: skip

# figure -> the value beyond which a run warns; the pictures of a run draw the same limits
WARN_BELOW = {"noise_share": 0.3, "jacobian_minimum": 0.0, "displacement_mean": 0.05, "additive_mean": 0.005}
WARN_ABOVE = {"saturation": 0.3, "translation_share": 0.8, "discriminator_accuracy": 0.95}


def _parameters(t: Transformation) -> Tensor:
    """The transformation's deviation from the identity, flat (B, n)."""
    if t.matrix is not None:
        d = t.matrix.shape[1]
        return (t.matrix - torch.eye(d, d + 1).to(t.matrix)).flatten(1)
    found = t.displacement if t.displacement is not None else t.additive
    assert found is not None  # noqa: S101  # every augmenter predicts one of the three
    return found.flatten(1)


def noise_share(t: Transformation) -> float:
    """Share of the variation that is due to noise, in [0, 1]: deviation over samples of ONE image / root mean square.

    >>> noise_share(Transformation((2, 2, 2), additive=torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)))
    1.0
    """
    values = _parameters(t).float()
    total = values.square().mean().sqrt()
    spread = (values - values.mean(0)).square().mean().sqrt()
    return float(spread / total) if float(total) > 0 else 0.0


@torch.no_grad()
def collapse_figures(augmenter: TrunkAugmenter, image: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Figures of one augmenter, named ``<kind>_<figure>``, over eight noise vectors and one image.

    Args:
        augmenter: in any mode; looked at in evaluation mode and put back.
        image: (1, C, D, H, W), with its margin.
        generator: random numbers of the noise.

    Returns:
        What the generator does to the random policy, ``shift`` (root mean square before tanh) and ``spread`` (mean
        factor, 1 as it starts), and ``learned_share``, the `noise_share` over noise vectors of one and the same draw
        of that policy; ``noise_share`` over all of them; ``saturation`` (share of parameters beyond 0.95 of their
        bound, 0.05 for a uniform draw); and every figure of `Transformation.magnitude`: the mean over samples, but the
        smallest ``jacobian_minimum`` and the largest ``displacement_max``.
    """
    training = augmenter.training
    augmenter.eval()
    saturated: list[Tensor] = []
    listen = augmenter.register_squash_listener(saturated.append)
    noise = augmenter.sample_noise(8, generator)
    t = augmenter(image.expand(8, *image.shape[1:]), noise)
    listen()
    augmenter.train(training)
    figures = {"noise_share": noise_share(t), "saturation": float((saturated[0].abs() > 0.95).float().mean())}
    if augmenter.base == "random" and t.deviation is not None:
        shift, spread = t.deviation.float().chunk(2, dim=1)
        figures |= {"shift": float(shift.square().mean().sqrt()), "spread": float(spread.tanh().exp().mean())}
        same = torch.cat([noise[:, : augmenter.noise_size], noise[:1, augmenter.noise_size :].expand(8, -1)], dim=1)
        figures["learned_share"] = noise_share(augmenter(image.expand(8, *image.shape[1:]), same))
    figures |= magnitude_figures(t)
    return {f"{augmenter.kind}_{name}": value for name, value in figures.items()}


def magnitude_figures(t: Transformation) -> dict[str, float]:
    """`Transformation.magnitude` over samples: the mean, but the smallest Jacobian and the largest displacement.

    >>> magnitude_figures(Transformation((2, 2, 2), additive=torch.tensor([1.0, -2.0]).view(2, 1, 1, 1, 1)))
    {'additive_mean': 1.5}
    """
    picks = {"jacobian_minimum": torch.amin, "displacement_max": torch.amax}
    return {name: float(picks.get(name, torch.mean)(value)) for name, value in t.magnitude().items()}


def collapse_warnings(figures: Mapping[str, float], kinds: Sequence[str]) -> list[str]:
    """Sentences for a user: which augmenter has collapsed, and how it is seen.

    >>> collapse_warnings({"affine_noise_share": 0.1}, ["affine"])[0][:48]
    'affine: all samples of an image are nearly alike'
    """
    found = []
    for kind in kinds:
        got = {n.removeprefix(f"{kind}_"): v for n, v in figures.items() if n.startswith(f"{kind}_")}
        if got.get("noise_share", 1.0) < WARN_BELOW["noise_share"]:
            found.append(
                f"{kind}: all samples of an image are nearly alike (noise makes {got['noise_share']:.0%} of the"
                f" variation; below {WARN_BELOW['noise_share']:.0%} the augmenter is one fixed transformation)"
            )
        if got.get("saturation", 0.0) > WARN_ABOVE["saturation"]:
            found.append(f"{kind}: {got['saturation']:.0%} of its parameters are at their bounds")
        if got.get("translation_share", 0.0) > WARN_ABOVE["translation_share"]:
            found.append(f"{kind}: the field is a translation to {got['translation_share']:.0%}")
        if got.get("jacobian_minimum", 1.0) <= WARN_BELOW["jacobian_minimum"]:
            found.append(f"{kind}: the field folds (smallest Jacobian determinant {got['jacobian_minimum']:.2f})")
        measure = "displacement_mean" if "displacement_mean" in got else "additive_mean"
        size = got.get(measure, 1.0)
        if size < WARN_BELOW[measure]:
            found.append(f"{kind}: it has collapsed to the identity (mean magnitude {size:.3f})")
    if figures.get("discriminator_accuracy", 0.5) > WARN_ABOVE["discriminator_accuracy"]:
        found.append(
            f"the discriminator is right in {figures['discriminator_accuracy']:.0%} of the cases: it no longer tells"
            " the generators anything"
        )
    return found
