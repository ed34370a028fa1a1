# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is wrong when nnU-Net can't find or run a trainer of this package, and what to do about it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import site
import sysconfig
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path

from monai_autoaug.errors import AutoAugError
from monai_autoaug.methods import names
from monai_autoaug.nnunet.launcher import DEFAULT_TRAINER, EXT_VARIABLE, ext_path
from monai_autoaug.nnunet.layers import read_options
from monai_autoaug.nnunet.options import CONFIG_VARIABLE, Options
from monai_autoaug.nnunet.rehearsal import rehearse

__all__ = ["CHECKS", "Diagnosis", "doctor"]

_OK, _WARNING, _ERROR = "ok", "warning", "error"
_EXPORT = f"export {EXT_VARIABLE}=$(monai-autoaug nnunet path)"
_LAUNCHER = "or train and predict with monai-autoaug nnunet, which works without it"


@dataclass(frozen=True)
class Diagnosis:
    """What one check found.

    Args:
        check: what was looked at.
        severity: "ok", "warning" (something works only in part) or "error" (training or prediction can't work).
        found: what there is.
        remedy: what to do; empty when all is well.

    >>> Diagnosis("torchvision", "ok", "0.29").remedy
    ''
    """

    check: str
    severity: str
    found: str
    remedy: str = ""


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split("+")[0].split(".")[:2] if part.isdigit())


def _check_nnunet() -> Diagnosis:
    try:
        version = metadata.version("nnunetv2")
        importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    except Exception as error:  # an import can fail in any way; that is what is reported
        return Diagnosis(
            "nnunetv2",
            _ERROR,
            f"{type(error).__name__}: {error}",
            "pip install 'nnunetv2>=2.8,<2.9' in this environment",
        )
    if not (2, 8) <= _version("nnunetv2") < (2, 9):
        return Diagnosis("nnunetv2", _ERROR, version, f"pip install 'nnunetv2>=2.8,<2.9': {EXT_VARIABLE} came with 2.8")
    return Diagnosis("nnunetv2", _OK, version)


def _check_torch() -> Diagnosis:
    import torch

    if _version("torch") < (2, 8):
        return Diagnosis("torch", _ERROR, torch.__version__, "pip install 'torch>=2.8'")
    gpu = "with a GPU" if torch.cuda.is_available() else "without a GPU: train with -device cpu"
    return Diagnosis("torch", _OK, f"{torch.__version__}, {gpu}")


def _check_torchvision() -> Diagnosis:
    remedy = (
        "nnU-Net imports all of its own trainers before it looks at external ones, and one of them needs torchvision:"
        f" install the one that fits torch (pip install torchvision), {_LAUNCHER}"
    )
    try:
        module = importlib.import_module("torchvision")
    except Exception as error:  # missing, or built for another torch: an import can fail in any way
        return Diagnosis("torchvision", _WARNING, f"{type(error).__name__}: {error}", remedy)
    return Diagnosis("torchvision", _OK, str(module.__version__))


def _check_path() -> Diagnosis:
    name, value = EXT_VARIABLE, os.environ.get(EXT_VARIABLE, "")
    if not value:
        return Diagnosis(name, _WARNING, "not set: nnUNetv2_train and nnUNetv2_predict find no trainer of this package",
                         f"{_EXPORT}, {_LAUNCHER}")  # fmt: skip
    paths = [Path(p) for p in value.split(os.pathsep) if p.strip()]
    missing = [str(p) for p in paths if not p.is_dir()]
    if missing:
        return Diagnosis(name, _ERROR, f"{', '.join(missing)}: there is no such folder", _EXPORT)
    packages = {Path(p).resolve() for p in (*site.getsitepackages(), sysconfig.get_paths()["purelib"])}
    wide = [str(p) for p in paths if p.resolve() in packages or (p / "monai_autoaug" / "__init__.py").is_file()]
    if wide:
        found = f"{', '.join(wide)}: holds whole packages, and nnU-Net would import every module in it"
        return Diagnosis(name, _ERROR, found, _EXPORT)
    own = ext_path().parents[1]  # compared as a place on the disk: a user's folder may have any name
    inside = [str(p) for p in paths if own in (p.resolve(), *p.resolve().parents) and p.resolve() != ext_path()]
    if inside:
        found = f"{', '.join(inside)}: lies in the package itself, whose modules can't be imported from there"
        return Diagnosis(name, _ERROR, found, _EXPORT)
    if ext_path() not in [p.resolve() for p in paths]:
        return Diagnosis(name, _WARNING, f"{value}: does not list {ext_path()}", f"{_EXPORT}, {_LAUNCHER}")
    return Diagnosis(name, _OK, value)


def _check_import() -> Diagnosis:
    try:
        from monai_autoaug.nnunet.trainers import TRAINERS
    except Exception as error:  # an import can fail in any way; that is what is reported
        return Diagnosis(
            "trainers of this package", _ERROR, f"{type(error).__name__}: {error}", "install what the message names"
        )
    return Diagnosis("trainers of this package", _OK, ", ".join(TRAINERS))


def _check_shadow() -> Diagnosis:
    """nnU-Net takes the first class of a name, and looks through its own folder first."""
    try:
        folder = Path(importlib.import_module("nnunetv2.training.nnUNetTrainer").__path__[0])
    except ImportError as error:
        return Diagnosis("copies of our trainers in nnunetv2", _WARNING, str(error), "see nnunetv2 above")
    ours = re.compile(r"class nnUNetTrainerAutoAug(Adversarial|Bilevel|General|TaskDriven|Random|None)?\b")
    copies = [str(p) for p in folder.rglob("*.py") if ours.search(p.read_text(encoding="utf-8", errors="replace"))]
    if copies:
        return Diagnosis(
            "copies of our trainers in nnunetv2",
            _ERROR,
            ", ".join(copies),
            "remove them: nnU-Net would take them instead of this package's",
        )
    return Diagnosis("copies of our trainers in nnunetv2", _OK, "none")


def _check_search() -> Diagnosis:
    """What plain nnU-Net itself says."""
    check = f"plain nnU-Net finds {DEFAULT_TRAINER}"
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        with redirect_stdout(StringIO()):
            found = recursive_find_trainer_class_by_name(DEFAULT_TRAINER)
    except Exception as error:  # nnU-Net's search imports foreign modules, which can fail in any way
        reason = " ".join(str(error).split())  # nnU-Net's message has several lines
        return Diagnosis(check, _ERROR, f"{type(error).__name__}: {reason}", f"{_EXPORT}, {_LAUNCHER}")
    return Diagnosis(check, _OK, f"{found.__module__}.{found.__qualname__}")


def _check_folder(variable: str) -> Callable[[], Diagnosis]:
    def check() -> Diagnosis:
        value = os.environ.get(variable)
        if not value:
            return Diagnosis(variable, _ERROR, "not set", f"export {variable}=<folder>")
        if not Path(value).is_dir():
            return Diagnosis(variable, _ERROR, f"{value}: there is no such folder", f"mkdir -p {value}")
        if variable != "nnUNet_raw" and not os.access(value, os.W_OK):
            return Diagnosis(variable, _ERROR, f"{value}: not writable", f"chmod u+w {value}")
        return Diagnosis(variable, _OK, value)

    return check


def _check_options() -> Diagnosis:
    if not os.environ.get(CONFIG_VARIABLE):
        return Diagnosis(CONFIG_VARIABLE, _OK, "not set: options come from the plans' key autoaug, or are the defaults")
    try:
        known = names()
    except AutoAugError as error:
        return Diagnosis("methods of other packages", _ERROR, str(error), "correct what the message names")
    fitting: list[str] = []
    wrong: list[str] = []
    for method in known:  # the file may leave the method to the trainer; one that names it wins over this one
        try:
            options = read_options({"method": method}, {"configurations": {}}, "")
            if options.method not in fitting:
                _rehearse(options)
                fitting.append(options.method)
        except AutoAugError as error:
            wrong.append(str(error))
    if not fitting:
        others = "" if len(set(wrong)) == 1 else "; and other methods don't take it either"
        usual = next((w for w in wrong if f"method {Options().method!r}" in w), wrong[0])
        return Diagnosis(CONFIG_VARIABLE, _ERROR, usual + others, "correct the file")
    told = f"method {fitting[0]}" if len(fitting) == 1 else f"for methods {', '.join(fitting)}"
    return Diagnosis(CONFIG_VARIABLE, _OK, f"{os.environ[CONFIG_VARIABLE]}: {told}")


def _check_views() -> Diagnosis:
    from monai_autoaug.nnunet.test_time import VARIABLE, views_wanted

    try:
        wanted = views_wanted()
    except AutoAugError as error:
        return Diagnosis(VARIABLE, _ERROR, str(error), f"unset {VARIABLE}")
    found = "not set: predictions average as many views as were learned" if wanted is None else f"{wanted} views"
    return Diagnosis(VARIABLE, _OK, found)


def _rehearse(options: Options) -> None:
    """Options may be meant for a 3D configuration or for the 2D one."""
    try:
        rehearse(options, spatial_dims=3)
    except AutoAugError as error:
        try:
            rehearse(options, spatial_dims=2)
        except AutoAugError:
            raise error from None


def _check_shim() -> Diagnosis:
    name = "folder that nnU-Net searches"
    modules = [m.name for m in pkgutil.iter_modules([str(ext_path())])]
    if modules != ["monai_autoaug_trainers"]:
        return Diagnosis(name, _ERROR, f"{ext_path()} holds {modules}", "reinstall monai_autoaug")
    return Diagnosis(name, _OK, str(ext_path()))


CHECKS: tuple[Callable[[], Diagnosis], ...] = (
    _check_nnunet,
    _check_torch,
    _check_torchvision,
    _check_import,
    _check_shim,
    _check_path,
    _check_shadow,
    _check_search,
    _check_folder("nnUNet_raw"),
    _check_folder("nnUNet_preprocessed"),
    _check_folder("nnUNet_results"),
    _check_options,
    _check_views,
)


def doctor() -> list[Diagnosis]:
    """Look at everything on which finding and running a trainer depends.

    Returns:
        One diagnosis a check, in the order in which to repair them; whether plain nnU-Net finds the trainers is tried
        where nnUNet_extTrainer names their folder.

    >>> [d.severity for d in doctor() if d.check == "torch"]
    ['ok']
    """
    found = [check() for check in CHECKS if check is not _check_search]
    place = CHECKS.index(_check_search)
    # without the variable plain nnU-Net can't find them, which is told once: who uses the launcher needs neither
    if all(d.severity == "ok" for d in found if d.check == EXT_VARIABLE):
        found.insert(place, _check_search())
    return found
