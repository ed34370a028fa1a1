# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Policies as a Python file that needs batchgeneratorsv2 or TorchIO, torch and NumPy, and nothing else.

The file is made of a header, the policy as tables, and the source of this package's `parts`, which are code that is
checked and tested like any other but never imported here.
"""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterable, Sequence
from importlib.resources import files

from monai_autoaug.errors import PolicyError
from monai_autoaug.policies.export.plan import Deed, Exported, Plan, amounts
from monai_autoaug.policies.laterality import Laterality

__all__ = ["to_batchgeneratorsv2", "to_torchio"]

_WIDTH = 118
_BATCHGENERATORS = """\
    transform = build(patch_size=(64, 64, 64))  # a transform like the library's own
    batch = transform(image=image, segmentation=segmentation)  # tensors (C, D, H, W)

A patch may come in larger than patch_size, as nnU-Net cuts it; its surroundings are then what rotations bring in."""
_TORCHIO = """\
    transform = build()  # a transform like the library's own
    subject = transform(tio.Subject(image=tio.ScalarImage(...), label=tio.LabelMap(...)))

Use it on patches, for example as the transform of the subjects that a queue's sampler has cut."""
_VIEWS = """\
    logits = VIEWS.predict(network, image)  # (B, C, D, H, W): the learned views, averaged"""


def to_batchgeneratorsv2(found: Plan) -> Exported:
    """A transform of batchgeneratorsv2, and what averages the views.

    >>> from monai_autoaug.policies import Policies, TrainingPolicy
    >>> from monai_autoaug.policies.export.plan import plan
    >>> found = plan(Policies(TrainingPolicy.preset("none")))
    >>> "class LearnedPolicy(BasicTransform)" in to_batchgeneratorsv2(found).text
    True
    """
    limits = _limits(found)
    if found.training is not None:
        limits.append(
            "a label is moved as the library moves it: linearly for each of its values, the largest share deciding;"
            " where two shares are equal this package takes the smaller value"
        )
    if "elastic" in found.whats():
        limits.append(
            "elastic deformation is the library's: as large as here, smoothed noise of 6 voxels in place of an"
            " integrated velocity field, and so it may fold"
        )
    return _file(found, "batchgeneratorsv2", _BATCHGENERATORS, limits, "patch_size, only=None", "patch_size, only")


def to_torchio(found: Plan) -> Exported:
    """A transform of TorchIO, and what averages the views.

    Raises:
        PolicyError: the policy is for slices, TorchIO is for volumes.

    >>> from monai_autoaug.policies import Policies, TrainingPolicy
    >>> from monai_autoaug.policies.export.plan import plan
    >>> "import torchio as tio" in to_torchio(plan(Policies(TrainingPolicy.preset("nnunet")))).text
    True
    """
    if found.spatial_dims != 3:
        raise PolicyError("TorchIO transforms volumes, and the policy is for slices. To do: export to monai")
    limits = _limits(found)
    if {"scale", "rotate", "turn"} & found.whats():
        limits += [
            "a label is moved by the nearest voxel, the library's default; this package moves it linearly, one-hot",
            "linear interpolation ends half a voxel outside of the volume; this package blends with the darkest value",
        ]
    if "elastic" in found.whats():
        limits.append(
            "elastic deformation is the library's, in a resampling of its own: cubic splines over points 16 voxels"
            " apart, on average as large as here, in place of an integrated velocity field, and so it may fold"
        )
    return _file(found, "torchio", _TORCHIO, limits, "label=None, only=None", "label, only")


def _limits(found: Plan) -> list[str]:
    """What both libraries do otherwise, or what users have to see to."""
    limits = [
        "axes are counted 0, 1, 2 as in the arrays that the policy was learned on (nnU-Net's may be in another order"
        " than a NIfTI file's), whatever the orientation",
        "images must be normalised as they were when the policy was learned: amounts of brightness and noise are"
        " standard deviations of the image",
    ]
    if found.training is not None and {"rotate", "scale", "turn", "elastic"} & found.whats():
        limits.append(
            "the policy was learned on patches that were cut larger and cropped afterwards, so that rotations bring no"
            " corners; do the same where you can"
        )
    if found.test_time is not None and found.test_time.level == "patch":
        limits.append("the views are of patches: give the network itself to predict, and patches of its size")
    return limits


def _file(found: Plan, library: str, usage: str, limits: list[str], arguments: str, passed: str) -> Exported:
    parts = ["operations"]
    blocks, ends = [], []
    if found.training is not None:
        parts.append(f"{library}_policy")
        blocks.append(_policy(found))
        ends.append(f"def build({arguments}):\n"
                    f'    """The policy as a transform; see the class."""\n'
                    f"    return LearnedPolicy(TABLE, {passed})")  # fmt: skip
    if found.views:
        parts.append("views")
        ends.append(_views(found))
    code, imports = _code(parts)
    uses = [u for u, there in ((usage, found.training), (_VIEWS, found.test_time)) if there is not None]
    head = _head(library, uses, limits)
    table = ["TABLE = Table(" + _arguments(["CLASSES", "CASCADES", "OPERATIONS"], found.laterality) + ")"]
    ends = (table if found.training is not None else []) + ends
    text = "\n".join([head, *imports, "", *(f"{block}\n" for block in blocks), "", code, "", ""])
    return Exported(text + "\n\n\n".join(ends) + "\n", tuple(limits))


def _head(library: str, uses: Sequence[str], limits: Sequence[str]) -> str:
    """The docstring of the file."""
    wrapped = [
        textwrap.fill(limit, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
        for limit in limits
    ]
    name = {"torchio": "TorchIO"}.get(library, library)
    return "\n".join(
        [f'"""A learned augmentation policy for {name}, written by monai_autoaug, which it does not need.', "",
         *"\n\n".join(uses).splitlines(), "", "What to know, and what is otherwise than in monai_autoaug:", "",
         *wrapped, '"""', ""]
    )  # fmt: skip


def _policy(found: Plan) -> str:
    """The training-time policy as tables."""
    lines = [f"CLASSES = {_tuple(map(_name, found.classes))}", "# cascade -> operation -> probability for each class",
             "CASCADES: dict[str, dict[str, tuple[float, ...]]] = {"]  # fmt: skip
    for slot in found.slots:
        lines.append(f"    {_name(slot.name)}: {{")
        for row in slot.rows:
            lines.append(f"        {_name(row.operation.name)}: {_tuple(f'{p:.6g}' for p in row.probabilities)},")
        lines.append("    },")
    lines += ["}", "# operation -> what it does, axes, smallest and largest amount, opposite, place in the order",
              "OPERATIONS: dict[str, tuple[str, tuple[int, ...], float, float, str, int]] = {"]  # fmt: skip
    for row in (row for slot in found.slots for row in slot.rows if row.deed.what != "identity"):
        deed, told = row.deed, amounts(row.deed, row.operation.unit)
        numbers = f"{_deed(deed)}, {float(deed.high)}, {_name(deed.opposite)}, {deed.order}"
        lines.append(f"    {_name(row.operation.name)}: ({numbers}),{f'  # {told}' if told else ''}")
    return "\n".join([*lines, "}"])


def _views(found: Plan) -> str:
    """The views as a table."""
    policy = found.test_time
    assert policy is not None  # noqa: S101  # for the type checker: there are views
    lines = ["# what each view does, along which axes, how much of it, the seed of its noise, and its weight",
             "VIEWS = Views(", "    ("]  # fmt: skip
    for view in found.views:
        row = f"{_deed(view.deed)}, {view.operation.index}, {view.weight:.9g}"
        lines.append(f"        ({row}),  # {view.operation.name}")
    options = [f"whole={policy.level == 'volume'}", f"logits={policy.average == 'logits'}", f"regions={policy.regions}"]
    return "\n".join([*lines, "    ),", f"    {_arguments(options, policy.laterality)},", ")"])


def _deed(deed: Deed) -> str:
    return f"{_name(deed.what)}, {_tuple(map(str, deed.axes))}, {float(deed.low)}"


def _arguments(first: Sequence[str], sides: Laterality | None) -> str:
    more = [] if sides is None else [f"pairs={sides.pairs}", f"side={sides.axis}"]
    return ", ".join([*first, *more])


def _name(text: str) -> str:
    """In quotes; what JSON takes for a string is one for Python, too."""
    return json.dumps(text, ensure_ascii=False)


def _tuple(items: Iterable[str]) -> str:
    told = list(items)
    return f"({', '.join(told)}{',' if len(told) == 1 else ''})"


def _code(parts: Sequence[str]) -> tuple[str, list[str]]:
    """The parts' source without what only this package needs, and the imports of all of them."""
    bodies: list[str] = []
    imports: set[str] = set()
    for part in parts:
        source = files("monai_autoaug.policies.export.parts").joinpath(f"{part}.py").read_text(encoding="utf-8")
        body = []
        for node in ast.parse(source).body:
            segment = ast.get_source_segment(source, node) or ""
            if isinstance(node, ast.Import | ast.ImportFrom):
                if not (isinstance(node, ast.ImportFrom) and str(node.module).startswith("monai_autoaug")):
                    imports.add(segment)
            elif segment.startswith('"""') or segment.startswith("__all__"):
                continue
            else:
                body.append(node)
        lines = source.splitlines()
        first = body[0].lineno - 1
        while lines[first - 1].startswith(("#", "@")):  # a comment or decorator above it
            first -= 1
        bodies.append("\n".join(lines[first:]).rstrip())
    future = "from __future__ import annotations"
    imports.discard(future)
    standard = sorted(i for i in imports if i.split()[1].split(".")[0] in ("collections", "dataclasses", "typing"))
    others = sorted(imports - set(standard))
    return "\n\n\n".join(bodies), [future, "", *standard, "", *others, ""]
