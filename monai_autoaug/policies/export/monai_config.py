# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies as a configuration of MONAI transforms, which `monai.bundle.ConfigParser` instantiates."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any

import yaml

from monai_autoaug.policies.export.monai_rows import FUNCTIONS, MOVING, STEPS, dictionary_transform
from monai_autoaug.policies.export.monai_views import test_time_config
from monai_autoaug.policies.export.plan import Deed, Exported, Plan, amounts

__all__ = ["to_monai"]

_WIDTH = 118
_USAGE = """\
    parser = monai.bundle.ConfigParser(monai.bundle.ConfigParser.load_config_file(FILE))
    augment = parser.get_parsed_content("training")  # of dictionaries: "image" and "label" (C, D, H, W)"""
_USAGE_VIEWS = """\
    predict = parser.get_parsed_content("test_time::predict")  # an inferer: predict(images (B, C, D, H, W), network)"""


def to_monai(found: Plan) -> Exported:
    """A bundle-style YAML file: ``training`` is a transform of dictionaries, ``test_time::predict`` averages the views.

    >>> from monai_autoaug.policies import Policies, TrainingPolicy
    >>> from monai_autoaug.policies.export.plan import plan
    >>> config = yaml.safe_load(to_monai(plan(Policies(TrainingPolicy.preset("nnunet")))).text)
    >>> config["policies"][0]["transforms"][0]["weights"]
    [0.9, 0.025, 0.025, 0.025, 0.025]
    """
    content: dict[str, Any] = {}
    uses, limits = [], []
    if found.training is not None:
        content |= _training(found)
        uses.append(_USAGE)
        limits += _training_limits(found)
    if found.test_time is not None:
        content["test_time"] = test_time_config(found)
        uses.append(_USAGE_VIEWS)
        limits += _view_limits(found)
    body = yaml.dump(
        _functions(content) | content,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=_WIDTH,
        allow_unicode=True,
    )
    if "operations" in content:
        body = _commented(body, found)
    return Exported("\n".join([*_head(uses, limits), body]), tuple(limits))


def _quoted(value: Any) -> Any:
    """Expressions with double quotes, which YAML leaves as they are."""
    if isinstance(value, dict):
        return {k: _quoted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_quoted(v) for v in value]
    return value.replace("'", '"') if isinstance(value, str) and value.startswith("$") else value


class _Dumper(yaml.SafeDumper):
    """Without anchors: what is the same is written again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _head(uses: Iterable[str], limits: Iterable[str]) -> list[str]:
    """The comment above the configuration."""
    lines = ["A learned augmentation policy for MONAI, written by monai_autoaug, which it does not need.", ""]
    lines += [*"\n".join(uses).splitlines(), "", "What to know, and what is otherwise than in monai_autoaug:", ""]
    for limit in limits:
        lines += textwrap.wrap(limit, _WIDTH - 4, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
    return [f"# {line}".rstrip() for line in lines] + [""]


def _functions(content: dict[str, Any]) -> dict[str, Any]:
    """Those that are called, and those that they call."""
    needed: set[str] = set()
    text = str(content)
    while True:
        more = {name for name in FUNCTIONS if re.search(rf"@{name}\b", text)} - needed
        if not more:
            found = {name: function for name, function in FUNCTIONS.items() if name in needed}
            return ({"imports": ["$import functools"]} if "filtered" in found else {}) | found
        needed |= more
        text = " ".join(FUNCTIONS[name] for name in more)


def _training(found: Plan) -> dict[str, Any]:
    """Operations, a pipeline for each class, and what chooses between these."""
    content: dict[str, Any] = {
        "image": "image", "label": "label", "keys": ["@image", "@label"], "modes": ["bilinear", "nearest"],
        "operations": {
            name: dictionary_transform(deed, found.spatial_dims, found.laterality)
            for name, deed in {"identity": Deed("identity"), **found.operations}.items()
        },
        "policies": [_pipeline(found, place, name) for place, name in enumerate(found.classes)],
    }  # fmt: skip
    typed = {
        "_target_": "monai.transforms.EnsureTyped",
        "keys": "@keys",
        "dtype": "$torch.float32",
        "allow_missing_keys": True,
    }
    if len(found.classes) == 1:
        return content | {"training": {"_target_": "monai.transforms.Compose", "transforms": [typed, "@policies::0"]}}
    centre = "d[@label][(0, *(n // 2 for n in d[@label].shape[1:]))]"
    value = f"int({centre} > 0)" if found.classes == ("background", "foreground") else f"max(int({centre}), 0)"
    steps: list[Any] = [typed, f"$lambda d: {{**d, 'policy': range({len(found.classes)})[{value}]}}"]
    for place in range(len(found.classes)):
        hidden = f"(k + '/hidden' if k in @keys and d['policy'] != {place} else k)"
        steps += [f"$lambda d: {{{hidden}: v for k, v in d.items()}}", f"@policies::{place}",
                  "$lambda d: {(k[:-7] if str(k).endswith('/hidden') else k): v for k, v in d.items()}"]  # fmt: skip
    steps.append({"_target_": "monai.transforms.DeleteItemsd", "keys": "policy"})
    return content | {"training": {"_target_": "monai.transforms.Compose", "transforms": steps}}


def _pipeline(found: Plan, place: int, name: str) -> dict[str, Any]:
    """One class's cascades, one after the other."""
    cascades: list[Any] = []
    for slot in found.slots:
        rows = [row for row in slot.rows if row.probabilities[place] > 0]
        cascades.append({
            "_target_": "monai.transforms.OneOf", "_desc_": slot.name,
            "weights": [row.probabilities[place] for row in rows],
            "transforms": [f"%operations::{row.operation.name}" for row in rows],
        })  # fmt: skip
    return {"_target_": "monai.transforms.Compose", "_desc_": name, "transforms": cascades}


def _commented(body: str, found: Plan) -> str:
    """The configuration with a comment on each operation."""
    units = {row.operation.name: row.operation.unit for slot in found.slots for row in slot.rows}
    for name, deed in found.operations.items():
        told = amounts(deed, units[name])
        body = body.replace(f"\n  {name}:", f"\n  # {told}\n  {name}:", 1) if told else body
    return body


def _training_limits(found: Plan) -> list[str]:
    whats = found.whats()
    limits = [
        "axes are counted 0, 1, 2 as in the arrays that the policy was learned on, whatever the orientation",
        "images must be normalised as they were when the policy was learned: amounts of brightness and noise are"
        " standard deviations of the image",
        "image and label come out as float32",
        "lambdas can't be sent to worker processes that are spawned: fork them, or use threads (ThreadDataLoader)",
    ]
    if whats & set(MOVING):
        limits += _spatial_limits(found)
    stepped = [
        deed.what for deed in found.operations.values() if "@amounts" in str(dictionary_transform(deed, 3, None))
    ]
    if stepped:
        limits.append(f"{_told(stepped)}: one of {STEPS} equally probable amounts of the range (or their opposites),"
                      " not any of it")  # fmt: skip
    limits += [
        f"{_told(w for w in kinds if w in whats)}: {told}" for kinds, told in _OTHERWISE.items() if whats & set(kinds)
    ]
    return limits


def _told(whats: Iterable[str]) -> str:
    """Each of them once, in words."""
    return ", ".join(what.replace("_", " ") for what in dict.fromkeys(whats))


# what MONAI's own transforms do otherwise
_OTHERWISE = {
    (
        "gamma",
        "inverted_gamma",
    ): "darkest value, range, mean and deviation are those of all channels together, not of each",
    ("elastic",): "approximated by MONAI's elastic deformation, on average as large: smoothed noise in place of an"
    " integrated velocity field, and so it may fold",
    ("bias_field",): "approximated by MONAI's bias field, on average as large: polynomials in place of splines",
    (
        "gibbs",
    ): "approximated by MONAI's Gibbs noise: a ball of frequencies as large as the cube that this package keeps,"
    " of patches that are cubes",
    ("channel_scale",): "a channel's factor is uniform between the two ends, not log-uniform",
}


def _spatial_limits(found: Plan) -> list[str]:
    """Figures of the class that is hit most often."""
    classes = range(len(found.classes))
    twice, late = (
        max(map(lambda k: _resampled_twice(found, k), classes)),
        max(map(lambda k: _swapped(found, k), classes)),
    )
    limits = [
        "cut patches larger and crop them afterwards, as the policy was learned, so that rotations bring no corners"
        " (of the patch's darkest value)",
        "a label is moved by the nearest voxel; this package moves it linearly, one-hot",
    ]
    if twice > 0:
        limits.append(
            f"rotations, zoom and deformation are resamplings of their own, one after the other; {twice:.1%} of the"
            " patches are resampled more than once (here all of it is one resampling)"
        )
    if late > 0:
        limits.append(
            "cascades are applied one after the other, so that a quarter turn may come before what is rotated or zoomed"
            f" here before it: in up to {late:.1%} of the patches"
        )
    return limits


def _resampled_twice(found: Plan, place: int) -> float:
    """How probable it is that a patch of a class is resampled more than once."""
    moved = [sum(r.probabilities[place] for r in slot.rows if r.deed.what in MOVING) for slot in found.slots]
    once = sum(m * math.prod(1 - o for j, o in enumerate(moved) if j != i) for i, m in enumerate(moved))
    return 1 - math.prod(1 - m for m in moved) - once


def _swapped(found: Plan, place: int) -> float:
    """How probable it is, at most, that something comes before what belongs before it."""
    rows = [
        [(r.operation.order, r.probabilities[place]) for r in s.rows if r.deed.what != "identity"] for s in found.slots
    ]
    pairs = [
        sum(p * q for order, p in first for other, q in second if order > other)
        for i, first in enumerate(rows) for second in rows[i + 1 :]
    ]  # fmt: skip
    return 1 - math.prod(1 - p for p in pairs)


def _view_limits(found: Plan) -> list[str]:
    whats = {view.deed.what for view in found.views}
    limits = []
    if whats & {"scale", "rotate"}:
        limits.append("rotated and zoomed views keep the image's size: what leaves it is not seen by that view (here"
                      " views of whole volumes have room for all of it)")  # fmt: skip
    if "noise" in whats:
        limits.append("the noise of views is another one in every prediction (here always the same)")
    if found.test_time is not None and found.test_time.level == "patch":
        limits.append("the views are of patches: give the network itself to predict, and patches of its size")
    return limits
