# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What augmenters share: noise and strength; those with a trunk also bounds and the random policy they start from."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monai_autoaug.augmenters.transformation import Transformation
from monai_autoaug.augmenters.trunk import PaperTrunk, QuarterTrunk
from monai_autoaug.errors import ConfigError
from monai_autoaug.precision import float32_region

__all__ = ["Augmenter", "TrunkAugmenter"]


class Augmenter(nn.Module):
    """Base of all learned augmenters: ``forward(image, noise) -> Transformation``, the identity at ``strength`` 0.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        noise_size: length of the noise vector that its networks see.
        draws: how many further normal numbers a sample needs.
        strength: where the buffer of that name starts, 0 (identity) to 1 (as learned).
    """

    kind: ClassVar[str]
    limits: ClassVar[Mapping[str, tuple[float, float]]]  # least and greatest value of each bound
    strength: Tensor

    def __init__(
        self, spatial_dims: int, in_channels: int, *, noise_size: int, draws: int = 0, strength: float = 1.0
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.noise_size, self.draws = spatial_dims, in_channels, noise_size, draws
        self.register_buffer("strength", torch.tensor(strength))

    def sample_noise(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise (B, noise_size + draws).

        Args:
            batch_size: B.
            generator: random numbers come from it, on its own device; None: torch's global one.
        """
        source = self.strength.device if generator is None else generator.device
        return torch.randn(batch_size, self.noise_size + self.draws, generator=generator, device=source).to(
            self.strength
        )

    @abstractmethod
    def forward(self, image: Tensor, noise: Tensor | None = None, *, spacing: Tensor | None = None) -> Transformation:
        """Predict one transformation a sample.

        Args:
            image: (B, C, D, H, W), normalised.
            noise: from `sample_noise`; None: drawn.
            spacing: (B, 3) in mm, which makes rotations act in physical space; None: voxels count as cubes.

        Returns:
            Transformations of volumes of the image's size; each depends on that sample and its noise alone
            (batch norm in ``fidelity="paper"`` aside).
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""

    @classmethod
    def check(cls, **bounds: object) -> None:
        """See that each bound is a number within ``limits``.

        Raises:
            ConfigError: one is not; the message names it.
        """
        for name, value in bounds.items():
            least, greatest = cls.limits[name]
            whole = isinstance(least, int)
            kind = int if whole else int | float
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= greatest:
                raise ConfigError(
                    f"{cls.kind}: {name} must be {'a whole number' if whole else 'a number'} between {least} and"
                    f" {greatest}, got {value!r}"
                )


class TrunkAugmenter(Augmenter):
    """Base of the augmenters whose parameters one head predicts from the features of a trunk, which they may share.

    Two parametrisations, both bounded and both the identity when fresh:

    - ``base="identity"``, the paper's: ``bound * tanh(G(x, z))`` with a zero-initialised last layer.
    - ``base="random"``, the default: ``strength * bound * tanh(a(x, z) + exp(tanh(b(x, z))) * atanh(u))``, a learned
      shift ``a`` and a learned spread ``b`` of the policy that draws every parameter uniformly within its bounds
      (``u`` is a function of the noise). With G = (a, b) = 0 it is that random policy; a spread below 0 pulls towards
      the identity, above 0 towards the bounds. ``strength`` is a buffer that starts at 0 (identity) and that a method
      raises to 1 while it warms up.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        fidelity: "default" (quarter-resolution trunk) or "paper" (the paper's full-resolution network).
        base: "random", "identity"; None: "random", or "identity" with ``fidelity="paper"``.
        noise_size: length of the noise vector that the trunk sees (128 in the paper).
        width: channels of the trunk.
        image_condition: whether the trunk looks at the image.
        trunk: a trunk to share with other augmenters; None: one of its own.
        parameters: how many uniform draws the random policy needs.

    Raises:
        ConfigError: unknown ``fidelity`` or ``base``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        fidelity: str = "default",
        base: str | None = None,
        noise_size: int = 128,
        width: int = 16,
        image_condition: bool = True,
        trunk: nn.Module | None = None,
        parameters: int,
    ) -> None:
        if fidelity not in ("default", "paper"):
            raise ConfigError(f"fidelity must be 'default' or 'paper', got {fidelity!r}")
        base = base or ("identity" if fidelity == "paper" else "random")
        if base not in ("random", "identity"):
            raise ConfigError(f"base must be 'random' or 'identity', got {base!r}")
        random = base == "random"
        super().__init__(
            spatial_dims, in_channels, noise_size=noise_size, draws=parameters if random else 0,
            strength=0.0 if random else 1.0,
        )  # fmt: skip
        self.fidelity, self.base = fidelity, base
        network = PaperTrunk if fidelity == "paper" else QuarterTrunk
        self.trunk = trunk if trunk is not None else network(
            spatial_dims, in_channels, noise_size=noise_size, width=width, image_condition=image_condition
        )  # fmt: skip
        self.tap: Callable[[Tensor], Tensor] = _untapped
        self._listeners: list[Callable[[Tensor], object]] = []

    def forward(self, image: Tensor, noise: Tensor | None = None, *, spacing: Tensor | None = None) -> Transformation:
        """See `Augmenter.forward`."""
        noise = self.sample_noise(len(image)) if noise is None else noise
        features = self.trunk(image, noise[:, : self.noise_size])
        return self.decode(features, noise, tuple(image.shape[2:]), spacing=spacing)

    @abstractmethod
    def decode(
        self, features: Tensor, noise: Tensor, shape: tuple[int, ...], *, spacing: Tensor | None = None
    ) -> Transformation:
        """Features of the trunk -> transformation of volumes of size ``shape``."""

    def common_options(self) -> dict[str, Any]:
        """Those arguments that all augmenters have."""
        trunk: Any = self.trunk
        return {
            "spatial_dims": self.spatial_dims, "in_channels": self.in_channels, "fidelity": self.fidelity,
            "base": self.base, "noise_size": self.noise_size, "width": trunk.width,
            "image_condition": trunk.image_condition,
        }  # fmt: skip

    def bounded(self, raw: Tensor, noise: Tensor) -> Tensor:
        """Squash the head's output to (-1, 1) around the random policy's draw, in float32.

        Args:
            raw: (B, n, ...) the head's output; with ``base="random"`` (B, 2n, ...): the shift, then the spread.
            noise: (B, noise_size + draws).
        """
        with float32_region(raw.device):
            raw = raw if raw.dtype == torch.float64 else raw.float()
            raw = self.tap(raw)
            if self.base == "random":
                z = noise[:, self.noise_size :].to(raw.dtype).view(len(noise), *self.draw_shape())
                shift, spread = raw.chunk(2, dim=1)
                raw = shift + spread.tanh().exp() * self.place(_prior(z), shift)
            unit = raw.tanh()
            for listener in self._listeners:
                listener(unit.detach())
            return self.strength * unit

    def register_squash_listener(self, listener: Callable[[Tensor], object]) -> Callable[[], None]:
        """Tell ``listener`` the squashed parameters in (-1, 1) of every forward; returns what takes it off again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @contextmanager
    def tapped(self, tap: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within the block, the head's output passes through ``tap``, which may measure or scale its gradient."""
        self.tap = tap
        try:
            yield
        finally:
            self.tap = _untapped

    def draw_shape(self) -> tuple[int, ...]:
        """Shape of the random policy's draws a sample."""
        return (self.draws,)

    def place(self, prior: Tensor, shift: Tensor) -> Tensor:
        """Bring the random policy's pre-activations to the shape of ``shift``."""
        return prior

    @property
    def outputs(self) -> int:
        """Values that the head has to give for each parameter: a shift and, around a random policy, a spread."""
        return 2 if self.base == "random" else 1


def _untapped(raw: Tensor) -> Tensor:
    """Nobody listens at the head's output."""
    return raw


def _prior(z: Tensor) -> Tensor:
    """Atanh of a uniform draw in (-1, 1) made from a standard normal one: tanh of it is uniform."""
    return torch.erf(z / math.sqrt(2)).mul(0.999).atanh()
