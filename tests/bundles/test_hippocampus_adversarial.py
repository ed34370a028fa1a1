# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The bundle obeys MONAI's specification and the model zoo's rules, and every one of its workflows runs for real."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.networks.nets import UNet

import monai_autoaug
from monai_autoaug import augmenters

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "hippocampus_adversarial"
SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")
CONFIGS = ["train", "evaluate", "inference", "multi_gpu_train"]
CASES = 12


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
    return content


def walk(node: Any) -> Iterator[Any]:
    """Every value of a configuration, nested ones too."""
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from walk(child)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the bundle to write into; the schema lies where the checks look for it, so they need no network."""
    copy = tmp_path / BUNDLE.name
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("eval", "__pycache__"))
    (copy / "eval").mkdir()
    shutil.copy(SCHEMA, copy / "eval" / "schema.json")
    return copy


@pytest.fixture
def data(hippocampus: Path, tmp_path: Path) -> Path:
    """A few real cases in the layout of the Medical Segmentation Decathlon."""
    folder = tmp_path / hippocampus.name
    for part, source in (("imagesTr", "imagesTr"), ("labelsTr", "labelsTr"), ("imagesTs", "imagesTr")):
        (folder / part).mkdir(parents=True)
        for file in sorted((hippocampus / source).glob("*.nii.gz"))[: 2 if part == "imagesTs" else CASES]:
            (folder / part / file.name).symlink_to(file)
    return folder


def call(bundle: Path, *arguments: object, launcher: tuple[str, ...] = ("-m", "monai.bundle")) -> str:
    """Run a command of the README in the bundle's folder; its whole output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)], cwd=bundle, env=environment, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def run(bundle: Path, data: Path, *configs: str, **options: object) -> str:
    files = str([f"configs/{name}.json" for name in configs])
    more = [part for name, value in options.items() for part in (f"--{name}", value)]
    return call(
        bundle, "run", "--meta_file", "configs/metadata.json", "--config_file", files, "--logging_file",
        "configs/logging.conf", "--dataset_dir", data, *more,
    )  # fmt: skip


# --- files and metadata -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "LICENSE",
        "configs/metadata.json",
        "configs/train.json",
        "configs/evaluate.json",
        "configs/inference.json",
        "configs/multi_gpu_train.json",
        "configs/logging.conf",
        "docs/README.md",
        "docs/data_license.txt",
        "models/model.pt",
        "models/augmenters.pt",
    ],
)
def test_every_file_of_the_zoo_layout_is_there(file: str) -> None:
    assert (BUNDLE / file).is_file()
    assert (BUNDLE / file).stat().st_size > 0


def test_bundle_is_configuration_only_and_small() -> None:
    files = [p for p in BUNDLE.rglob("*") if p.is_file() and "eval" not in p.relative_to(BUNDLE).parts]
    assert not [p for p in files if p.suffix in (".py", ".so", ".ipynb")]
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 5_000_000
    assert all(p.stat().st_size < 25_000_000 for p in files)  # from there on the zoo wants links
    assert (BUNDLE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "CC-BY-SA 4.0" in (BUNDLE / "docs" / "data_license.txt").read_text()


def test_metadata_obeys_the_schema(bundle: Path) -> None:
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(bundle / "eval" / "schema.json"))


@pytest.mark.parametrize("key", ["required_packages_version", "network_data_format", "schema", "task"])
def test_the_schema_check_can_fail(key: str) -> None:
    metadata = read("metadata")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(metadata, schema)
    del metadata[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, schema)


def test_metadata_says_what_the_zoo_asks_for() -> None:
    metadata = read("metadata")
    assert metadata["version"] in metadata["changelog"]
    assert metadata["schema"].endswith(SCHEMA.name)
    assert metadata["required_packages_version"]["monai_autoaug"] == monai_autoaug.__version__
    for name in ("network", "augmenter", "discriminator"):
        form = metadata[f"{name}_data_format"]
        for tensor in (*form["inputs"].values(), *form["outputs"].values()):
            assert {"is_patch_data", "channel_def"} <= set(tensor)
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert list(outputs["channel_def"]) == ["0", "1", "2"]
    assert outputs["num_channels"] == read("train")["num_classes"] == read("inference")["num_classes"]
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == read("train")["patch_size"]
    assert 0.5 < metadata["eval_metrics"]["mean_dice"] < 1


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_components_are_named_by_full_path_and_exist(name: str) -> None:
    targets = [node["_target_"] for node in walk(read(name)) if isinstance(node, dict) and "_target_" in node]
    assert targets
    for target in targets:
        assert target.split(".")[0] in ("monai", "monai_autoaug", "torch")
        module, _, attribute = target.rpartition(".")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute)


def test_inference_needs_monai_alone() -> None:
    assert "autoaug" not in (BUNDLE / "configs" / "inference.json").read_text()


def test_inference_prepares_images_as_training_does() -> None:
    train, inference = read("train"), read("inference")
    for key in ("network_def", "num_classes", "patch_size", "spacing"):
        assert train[key] == inference[key]
    assert train["validate"]["inferer"] == inference["inferer"]

    def of_image(transforms: list[dict[str, Any]]) -> list[Any]:
        return [(t["_target_"], t.get("axcodes"), t.get("pixdim"), t.get("channel_wise")) for t in transforms]

    assert of_image(train["train"]["deterministic_transforms"]) == of_image(inference["preprocessing"]["transforms"])


def test_number_of_classes_is_said_once() -> None:
    for name in ("train", "evaluate"):
        for node in walk(read(name)):
            if isinstance(node, dict) and "to_onehot" in node:
                assert node["to_onehot"] == "@num_classes"


def test_logging_configuration_has_only_what_monai_allows() -> None:
    text = (BUNDLE / "configs" / "logging.conf").read_text()
    assert re.findall(r"^class=(.*)$", text, re.M) == ["StreamHandler"]
    assert re.findall(r"^args=(.*)$", text, re.M) == ["(sys.stdout,)"]


def test_network_takes_and_gives_what_metadata_says(bundle: Path) -> None:
    verify_net_in_out(
        net_id="network_def", meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"), bundle_root=str(bundle), device="cpu",
    )  # fmt: skip


def test_weights_are_a_plain_unet_and_export_to_torchscript(bundle: Path) -> None:
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    plain = UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm=("instance", {"affine": True}))
    plain.load_state_dict(weights)
    exported = bundle / "models" / "verify_model.ts"
    ckpt_export(
        net_id="network_def", filepath=str(exported), ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"), config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
    )  # fmt: skip
    image = torch.randn(1, 1, 40, 56, 40)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(exported).eval()(image), plain.eval()(image), rtol=1e-4, atol=1e-4)


def test_augmenters_are_the_three_kinds() -> None:
    assert sorted(augmenters.load(BUNDLE / "models" / "augmenters.pt")) == ["affine", "appearance", "deformation"]


def unmet_properties(bundle: Path, data: Path, workflow: str, config: str) -> Any:
    """What MONAI misses in a configuration; raises where it can't even be read."""
    made = ConfigWorkflow(
        str(bundle / "configs" / f"{config}.json"), str(bundle / "configs" / "metadata.json"), False,
        workflow_type=workflow, bundle_root=str(bundle), dataset_dir=str(data), device="cpu",
    )  # fmt: skip
    made.initialize()
    return made.check_properties()


@pytest.mark.parametrize(("workflow", "config"), [("train", "train"), ("infer", "inference")])
def test_properties_are_where_monai_looks_for_them(workflow: str, config: str, bundle: Path, data: Path) -> None:
    assert not unmet_properties(bundle, data, workflow, config)


@pytest.mark.parametrize("missing", ["train::trainer", "train::inferer", "train::dataset"])
def test_the_property_check_can_fail(missing: str, bundle: Path, data: Path) -> None:
    path = bundle / "configs" / "train.json"
    path.write_text(path.read_text().replace(f'"{missing.rpartition("::")[2]}": ', '"elsewhere": '))
    with pytest.raises((KeyError, RuntimeError, ValueError)):
        unmet_properties(bundle, data, "train", "train")


def test_commands_of_the_readme_are_the_ones_tested_here() -> None:
    text = (BUNDLE / "docs" / "README.md").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if "monai.bundle" in line]
    assert len(commands) >= 7
    for command in commands:
        for word in command:
            for file in re.findall(r"configs/[\w.]+", word):
                assert (BUNDLE / file).is_file(), file
    assert "@" not in text.split("## Scores")[1].split("# Commands")[0]


# --- workflows for real -----------------------------------------------------------------------------------------------


def test_train_resume_evaluate_and_segment(bundle: Path, data: Path) -> None:
    for file in (bundle / "models").iterdir():
        file.unlink()
    log = run(bundle, data, "train", epochs=1, val_interval=1)
    assert "loss_affine" in log
    assert "loss_appearance" in log
    assert "val_mean_dice" in log
    first = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert (bundle / "models" / "augmenters.pt").is_file()
    resumed = run(bundle, data, "train", epochs=2, val_interval=1, resume="true")
    assert "Epoch: 2/2" in resumed
    assert "Epoch: 1/2" not in resumed
    second = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert first.keys() == second.keys()
    evaluated = run(bundle, data, "train", "evaluate")
    with (bundle / "eval" / "metrics.csv").open() as table:
        rows = dict(csv.reader(table))
    assert 0 <= float(rows["val_mean_dice"]) <= 1
    assert "val_mean_dice" in evaluated
    run(bundle, data, "inference")
    check_predictions(bundle, data)


def check_predictions(bundle: Path, data: Path) -> None:
    """A segmentation of every image, in the image's own geometry, of whole class numbers."""
    images = sorted((data / "imagesTs").iterdir())
    for image in images:
        made = nib.load(bundle / "eval" / image.name.replace(".nii.gz", "_seg.nii.gz"))
        source = nib.load(image)
        assert made.shape == source.shape
        np.testing.assert_allclose(made.affine, source.affine, atol=1e-4)
        assert made.get_data_dtype() == np.uint8
        assert set(np.unique(np.asanyarray(made.dataobj))) <= {0, 1, 2}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_shipped_weights_segment_without_this_package(bundle: Path, data: Path, hippocampus: Path) -> None:
    """Inference in an interpreter where monai_autoaug can't be imported; the last cases are the validation ones."""
    last = sorted((hippocampus / "imagesTr").glob("*.nii.gz"))[-2:]
    for file in (data / "imagesTs").iterdir():
        file.unlink()
    for file in last:
        (data / "imagesTs" / file.name).symlink_to(file)
    blocked = bundle / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys\nsys.modules['monai_autoaug'] = None\n")
    environment = os.environ | {"PYTHONPATH": str(blocked), "OMP_NUM_THREADS": "1"}
    refused = subprocess.run([sys.executable, "-c", "import monai_autoaug"], env=environment, check=False,
                             capture_output=True)  # fmt: skip
    assert refused.returncode != 0
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--dataset_dir",
         str(data)],
        cwd=bundle, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    check_predictions(bundle, data)
    for file in last:
        made = np.asanyarray(nib.load(bundle / "eval" / file.name.replace(".nii.gz", "_seg.nii.gz")).dataobj)
        truth = np.asanyarray(nib.load(hippocampus / "labelsTr" / file.name).dataobj)
        assert dice(made > 0, truth > 0) > 0.8


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_two_processes_train_by_the_multi_gpu_configuration(bundle: Path, data: Path) -> None:
    shutil.rmtree(bundle / "models")
    launcher = (
        "-m", "torch.distributed.run", "--nnodes=1", "--nproc_per_node=2", "--master_addr=127.0.0.1",
        f"--master_port={free_port()}", "-m", "monai.bundle",
    )  # fmt: skip
    log = call(
        bundle, "run", "--meta_file", "configs/metadata.json", "--config_file",
        "['configs/train.json','configs/multi_gpu_train.json']", "--logging_file", "configs/logging.conf",
        "--dataset_dir", data, "--epochs", 1, "--val_interval", 1, launcher=launcher,
    )  # fmt: skip
    assert log.count("Epoch: 1/1, Iter: 1/2") == 1  # rank 0 alone talks
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    plain = UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2, norm=("instance", {"affine": True}))
    plain.load_state_dict(weights)
    state = torch.load(bundle / "eval" / "checkpoint.pt", weights_only=True)
    assert len(state["autoaug"]["ranks"]) == 2


@pytest.mark.parametrize("method", ["none", pytest.param("random", marks=pytest.mark.long)])
def test_other_methods_by_one_option(method: str, bundle: Path, data: Path) -> None:
    log = run(bundle, data, "train", epochs=1, val_interval=1, method=method)
    assert "val_mean_dice" in log
    assert ("loss_affine" in log) == (method == "random")


def test_scores_of_the_readme_are_those_of_the_metadata() -> None:
    text = (BUNDLE / "docs" / "README.md").read_text()
    row = next(csv.reader([line], delimiter="|") for line in text.splitlines() if line.startswith("| Dice"))
    cells = [float(cell) for cell in next(row)[2:5]]
    metrics = read("metadata")["eval_metrics"]
    assert cells == pytest.approx([metrics["mean_dice"], metrics["dice_anterior"], metrics["dice_posterior"]])
    assert cells[0] == pytest.approx((cells[1] + cells[2]) / 2, abs=1e-3)
