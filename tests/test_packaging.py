# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is installed, and that README, the pages of docs/, .ci/run and command line say the same."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import click
import pytest
import yaml

import monai_autoaug
from monai_autoaug.cli import COMMANDS, main
from monai_autoaug.data import write_phantom
from monai_autoaug.nnunet.options import Options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
}
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def blocks(language: str, page: str | None = None) -> list[str]:
    """Of one page, or of all."""
    texts = PAGES.values() if page is None else [PAGES[page]]
    return [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def marked(name: str) -> str:
    found = re.findall(rf"<!-- {name} -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1
    return str(found[0]).strip()


def test_the_two_commands_of_the_first_screen_are_what_ci_runs() -> None:
    assert marked("main job") == "pip install . && monai-autoaug demo"
    assert marked("tests").startswith('pip install ".[test]" && pytest')
    assert re.findall(r'readme "([a-z ]+)"', CI) == ["main job", "tests"]
    first_screen = README.splitlines()[:45]
    assert "<!-- main job -->" in first_screen
    assert "<!-- tests -->" in first_screen
    assert sum(line.startswith("![") for line in first_screen) == 1


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\||\$\(|\)", line.split(" #")[0])]
    return list(dict.fromkeys(p for p in parts if p.startswith("monai-autoaug ")))


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_documentation_can_be_given(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = main
    context = click.Context(main, info_name="monai-autoaug")
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    command.make_context(command.name, words, parent=context, resilient_parsing=True)  # refuses what it doesn't know


def test_a_page_leads_from_a_decathlon_folder_to_a_trainer_of_nnunet() -> None:
    said = "\n".join(blocks("bash", "docs/nnunet.md"))
    steps = ["export nnUNet_raw=", "nnUNetv2_convert_MSD_dataset -i Task04_Hippocampus",
             "nnUNetv2_plan_and_preprocess -d 4", "export nnUNet_extTrainer=", "nnunet doctor",
             "nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerAutoAug ", "nnUNetv2_predict -i"]  # fmt: skip
    places = [said.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)
    installed = {point.name for point in metadata.entry_points(group="console_scripts")}
    assert set(re.findall(r"nnUNetv2_\w+", said)) <= installed


BROWSER = re.findall(r"^(install_browser\(\) \{.*?^browser=\$!$)", CI, re.MULTILINE | re.DOTALL)
WAIT = re.findall(r'^(wait "\$browser" .*?^tail .*?)$', CI, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("installs", [True, False])
def test_ci_installs_a_browser_and_fails_without_one(root: bool, installs: bool, tmp_path: Path) -> None:
    """The lines of .ci/run, on a system that is made up of a few commands."""
    system = tmp_path / "bin"
    system.mkdir()
    chromium = "printf '#!/bin/bash\\necho Chromium 1.2\\n' > $0.new; chmod +x $0.new; mv $0.new ${0%/*}/chromium"
    for name, code in {
        "id": f"echo {0 if root else 1000}", "apt-get": f'echo "$@" >> {tmp_path}/asked; [ $1 = install ] || exit 0;'
        + (chromium if installs else " echo no such package; exit 100"),
    }.items():  # fmt: skip
        (system / name).write_text(f"#!/bin/bash\n{code}\n")
        (system / name).chmod(0o755)
    for name in ("bash", "cat", "tail", "chmod", "mv"):
        (system / name).symlink_to(str(shutil.which(name)))
    script = "\n".join(["set -euo pipefail", *BROWSER, "echo meanwhile", *WAIT, "echo tests"])
    done = subprocess.run(
        ["bash", "-c", script], check=False, capture_output=True, text=True,
        env={"PATH": str(system), "work": str(tmp_path)},
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert ("install --quiet --yes --no-install-recommends chromium" in asked) == root
    assert done.stdout.startswith("meanwhile\n")
    if root and installs:
        assert done.returncode == 0, done.stderr
        assert done.stdout == "meanwhile\nChromium 1.2\ntests\n"
    else:
        assert done.returncode == 1
        assert "tests" not in done.stdout
        assert "there is no chromium" in done.stderr


def test_the_options_for_nnunet_in_the_documentation_are_options() -> None:
    for block in blocks("yaml"):
        options = Options.from_mapping(yaml.safe_load(block))
        assert (options.iterations_per_epoch is None) == (options.val_iterations_per_epoch is None)


def test_the_documentation_has_every_command_and_a_picture() -> None:
    assert {line.split()[1] for line in commands()} == set(COMMANDS)
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / p).stat().st_size > 10_000 for p in pictures)


@pytest.mark.parametrize("page", [*PAGES, "tutorials/README.md", "tutorials/own_method.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        file, _, place = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if place else []
        assert not place or place in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, link


def test_every_page_is_linked_from_the_readme() -> None:
    assert all(f"]({page})" in README for page in PAGES if page != "README.md")


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_of_the_documentation_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_phantom("data", cases=6, size=20)
    code = blocks("python")[number].replace("epochs=40", "epochs=1, iterations=2")
    exec(compile(code, f"documentation, block {number}", "exec"), {})  # noqa: S102  # our own pages


def distribution() -> metadata.Distribution:
    try:
        return metadata.distribution("monai_autoaug")
    except metadata.PackageNotFoundError:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            raise
        pytest.skip("the package is not installed")


def test_how_to_cite_is_what_the_readme_says() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(told)
    assert told["version"] == monai_autoaug.__version__
    assert f"version = {{{monai_autoaug.__version__}}}" in README
    assert told["license"] == "Apache-2.0"
    cited = " ".join(README.split("## Citation")[1].split())
    assert len(told["references"]) == len(re.findall(r"\[\d\] ", cited)) == 5
    for reference in told["references"]:
        assert reference["title"] in cited
        assert str(reference["year"]) in cited
        assert all(author["family-names"] in cited for author in reference["authors"])


def test_metadata_says_what_setup_cfg_says() -> None:
    installed = distribution().metadata
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert installed["Version"] == monai_autoaug.__version__
    assert installed["License-Expression"] == config["metadata"]["license_expression"] == "Apache-2.0"
    assert installed["Requires-Python"] == config["options"]["python_requires"]
    named = {re.split(r"[\[<>=!; ]", r)[0].lower() for r in config["options"]["install_requires"].split("\n") if r}
    assert {"torch", "monai", "nnunetv2", "pytorch-ignite", "simpleitk", "itk", "fire", "pyyaml"} <= named
    required = {re.split(r"[\[<>=!; ]", r)[0].lower() for r in distribution().requires or [] if "extra ==" not in r}
    assert required == named
    assert not {"torchvision", "timm"} & named


def test_what_is_installed() -> None:
    files = [str(f) for f in distribution().files or []]
    assert any(f.endswith("licenses/LICENSE") for f in files)
    if any(f.startswith("__editable__") for f in files):
        return  # an editable installation lists no modules
    assert "monai_autoaug/py.typed" in files
    assert [f for f in files if re.match(r"monai_autoaug/nnunet/ext/[^/]+\.py$", f)]
    assert not [f for f in files if f.split("/")[0] in ("tests", "bundles", "benchmarks", "docs", "build")]
    sizes = sum(f.locate().stat().st_size for f in distribution().files or [] if str(f).endswith(".py"))  # type: ignore[union-attr]
    assert sizes < 4e6  # data, weights or other people's code would make it larger


def test_every_source_file_has_the_licence_header() -> None:
    without = [
        str(f.relative_to(ROOT))
        for folder in ("monai_autoaug", "tests", "benchmarks")
        for f in (ROOT / folder).rglob("*.py")
        if not f.read_text(encoding="utf-8").startswith("# Copyright (c) monai_autoaug contributors\n# Licensed under")
    ]
    assert without == []
