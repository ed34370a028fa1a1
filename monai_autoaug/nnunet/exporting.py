# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's own files, whole or not there: it writes them where they belong, and a kill leaves half of one.

Half a prediction is taken for a whole one by ``--continue_prediction``; half of a ``plans.json`` or of the splits,
which which all folds of a training share, stops those that have long been trained.

On a full disk SimpleITK cuts NIfTI files off without a word, and later reads them as if they were whole; what it has
written is therefore read to its end before it is put in place.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2.inference import export_prediction as host
from nnunetv2.training import nnUNetTrainer as trainers  # noqa: N813  # a package of this name

from monai_autoaug.data.nifti import is_nifti, read_nifti
from monai_autoaug.errors import DataError
from monai_autoaug.writing import write_text, write_together

__all__ = ["export_prediction", "resample_and_save", "save_json", "whole_exports", "whole_json", "whole_picture"]


def save_json(content: Any, file: str, indent: int = 4, sort_keys: bool = True) -> None:
    """What batchgenerators' function of this name writes.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.json"
    >>> save_json({"a": 1}, str(file), indent=0); file.read_text().split()
    ['{', '"a":', '1', '}']
    """
    write_text(file, json.dumps(content, sort_keys=sort_keys, indent=indent))


def export_prediction(*given: Any, **named: Any) -> None:
    """nnU-Net's ``export_prediction_from_logits``; the label map is put in place last, and says that all is there.

    Args:
        given: as for nnU-Net's function.
        named: likewise.

    Raises:
        DataError: the label map could not be written whole.
        OSError: another file couldn't.
    """
    _whole(host.export_prediction_from_logits, "output_file_truncated", given, named)


def resample_and_save(*given: Any, **named: Any) -> None:
    """nnU-Net's function of this name, for the next stage of a cascade.

    Args:
        given: as for nnU-Net's function.
        named: likewise.
    """
    _whole(host.resample_and_save, "output_file", given, named)


def _whole(function: Any, name: str, given: Any, named: Any) -> None:
    """Call a function that writes files, whose names begin as its argument ``name`` says."""
    call = inspect.signature(function).bind(*given, **named)
    target = Path(call.arguments[name])
    description = call.arguments.get("dataset_json_dict_or_file")
    ending = description["file_ending"] if isinstance(description, dict) else ""

    def write(folder: Path) -> None:
        call.arguments[name] = str(folder / target.name)
        try:
            function(*call.args, **call.kwargs)
        except RuntimeError as error:  # of formats whose writers do tell
            if "ImageFileWriter" not in str(error):
                raise
            raise _cut_off(target.parent / f"{target.name}{ending}") from error
        for file in folder.iterdir():
            if is_nifti(file):
                _read_to_the_end(file, target.parent / file.name)

    write_together(target.parent, write, last=ending)


def _read_to_the_end(file: Path, target: Path) -> None:
    """See that a NIfTI file, which belongs at ``target``, is whole."""
    try:
        read_nifti(file)
    except DataError as error:
        raise _cut_off(target, error.expected, error.came) from error


def _cut_off(file: Path, expected: object = None, came: object = None) -> DataError:
    remedy = "free some space on its disk"
    return DataError("could not be written whole", file=file, expected=expected, came=came, remedy=remedy)


@contextlib.contextmanager
def whole_exports(*modules: Any) -> Iterator[None]:
    """Within the block these modules of nnU-Net write whole predictions and whole JSON files.

    Args:
        modules: they have imported nnU-Net's functions by name.
    """
    ours = {"export_prediction_from_logits": export_prediction, "resample_and_save": resample_and_save,
            "save_json": save_json}  # fmt: skip
    before = [(m, name, getattr(m, name)) for m in modules for name in ours if hasattr(m, name)]
    for module, name, _ in before:
        setattr(module, name, ours[name])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def whole_json() -> contextlib.AbstractContextManager[None]:
    """Within the block nnU-Net's trainer writes whole files: the plans, the splits, predictions of validation cases."""
    return whole_exports(trainers.nnUNetTrainer)


@contextlib.contextmanager
def whole_picture(logger: Any) -> Iterator[None]:
    """Within the block nnU-Net's logger draws its progress.png whole or not at all.

    Args:
        logger: of nnU-Net's trainer.
    """
    plot = logger.plot_progress_png
    logger.plot_progress_png = lambda folder: write_together(folder, lambda own: plot(str(own)))
    try:
        yield
    finally:
        del logger.plot_progress_png
