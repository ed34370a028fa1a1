# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Left and right in the MONAI host: which labels are each other's mirror image, and along which axis of the patches.

Preprocessing brings all volumes into one orientation, and that says which axis runs between left and right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from monai_autoaug.errors import ConfigError
from monai_autoaug.policies import Laterality, TestTimePolicy, TrainingPolicy, lateral_pairs, left_right_axis

__all__ = ["find_sides", "sides_warning"]


def find_sides(
    given: Any,
    names: Sequence[str] = (),
    *,
    orientation: str | None = None,
    values: Sequence[int] | None = None,
    regions: bool = False,
    spatial_dims: int = 3,
) -> Laterality | None:
    """What the option ``laterality`` means for patches whose orientation is known.

    Args:
        given: pairs of labels, by name or value; or a table of ``pairs``, ``mirrors`` ("swap" the labels or leave such
            operations "off") and ``axis`` (instead of what the orientation says); a `Laterality`; or nothing.
        names: of the label's values from 0 on; of regions "background" and theirs.
        orientation: the directions in which the patches' axes increase, such as "RAS"; None: it isn't known.
        values: the data set's label values, which are numbered from 0 on in a patch; None: they are so already.
        regions: labels are regions, which go by their names only.
        spatial_dims: 2 or 3.

    Returns:
        None where there are no sides: nothing is given, or slices are sagittal.

    Raises:
        ConfigError: a label is unknown, or the axis.

    >>> find_sides([["lung left", "lung right"]], ["background", "lung right", "lung left"], orientation="SAR")
    Laterality(pairs=((2, 1),), axis=2, mirrors='swap')
    """
    if not given or isinstance(given, Laterality):
        return Laterality.of(given or None, spatial_dims)
    options = dict(given) if isinstance(given, Mapping) else {"pairs": given}
    if unknown := sorted(set(options) - {"pairs", "mirrors", "axis"}):
        raise ConfigError(f"laterality: there are pairs, mirrors and axis, got {', '.join(map(str, unknown))}")
    if options.get("mirrors") is False:  # YAML takes the word off for false
        options["mirrors"] = "off"
    if "axis" not in options:
        if orientation is None:
            raise ConfigError(
                "laterality: which axis of the patches runs between left and right? Give orientation (such as RAS), or"
                " axis beside pairs"
            )
        if spatial_dims == 2 and not set("LR") & set(orientation.upper()):
            return None
        options["axis"] = left_right_axis(orientation)
    pairs = options.get("pairs")
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise ConfigError(f"laterality: pairs must be such as [[1, 2]] or [[left lung, right lung]], got {pairs!r}")
    options["pairs"] = tuple(tuple(_channel(label, names, values, regions) for label in pair) for pair in pairs)
    return Laterality.of(Laterality(**options), spatial_dims)


def _channel(label: Any, names: Sequence[str], values: Sequence[int] | None, regions: bool) -> int:
    """The channel of a label."""
    if label in names:
        return list(names).index(label) - regions
    if isinstance(label, int) and not isinstance(label, bool) and not regions:
        if values is None:
            return label
        if label in values:
            return list(values).index(label)
    known = ", ".join(names) if regions or values is None else ", ".join([*names, *map(str, values)])
    raise ConfigError(f"laterality: there is no label {label!r}{f'; there are {known}' if known else ''}")


def sides_warning(
    policies: Mapping[str, nn.Module], names: Sequence[str], *, orientation: str | None = None
) -> str | None:
    """That labels look like left and right, where a policy may mirror without knowing of it; None where all is well.

    Args:
        policies: of the method.
        names: see `find_sides`.
        orientation: see `find_sides`.

    >>> labels = ["background", "left lung", "right lung"]
    >>> sides_warning({"training": TrainingPolicy.preset("nnunet")}, labels)[:57]
    'the labels left lung and right lung look like left and ri'
    """
    pairs = lateral_pairs({name: k for k, name in enumerate(names)})
    if not pairs or not any(_may_mirror(policy, orientation) for policy in policies.values()):
        return None
    listed = "; ".join(f"{names[a]} and {names[b]}" for a, b in pairs)
    wanted = ", ".join(f"[{names[a]}, {names[b]}]" for a, b in pairs)
    return (
        f"the labels {listed} look like left and right of one structure, and mirroring exchanges them: set the method's"
        f" option laterality to [{wanted}], or leave out what mirrors (option without)"
    )


def _may_mirror(policy: nn.Module, orientation: str | None) -> bool:
    """Whether a policy that knows of no sides has an operation that exchanges them, or may."""
    if isinstance(policy, TrainingPolicy):
        operations = [o for c in policy.cascades for o in c.operations]
    elif isinstance(policy, TestTimePolicy):
        operations = list(policy.operations)
    else:
        return False
    if policy.laterality is not None:
        return False
    if orientation is not None and not set("LR") & set(orientation.upper()):
        return False  # sagittal slices
    axis = None if orientation is None else left_right_axis(orientation)
    return any(o.mirrors is None or (o.mirrors if axis is None else axis in o.mirrors) for o in operations)
