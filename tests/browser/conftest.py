# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A browser, and pages to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from devtools import Page, chromium, opened

from monai_autoaug.commands import complete
from monai_autoaug.data import write_phantom
from monai_autoaug.engines import TrainOptions
from monai_autoaug.report import write_report

LEARNED = {"joint_policy": {"update_every": 1, "warm_up": 0, "pool": 2}, "adversarial": {"warm_up": 0}}


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Debian's chromium; without it tests are skipped, but in CI they fail."""
    found = chromium()
    if found is None:
        reason = "there is no chromium: apt-get install chromium"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    with opened(found, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="session")
def pages(browser: Page, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of two small runs, the second compared with the first."""
    folder = tmp_path_factory.mktemp("pages")
    data = write_phantom(folder / "data", cases=8, size=20)
    made: dict[str, Path] = {}
    for method, options in LEARNED.items():
        given = TrainOptions(
            data, folder / method, method=method, epochs=2, iterations=2, patch_size=(16, 16, 16), validation_cases=5,
            device="cpu", network_options={"channels": [4, 8]}, method_options=options,
        )  # fmt: skip
        complete(given, listener=lambda progress: None)
        others = [folder / other for other in made]
        made[method] = write_report(folder / method, folder / f"{method}.html", against=others)
    return made
