# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The audit: every file is read once, every check runs on it, and all faults are told in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from monai_autoaug.data import audit_cases as cases
from monai_autoaug.data import audit_dataset as dataset
from monai_autoaug.data import audit_headers as headers
from monai_autoaug.data import audit_resampling as resampling
from monai_autoaug.data import audit_voxels as voxels
from monai_autoaug.data.audit_views import CaseSummary, CaseView, Check, DataSetView, Fault, Target, Volume
from monai_autoaug.data.datalist import Case, DataList, Split
from monai_autoaug.data.findings import Finding, findings_to_json, print_findings, refused

__all__ = ["CHECKS", "Check", "Fault", "Finding", "audit", "findings_to_json", "print_findings", "refused"]

CHECKS: tuple[Check, ...] = (
    Check("file_name", "refuse", "file", headers.file_name, unreadable=True),
    Check("readable", "refuse", "file", headers.readable, unreadable=True),
    Check("link_leaves_folder", "refuse", "file", headers.link, unreadable=True),
    Check("voxel_type", "refuse", "file", headers.voxel_type),
    Check("dimensions", "refuse", "file", headers.dimensions),
    Check("one_slice", "refuse", "file", headers.one_slice),
    Check("superfluous_axes", "note", "file", headers.singleton),
    Check("further_bytes", "warn", "file", headers.further_bytes),
    Check("voxel_size", "refuse", "file", headers.header_spacing),
    Check("affine", "refuse", "file", headers.affine_usable),
    Check("impossible_voxel_size", "refuse", "file", headers.implausible_spacing),
    Check("units", "warn", "file", headers.units),
    Check("shear", "refuse", "file", headers.shear),
    Check("slight_shear", "note", "file", headers.small_shear),
    Check("orientation_unknown", "warn", "file", headers.codes),
    Check("qform_contradicts_sform", "warn", "file", headers.forms_agree),
    Check("voxel_size_contradicts_affine", "warn", "file", headers.header_agrees),
    Check("intensity_scaling", "note", "file", headers.scaling),
    Check("nan", "refuse", "file", voxels.nan),
    Check("infinite", "refuse", "file", voxels.infinite),
    Check("overflow", "refuse", "file", voxels.overflow),
    Check("constant_image", "warn", "file", voxels.constant),
    Check("fractional_label", "refuse", "file", voxels.fractional),
    Check("rounded_label", "note", "file", voxels.rounded),
    Check("negative_label", "refuse", "file", voxels.negative),
    Check("undeclared_label", "refuse", "file", voxels.undeclared),
    Check("wide_label", "note", "file", voxels.wide_label),
    Check("empty_mask", "warn", "file", voxels.empty_mask),
    Check("becomes_huge", "refuse", "file", resampling.huge),
    Check("lost_label", "warn", "file", resampling.lost_labels),
    Check("shape_mismatch", "refuse", "case", cases.same_shape),
    Check("spacing_mismatch", "refuse", "case", cases.same_spacing),
    Check("origin_mismatch", "refuse", "case", cases.same_origin),
    Check("direction_mismatch", "refuse", "case", cases.same_direction),
    Check("no_foreground", "refuse", "dataset", dataset.no_foreground),
    Check("absent_class", "warn", "dataset", dataset.absent_class),
    Check("left_right_labels", "warn", "dataset", dataset.left_right),
    Check("half_precision", "warn", "dataset", dataset.half_precision),
    Check("leakage", "refuse", "dataset", dataset.leakage),
    Check("duplicate_image", "warn", "dataset", dataset.duplicates),
    Check("unusual_spacing", "warn", "dataset", dataset.odd_spacing),
    Check("left_out", "warn", "dataset", dataset.left_out),
)


def _relative(path: Path | None, folder: Path) -> str:
    """A path as it is shown: below the data set's folder, or its name alone."""
    if path is None:
        return ""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def _findings(
    check: Check, faults: Iterable[Fault], case: str, folder: Path, path: Path | None = None
) -> list[Finding]:
    """Add to faults what the audit knows: check, severity, case and file."""
    return [
        Finding(
            case=fault.case or case,
            check=check.name,
            severity=check.severity,
            message=fault.message,
            expected=str(fault.expected),
            came=str(fault.came),
            remedy=fault.remedy,
            file=_relative(fault.path or path, folder),
        )
        for fault in faults
    ]


def _audit_case(
    case: Case, datalist: DataList, target: Target | None, checks: tuple[Check, ...]
) -> tuple[list[Finding], CaseSummary]:
    """Read a case file by file, run all checks on it, and keep only what the checks of the data set need."""
    found: list[Finding] = []

    def look(volume: Volume) -> None:
        for check in checks:
            if check.scope == "file" and (volume.usable or check.unreadable):
                found.extend(_findings(check, check.function(volume), case.name, datalist.folder, volume.path))

    view = CaseView.read(case, datalist, look, target)
    for check in checks:
        if check.scope == "case":
            found += _findings(check, check.function(view), case.name, datalist.folder)
    return found, view.summary()


def audit(
    datalist: DataList,
    *,
    parts: Split | None = None,
    spacing: Sequence[float] | None = None,
    orientation: str = "RAS",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    checks: tuple[Check, ...] = CHECKS,
) -> list[Finding]:
    """Check a whole data set and tell all its faults, not only the first.

    Every file is read once and to its end (checksum included); a worker holds the voxels of one file at a time. Where
    there are labels, the headers of the images are read before, for the voxel size that volumes are resampled to:
    labels that this would lose are warned of.

    Args:
        datalist: training, test and unlabelled cases; test cases (images to be predicted) and unlabelled ones have no
            label to check.
        parts: how the training cases are split, if that is known; then no image may be in two parts.
        spacing: mm a voxel that volumes will be resampled to, in the order of the orientation's axes; None: the median
            of the cases that are learned from.
        orientation: the direction of the axes then.
        workers: threads; None: one a core, at most 8.
        progress: called with the number of cases done and of all cases.
        checks: the registry.

    Returns:
        The findings in the order of the cases; `refused` says whether one forbids training.

    >>> import tempfile
    >>> from monai_autoaug.data import read_datalist, write_phantom
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     audit(read_datalist(write_phantom(folder, cases=2, size=24)))
    []
    """
    everything = [*datalist.training, *datalist.test, *datalist.unlabelled]
    data, found = DataSetView(datalist, parts), []
    target = _target(datalist, parts, spacing, orientation)
    done = 0
    for findings, summary in _in_order(
        lambda case: _audit_case(case, datalist, target, checks), everything, workers or min(os.cpu_count() or 1, 8)
    ):
        found += findings
        data.cases.append(summary)
        done += 1
        if progress is not None:
            progress(done, len(everything))
    for check in checks:
        if check.scope == "dataset":
            found += _findings(check, check.function(data), "", datalist.folder)
    return found


def _target(
    datalist: DataList, parts: Split | None, spacing: Sequence[float] | None, orientation: str
) -> Target | None:
    """What volumes will be resampled to; None where there is nothing to go by."""
    if spacing is None:
        learned = datalist.training if parts is None else (*parts.train, *parts.meta)
        spacing = resampling.median_spacing(datalist.folder, learned, orientation)
    return None if spacing is None else Target((spacing[0], spacing[1], spacing[2]), orientation)


def _in_order(
    work: Callable[[Case], tuple[list[Finding], CaseSummary]], everything: Sequence[Case], workers: int
) -> Iterator[tuple[list[Finding], CaseSummary]]:
    """Results in the order of the cases; what is not begun yet is left when the caller stops, as by Ctrl-C."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(work, everything)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
