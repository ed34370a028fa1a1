# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What tests of the data layer share."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_autoaug.data import read_datalist, write_phantom
from monai_autoaug.data.datalist import DataList


@pytest.fixture
def data(tmp_path: Path) -> DataList:
    """Three good cases."""
    return read_datalist(write_phantom(tmp_path / "data", cases=3, size=16))
