# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data: NIfTI folders -> audited cases -> preprocessed volumes -> batches of patches."""

from __future__ import annotations

from monai_autoaug.data.audit import Finding, audit, findings_to_json, print_findings, refused
from monai_autoaug.data.batch import Batch, centre_crop
from monai_autoaug.data.datalist import Case, DataList, Split, split
from monai_autoaug.data.layouts import read_datalist, read_images
from monai_autoaug.data.loading import loader
from monai_autoaug.data.meta_cases import EpochCases, MetaSplit, cases_of_another_set, read_case_names
from monai_autoaug.data.patches import PatchBatches
from monai_autoaug.data.phantom import write_phantom
from monai_autoaug.data.pictures import pictures
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.data.repair import repair
from monai_autoaug.data.split_file import SplitFile

__all__ = [
    "Batch",
    "Case",
    "DataList",
    "EpochCases",
    "Finding",
    "MetaSplit",
    "PatchBatches",
    "Preprocessing",
    "Split",
    "SplitFile",
    "audit",
    "cases_of_another_set",
    "centre_crop",
    "findings_to_json",
    "loader",
    "pictures",
    "print_findings",
    "read_case_names",
    "read_datalist",
    "read_images",
    "refused",
    "repair",
    "split",
    "write_phantom",
]
