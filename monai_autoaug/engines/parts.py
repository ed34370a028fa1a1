# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which cases of a run train the network, which judge what is learned beside it (meta-validation), which validate."""

from __future__ import annotations

from dataclasses import replace

from monai_autoaug.data import (
    Case,
    DataList,
    Split,
    SplitFile,
    cases_of_another_set,
    read_case_names,
    read_datalist,
    split,
)
from monai_autoaug.data.folders import as_unlabelled, read_unlabelled
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.errors import ConfigError

__all__ = ["known_cases", "resampled", "split_cases", "unlabelled_cases"]


def split_cases(options: TrainOptions, datalist: DataList) -> Split:
    """Split the cases of a run; those that validate are the same whatever is set apart for meta-validation.

    Args:
        options: of the run.
        datalist: the data set.

    Returns:
        The split. Where meta-validation cases are drawn anew each epoch (`resampled`), it counts them as training
        cases.

    Raises:
        ConfigError: the numbers can't be had, or listed cases are unknown or validate.
        DataError: another data set was given for meta-validation, which doesn't fit.
    """
    cases, validation = datalist.training, None
    if options.split is not None:
        cases, validation, _ = SplitFile.load(options.split).choose(cases)
    parts = _parts(options, replace(datalist, training=cases), options.validation_cases if validation is None else 0)
    return parts if validation is None else parts._replace(validation=validation)


def _parts(options: TrainOptions, datalist: DataList, validation: int | float) -> Split:
    """Split all cases of a data set, of which so many validate."""
    listed, meta = options.meta_list, options.meta_share
    given = {"seed": options.split_seed, "validation": validation, "train": options.train_cases}
    if listed is None:
        parts = split(datalist.training, meta=meta, **given)  # type: ignore[arg-type]  # each of its own kind
        if options.meta_split == "resampled":
            return Split((*parts.meta, *parts.train), (), parts.validation)
        return parts
    if not listed.is_dir():
        return split(datalist.training, meta=read_case_names(listed), **given)  # type: ignore[arg-type]
    if not options.learns_from_meta:
        raise ConfigError(f"method {options.method!r} learns nothing from meta-validation cases; leave out {listed}")
    parts = split(datalist.training, **given)  # type: ignore[arg-type]
    return parts._replace(meta=cases_of_another_set(read_datalist(listed), datalist))


def resampled(options: TrainOptions, parts: Split) -> int:
    """How many training cases are meta-validation cases in each epoch; 0 where these don't change.

    Args:
        options: of the run.
        parts: what `split_cases` gave.
    """
    if options.meta_split != "resampled":
        return 0
    share = options.meta_share
    return share if isinstance(share, int) else max(1, round(share * len(parts.train)))


def unlabelled_cases(options: TrainOptions, datalist: DataList) -> tuple[Case, ...]:
    """The unlabelled images of a run, if its method learns from any.

    Args:
        options: of the run.
        datalist: the data set.

    Raises:
        ConfigError: the method needs some, and there are none.
        DataError: the folder that was given holds none.
    """
    if not options.learns_from_unlabelled:
        return ()
    if options.unlabelled is not None:
        return read_unlabelled(options.unlabelled, len(datalist.channels))
    if options.split is not None:
        _, _, named = SplitFile.load(options.split).choose(datalist.training)
        if named:
            return as_unlabelled(named)
    if not datalist.unlabelled:
        raise ConfigError(
            f"method {options.method!r} learns from unlabelled images, too: give their folder (--unlabelled), or list"
            ' them in dataset.json or in the file of --split by the key "unlabelled"'
        )
    return datalist.unlabelled


def known_cases(options: TrainOptions, parts: Split) -> tuple[Case, ...]:
    """The cases that preprocessing is decided on: the same whatever part of them is set apart for meta-validation.

    Args:
        options: of the run.
        parts: what `split_cases` gave.
    """
    elsewhere = options.meta_list is not None and options.meta_list.is_dir()
    return parts.train if elsewhere else (*parts.meta, *parts.train)
