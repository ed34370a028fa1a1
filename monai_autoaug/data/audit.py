# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The audit: every file is read once, every check runs on it, and all faults are told in one pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from monai_autoaug.data import audit_cases as cases
from monai_autoaug.data import audit_files as files
from monai_autoaug.data.audit_views import CaseSummary, CaseView, Check, DataSetView, Fault, Volume
from monai_autoaug.data.datalist import Case, DataList, Split
from monai_autoaug.data.findings import Finding, findings_to_json, print_findings, refused

__all__ = ["CHECKS", "Check", "Fault", "Finding", "audit", "findings_to_json", "print_findings", "refused"]

CHECKS: tuple[Check, ...] = (
    Check("readable", "refuse", "file", files.readable, unreadable=True),
    Check("link_leaves_folder", "refuse", "file", files.link, unreadable=True),
    Check("voxel_type", "refuse", "file", files.voxel_type),
    Check("dimensions", "refuse", "file", files.dimensions),
    Check("one_slice", "refuse", "file", files.one_slice),
    Check("superfluous_axes", "note", "file", files.singleton),
    Check("voxel_size", "refuse", "file", files.header_spacing),
    Check("affine", "refuse", "file", files.affine_usable),
    Check("shear", "refuse", "file", files.shear),
    Check("slight_shear", "note", "file", files.small_shear),
    Check("orientation_unknown", "warn", "file", files.codes),
    Check("qform_contradicts_sform", "warn", "file", files.forms_agree),
    Check("voxel_size_contradicts_affine", "warn", "file", files.header_agrees),
    Check("intensity_scaling", "note", "file", files.scaling),
    Check("nan", "refuse", "file", files.nan),
    Check("infinite", "refuse", "file", files.infinite),
    Check("overflow", "refuse", "file", files.overflow),
    Check("constant_image", "warn", "file", files.constant),
    Check("fractional_label", "refuse", "file", files.fractional),
    Check("rounded_label", "note", "file", files.rounded),
    Check("negative_label", "refuse", "file", files.negative),
    Check("undeclared_label", "refuse", "file", files.undeclared),
    Check("wide_label", "note", "file", files.wide_label),
    Check("empty_mask", "warn", "file", files.empty_mask),
    Check("shape_mismatch", "refuse", "case", cases.same_shape),
    Check("spacing_mismatch", "refuse", "case", cases.same_spacing),
    Check("origin_mismatch", "refuse", "case", cases.same_origin),
    Check("direction_mismatch", "refuse", "case", cases.same_direction),
    Check("no_foreground", "refuse", "dataset", cases.no_foreground),
    Check("absent_class", "warn", "dataset", cases.absent_class),
    Check("leakage", "refuse", "dataset", cases.leakage),
    Check("duplicate_image", "warn", "dataset", cases.duplicates),
    Check("unusual_spacing", "warn", "dataset", cases.odd_spacing),
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


def _audit_file(volume: Volume, name: str, checks: Iterable[Check]) -> list[Finding]:
    """All file checks on one file."""
    folder, found = volume.datalist.folder, []
    for check in checks:
        if volume.error is None or check.unreadable:
            found += _findings(check, check.function(volume), name, folder, volume.path)
    return found


def _audit_case(case: Case, datalist: DataList, checks: tuple[Check, ...]) -> tuple[list[Finding], CaseSummary]:
    """Read a case, run all checks on it, and keep only what the checks of the data set need."""
    view = CaseView.read(case, datalist)
    found = []
    for volume in view.volumes:
        found += _audit_file(volume, case.name, (c for c in checks if c.scope == "file"))
    for check in checks:
        if check.scope == "case":
            found += _findings(check, check.function(view), case.name, datalist.folder)
    return found, view.summary()


def audit(
    datalist: DataList,
    *,
    parts: Split | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    checks: tuple[Check, ...] = CHECKS,
) -> list[Finding]:
    """Check a whole data set and tell all its faults, not only the first.

    Every file is read once and to its end (checksum included); a worker holds one case at a time.

    Args:
        datalist: training, test and unlabelled cases; test cases (images to be predicted) and unlabelled ones have no
            label to check.
        parts: how the training cases are split, if that is known; then no image may be in two parts.
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
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8)) as pool:
        results = pool.map(lambda case: _audit_case(case, datalist, checks), everything)
        for done, (findings, summary) in enumerate(results, 1):
            found += findings
            data.cases.append(summary)
            if progress is not None:
                progress(done, len(everything))
    for check in checks:
        if check.scope == "dataset":
            found += _findings(check, check.function(data), "", datalist.folder)
    return found
