# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Imports run one way, heavy packages stay where they belong, and importing the package itself costs nothing."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "monai_autoaug"
# a part may import from parts on lower lines only (and from itself); parts on one line don't know each other unless
# WITHIN says so
ORDER = [
    {"child_processes", "errors", "memory", "plugins", "precision", "reading", "tensors", "writing", "yaml_values"},
    {"data", "transforms"},
    {"augmenters", "networks", "policies"},
    {"optim"},
    {"methods"},
    {"engines", "nnunet"},
    {"evaluation", "report"},
    {"cli", "commands"},
]
WITHIN = {
    ("plugins", "errors"),
    ("precision", "errors"),
    ("augmenters", "networks"),
    ("policies", "augmenters"),
    ("policies", "networks"),
    ("report", "evaluation"),
    ("cli", "commands"),
}
# third-party package -> the files that may import it
CONFINED = {
    "matplotlib": ("report/",),
    "nnunetv2": ("nnunet/",),
    "batchgenerators": ("transforms/adapters.py", "policies/export/", "nnunet/"),
    "batchgeneratorsv2": ("transforms/adapters.py", "policies/export/", "nnunet/"),
    "torchio": ("policies/export/",),
    "dynamic_network_architectures": ("nnunet/",),
    "jinja2": ("report/",),
    "click": ("cli.py", "commands/", "nnunet/cli.py"),
    "rich": ("cli.py", "commands/", "nnunet/cli.py", "data/findings.py"),
    "ignite": ("engines/",),
    "torchvision": (),
    "timm": (),
}
TRANSFORMS_MAY = {"torch", "monai", "numpy", PACKAGE}


def root() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def modules() -> list[Path]:
    return sorted(f for f in root().rglob("*.py") if "__pycache__" not in f.parts)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too, as an absolute dotted name."""
    return imported_by(path.read_text(encoding="utf-8"), path)


def imported_by(source: str, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # ``from monai_autoaug import data`` imports the part itself
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """The part of the package that a file belongs to: the folder's name, or the file's."""
    first = path.relative_to(root()).parts[0]
    return first.removesuffix(".py")


@cache
def level(name: str) -> int:
    for number, parts in enumerate(ORDER):
        if name in parts:
            return number
    raise AssertionError(f"{name} has no place in ORDER: the layout of the package has changed")


def wrong_direction(source_part: str, names: Iterator[str]) -> list[str]:
    wrong = []
    for name in names:
        words = name.split(".")
        if words[0] != PACKAGE or len(words) < 2 or words[1].startswith("__"):
            continue
        target = words[1]
        allowed = target == source_part or level(target) < level(source_part) or (source_part, target) in WITHIN
        if not allowed:
            wrong.append(name)
    return wrong


def third_party_faults(relative: str, names: Iterator[str]) -> list[str]:
    faults = []
    for name in names:
        top = name.split(".")[0]
        if top in CONFINED and not relative.startswith(CONFINED[top]):
            faults.append(f"{top} is imported in {CONFINED[top] or 'no file'} only")
        outside = top not in TRANSFORMS_MAY and top not in sys.stdlib_module_names
        if relative.startswith("transforms/") and relative != "transforms/adapters.py" and outside:
            faults.append(f"transforms import torch and monai only, not {top}")
    return faults


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(root())))
def test_imports_run_one_way(path: Path) -> None:
    if path.parent == root() and path.name in ("__init__.py", "__main__.py"):
        return
    assert wrong_direction(part(path), imported(path)) == []


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(root())))
def test_third_party_packages_stay_where_they_belong(path: Path) -> None:
    assert third_party_faults(path.relative_to(root()).as_posix(), imported(path)) == []


def test_the_checks_themselves_see_a_fault() -> None:
    source = "from monai_autoaug.methods import base\ndef f():\n    import matplotlib.pyplot\n"
    assert wrong_direction("data", imported_by(source, Path("x.py"))) == ["monai_autoaug.methods.base"]
    assert third_party_faults("data/x.py", imported_by(source, Path("x.py"))) == [
        "matplotlib is imported in ('report/',) only"
    ]
    assert third_party_faults("transforms/x.py", iter(["scipy.ndimage"])) != []


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.cli"])
def test_importing_costs_nothing(module: str) -> None:
    heavy = ("torch", "monai", "numpy", "nibabel", "nnunetv2", "matplotlib", "ignite", "scipy", "batchgenerators")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_module_says_what_is_public() -> None:
    without = []
    for path in modules():
        name = path.relative_to(root()).as_posix()
        source = path.read_text(encoding="utf-8")
        empty = path.name == "__init__.py" and set(imported(path)) <= {"__future__.annotations"}
        if not empty and not name.startswith("nnunet/ext/") and "__all__" not in assigned(source):
            without.append(name)
    assert without == []


def assigned(source: str) -> set[str]:
    """Names assigned at the top of a module."""
    assignments = (node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    return {target.id for node in assignments for target in node.targets if isinstance(target, ast.Name)}
