# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every notebook runs to its end; what is stored is of its code, has pictures and names no machine."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from notebooks import FOLDER, LARGEST, OUTSIDE, RAN, code, execute, notebooks, texts
from PIL import Image

NAMES = ["01_learn_a_policy", "02_your_nifti_folder", "03_drop_in_nnunet", "04_few_labels", "05_your_own_method",
         "06_read_a_report"]  # fmt: skip
SHORT = {"EPOCHS": "2"}
PHASES = {"04": {"EPOCHS": "4"}}  # each phase takes an epoch at least
DEAR = ("01", "03", "04")  # more than a minute of CPU each even with two epochs: starting commands takes most of it


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def sources(notebook: nbformat.NotebookNode) -> list[str]:
    """Of all cells but those of parameters."""
    return [cell.source for cell in notebook.cells if "parameters" not in cell.metadata.get("tags", ())]


def test_there_are_no_others() -> None:
    assert [path.stem for path in notebooks()] == NAMES


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n.startswith(DEAR) else n for n in NAMES]
)
def test_it_runs(name: str) -> None:
    """With fewer epochs; a cell that fails raises."""
    kept = stored(name)
    done = execute(FOLDER / f"{name}.ipynb", PHASES.get(name[:2], SHORT))
    assert sources(done) == sources(kept)
    assert [bool(cell.get("outputs")) for cell in done.cells] == [bool(cell.get("outputs")) for cell in kept.cells]
    assert len(pictures(done)) == len(pictures(kept))
    assert not [found for text in texts(done) for found in OUTSIDE.findall(text)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_of_this_code(name: str) -> None:
    notebook = stored(name)
    nbformat.validate(notebook)
    assert notebook.metadata[RAN] == code(notebook), "run python tests/tutorials/notebooks.py again"
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sum(bool(cell.get("outputs")) for cell in notebook.cells) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_can_be_read_by_anybody(name: str) -> None:
    notebook = stored(name)
    found = pictures(notebook)
    assert found
    for content in found:
        assert len(content) <= 4 * LARGEST
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.width <= 900
            assert len(picture.convert("L").getcolors()) > 8  # something is drawn
    said = texts(notebook)
    assert not [path for text in said for path in OUTSIDE.findall(text)]
    assert not [text for text in said if "Traceback" in text or "VERDICT" in text]
    assert not [cell for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "error"]
    assert "not a medical device" in " ".join(notebook.cells[0].source.split())


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for cell in stored(name).cells:
        for link in re.findall(r"\]\(([^)#]+)\)", cell.source) if cell.cell_type == "markdown" else []:
            assert link.startswith("https://") or (FOLDER / link).exists(), link


def test_the_table_has_every_notebook() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d\d_\w+)\.ipynb\)", table) == NAMES


def notebook_of(folder: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, folder / "some.ipynb")
    return folder / "some.ipynb"


@pytest.mark.parametrize("cell", ["1 / 0", "%%bash\nfalse", "%%bash\nfalse\ntrue", "%%bash\nfalse | cat"])
def test_a_cell_that_fails_is_noticed(cell: str, tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError):
        execute(notebook_of(tmp_path, "%env EPOCHS=10", cell), SHORT)


def test_what_is_shown_is_as_short_as_in_a_terminal_and_names_no_folder(tmp_path: Path) -> None:
    shown = "import os; print('half\\rwhole   \\n\\x1b[1mbold\\x1b[0m', os.getcwd(), os.environ['EPOCHS'])"
    done = execute(notebook_of(tmp_path, "%env EPOCHS=10", shown), SHORT)
    assert texts(done) == ["env: EPOCHS=2\n", "whole\nbold . 2\n"]
    assert done.metadata[RAN] == code(done)
    with pytest.raises(ValueError, match="sets no STEPS"):
        execute(tmp_path / "some.ipynb", {"STEPS": "3"})
