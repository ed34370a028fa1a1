# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How intensities are normalised: by the training set (CT) or by each image itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from monai_autoaug.errors import ConfigError

__all__ = ["NORMALISATIONS", "Scheme", "choose_schemes"]

Scheme = Literal["ct", "zscore", "percentile"]
NORMALISATIONS = ("auto", "ct", "zscore", "percentile")


def choose_schemes(normalisation: str | Sequence[str], channels: Sequence[str]) -> tuple[Scheme, ...]:
    """The normalisation of each channel.

    Args:
        normalisation: "ct", "zscore", "percentile", or "auto": "ct" where a channel's name is CT, else "zscore"; one
            for all channels, or one a channel.
        channels: their names.

    Raises:
        ConfigError: another word, or another number of them.

    >>> choose_schemes("auto", ["CT", "PET"]), choose_schemes(["zscore", "auto"], ["CT", "CT"])
    (('ct', 'zscore'), ('zscore', 'ct'))
    """
    words = (normalisation,) if isinstance(normalisation, str) else tuple(normalisation)
    if len(words) == 1:
        words *= len(channels)
    if len(words) != len(channels) or not set(words) <= set(NORMALISATIONS):
        raise ConfigError(
            f"normalisation must be {', '.join(NORMALISATIONS[:-1])} or {NORMALISATIONS[-1]}, one for all channels or"
            f" one for each of {', '.join(channels)}; got {', '.join(str(w) for w in words) or 'nothing'}"
        )
    named: list[Scheme] = ["ct" if c.strip().lower() == "ct" else "zscore" for c in channels]
    chosen: dict[str, Scheme] = {"ct": "ct", "zscore": "zscore", "percentile": "percentile"}
    return tuple(chosen.get(w, n) for w, n in zip(words, named, strict=True))
