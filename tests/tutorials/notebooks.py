# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Runs the notebooks in tutorials/ and stores what they put out: python tests/tutorials/notebooks.py [01 02 ...]."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

__all__ = ["FOLDER", "OUTSIDE", "RAN", "code", "execute", "notebooks", "texts"]

FOLDER = Path(__file__).parents[2] / "tutorials"
LOOKS = ((900, 256), (900, 128), (760, 128), (640, 128), (640, 64), (540, 64))  # of a stored picture: width, colours
LARGEST = 64_000  # its bytes
RAN = "code_that_ran"  # in a notebook's metadata: which code its outputs are of
# a path of the machine that made the outputs: from a root folder, or from a drive of Windows
OUTSIDE = re.compile(
    r"(?<![\w.:/~)\]>-])(/(?:root|home|tmp|usr|opt|var|work|mnt|Users|private|data)\b[\w./-]*|[A-Z]:\\\w[^\s]*)"
)
_OWN = ("nnUNet", "MONAI_AUTOAUG", "MPLBACKEND")  # variables that would change what a notebook does
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def notebooks() -> list[Path]:
    """The notebooks by number."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def code(notebook: nbformat.NotebookNode) -> str:
    """A number that tells one notebook's code from another's: a change of text leaves it as it is."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\0".join(sources).encode()).hexdigest()


def _variables(source: str, given: Mapping[str, str]) -> str:
    """The cell of parameters with other values."""
    for name, value in given.items():
        source, count = re.subn(rf"(?m)^%env {name}=.*$", f"%env {name}={value}", source)
        if count != 1:
            raise ValueError(f"the cell of parameters sets no {name}")
    return source


def _environment(folder: Path) -> dict[str, str]:
    """These commands, nothing of the user's set-up, and threads that wait without keeping a core busy.

    A cell of commands ends at the first one that fails, not only if the last one does.
    """
    (folder / "strict").write_text("set -eo pipefail\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    scripts = sysconfig.get_path("scripts")
    return environment | {
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]), "BASH_ENV": str(folder / "strict"),
        "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PLATFORM_DIRS": "1", "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    }  # fmt: skip


def execute(path: Path, given: Mapping[str, str] | None = None, *, timeout: int = 3600) -> nbformat.NotebookNode:
    """Run a notebook in an empty temporary folder, as if it were there.

    Args:
        path: of the notebook.
        given: values of the variables in its cell of parameters.
        timeout: seconds a cell may take.

    Returns:
        The notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell has failed.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = _variables(cell.source, given or {})
    with tempfile.TemporaryDirectory() as setup, tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": folder}})
        client.execute(env=_environment(Path(setup)))
        _tidy(notebook, {folder: ".", os.path.realpath(folder): "."})
    return notebook


def _tidy(notebook: nbformat.NotebookNode, replaced: Mapping[str, str]) -> None:
    """Leave out what differs from machine to machine, what is drawn over in a terminal, and most bytes of pictures."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        RAN: code(notebook),
    }
    package = Path(sysconfig.get_path("purelib"))
    replaced = {**replaced, str(package): "site-packages", str(FOLDER.parent): "site-packages", sys.prefix: "venv"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream":
                same = outputs and outputs[-1].output_type == "stream" and outputs[-1].name == output.name
                if same:
                    outputs[-1].text += output.text
                    continue
            elif "image/png" in output.data:
                output.data["image/png"] = _small(output.data["image/png"])
            outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = _shown(output.text, replaced)
        cell.outputs = [output for output in outputs if output.output_type != "stream" or output.text.strip()]


def _shown(text: str, replaced: Mapping[str, str]) -> str:
    """What a terminal shows in the end of a text, with short names for folders, no spaces at the ends of lines."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n")
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    text = "\n".join(lines)
    for folder, name in replaced.items():
        text = text.replace(folder, name)
    return text


def _small(encoded: str) -> str:
    """A picture no wider than a page, in as many colours as there is room for."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        original = Image.new("RGB", picture.size, "white")
        original.paste(picture.convert("RGB"), mask=picture.convert("RGBA").getchannel("A"))
    content = b""
    for width, colours in LOOKS:
        size = (min(width, original.width), round(original.height * min(width, original.width) / original.width))
        stored = io.BytesIO()
        # an octree keeps rare colours, such as those of outlines; MONAI's grey volumes would take all of a median cut
        original.resize(size, Image.Resampling.LANCZOS).quantize(colours, Image.Quantize.FASTOCTREE).save(
            stored, "PNG", optimize=True
        )
        content = stored.getvalue()
        if len(content) <= LARGEST:
            break
    return base64.b64encode(content).decode() + "\n"


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """All texts that a notebook's cells have put out."""
    found: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found += [output["text"]] if "text" in output else []
            found += [value for kind, value in data.items() if kind.startswith("text/")]
            found += output.get("traceback", [])
    return found


def main(numbers: list[str]) -> None:
    """Run the notebooks of these numbers, or all, and write them back with their outputs."""
    chosen = [path for path in notebooks() if not numbers or path.name[:2] in numbers]
    for path in chosen:
        notebook = execute(path)
        left = sorted({found for text in texts(notebook) for found in OUTSIDE.findall(text)})
        if left:
            raise SystemExit(f"{path.name} tells of this machine: {', '.join(left)}")
        path.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
