# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every bundle obeys MONAI's specification and the model zoo's rules; its own file tests what it does."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from bundle_helpers import BUNDLES, CONFIGS, ROOT, SCHEMA, plain_unet, read, unmet_properties, walk
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

import monai_autoaug
from monai_autoaug import policies

every = pytest.mark.parametrize("source", BUNDLES, ids=lambda p: p.name)
copied = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda p: p.name, indirect=True)


def test_both_bundles_are_found() -> None:
    assert {"hippocampus_adversarial", "hippocampus_joint_policy"} <= {p.name for p in BUNDLES}


# --- files and metadata -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    ["LICENSE", *(f"configs/{name}.json" for name in ("metadata", *CONFIGS)), "configs/logging.conf", "docs/README.md",
     "docs/data_license.txt"],
)  # fmt: skip
@every
def test_every_file_of_the_zoo_layout_is_there(source: Path, file: str) -> None:
    assert (source / file).is_file()
    assert (source / file).stat().st_size > 0


@every
def test_bundle_is_configuration_only_and_small(source: Path) -> None:
    files = [p for p in source.rglob("*") if p.is_file() and "eval" not in p.relative_to(source).parts]
    assert not [p for p in files if p.suffix in (".py", ".so", ".ipynb")]
    assert all(p.stat().st_size < 5_000_000 for p in files)  # beyond 25 MB the zoo wants links
    assert (source / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "CC-BY-SA 4.0" in (source / "docs" / "data_license.txt").read_text()


@copied
def test_metadata_obeys_the_schema(bundle: Path) -> None:
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(bundle / "eval" / "schema.json"))


@pytest.mark.parametrize("key", ["required_packages_version", "network_data_format", "schema", "task"])
@every
def test_the_schema_check_can_fail(source: Path, key: str) -> None:
    metadata = read(source, "metadata")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.validate(metadata, schema)
    del metadata[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, schema)


@every
def test_metadata_says_what_the_zoo_asks_for(source: Path) -> None:
    metadata = read(source, "metadata")
    assert metadata["version"] in metadata["changelog"]
    assert metadata["schema"].endswith(SCHEMA.name)
    assert metadata["required_packages_version"]["monai_autoaug"] == monai_autoaug.__version__
    for name in (n for n in metadata if n.endswith("_data_format")):
        for tensor in (*metadata[name]["inputs"].values(), *metadata[name]["outputs"].values()):
            assert {"is_patch_data", "channel_def"} <= set(tensor)
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert list(outputs["channel_def"]) == ["0", "1", "2"]
    assert outputs["num_channels"] == read(source, "train")["num_classes"] == read(source, "inference")["num_classes"]
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == read(source, "train")["patch_size"]


@every
def test_scores_stand_where_weights_do_and_are_the_same_everywhere(source: Path) -> None:
    """No figure without weights, no weights without figures; until then README and metadata say that there are none."""
    text, metadata = (source / "docs" / "README.md").read_text(), read(source, "metadata")
    scores = text.split("## Scores")[1].split("# Commands")[0]
    if not (source / "models" / "model.pt").is_file():
        assert "eval_metrics" not in metadata
        assert not re.search(r"\b0\.\d", scores)
        assert "None were measured yet" in scores
        assert "nothing measured" in metadata["changelog"][metadata["version"]]
        return
    row = next(csv.reader([line], delimiter="|") for line in scores.splitlines() if line.startswith("| Dice"))
    cells = [float(cell) for cell in next(row)[2:5]]
    metrics = metadata["eval_metrics"]
    assert 0.5 < metrics["mean_dice"] < 1
    assert cells == pytest.approx([metrics["mean_dice"], metrics["dice_anterior"], metrics["dice_posterior"]])
    assert cells[0] == pytest.approx((cells[1] + cells[2]) / 2, abs=1e-3)


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@every
def test_components_are_named_by_full_path_and_exist(source: Path, name: str) -> None:
    targets = [n["_target_"] for n in walk(read(source, name)) if isinstance(n, dict) and "_target_" in n]
    assert targets
    for target in targets:
        assert target.split(".")[0] in ("monai", "monai_autoaug", "torch")
        module, _, attribute = target.rpartition(".")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute)


@every
def test_inference_prepares_images_as_training_does(source: Path) -> None:
    train, inference = read(source, "train"), read(source, "inference")
    for key in ("network_def", "num_classes", "patch_size", "spacing"):
        assert train[key] == inference[key]
    assert train.get("orientation") == inference.get("orientation")
    windows = train["validate"].get("windows", train["validate"]["inferer"])
    assert windows == inference.get("windows", inference["inferer"])

    def of_image(transforms: list[dict[str, Any]]) -> list[Any]:
        return [(t["_target_"], t.get("axcodes"), t.get("pixdim"), t.get("channel_wise")) for t in transforms]

    assert of_image(train["train"]["deterministic_transforms"]) == of_image(inference["preprocessing"]["transforms"])


@every
def test_number_of_classes_is_said_once(source: Path) -> None:
    for name in ("train", "evaluate"):
        for node in walk(read(source, name)):
            if isinstance(node, dict) and "to_onehot" in node:
                assert node["to_onehot"] == "@num_classes"


@every
def test_logging_configuration_has_only_what_monai_allows(source: Path) -> None:
    text = (source / "configs" / "logging.conf").read_text()
    assert re.findall(r"^class=(.*)$", text, re.M) == ["StreamHandler"]
    assert re.findall(r"^args=(.*)$", text, re.M) == ["(sys.stdout,)"]


@copied
def test_network_takes_and_gives_what_metadata_says(bundle: Path) -> None:
    verify_net_in_out(
        net_id="network_def", meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"), bundle_root=str(bundle), device="cpu",
    )  # fmt: skip


@copied
def test_weights_are_a_plain_unet_and_export_to_torchscript(bundle: Path) -> None:
    plain, file = plain_unet(), bundle / "models" / "model.pt"
    if file.is_file():
        plain.load_state_dict(torch.load(file, weights_only=True))
    else:
        file.parent.mkdir(exist_ok=True)
        torch.save(plain.state_dict(), file)
    exported = bundle / "models" / "verify_model.ts"
    ckpt_export(
        net_id="network_def", filepath=str(exported), ckpt_file=str(file),
        meta_file=str(bundle / "configs" / "metadata.json"), config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
    )  # fmt: skip
    image = torch.randn(1, 1, *read(bundle, "train")["patch_size"])
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(exported).eval()(image), plain.eval()(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("workflow", "config"), [("train", "train"), ("infer", "inference")])
@copied
def test_properties_are_where_monai_looks_for_them(workflow: str, config: str, bundle: Path, synthetic: Path) -> None:
    if not (bundle / "models" / "policy.json").exists() and "policy.json" in json.dumps(read(bundle, config)):
        (bundle / "models").mkdir(exist_ok=True)
        views = policies.TestTimePolicy.preset("nnunet")
        policies.save(bundle / "models" / "policy.json", test_time=views)
    assert not unmet_properties(bundle, synthetic, workflow, config)


@pytest.mark.parametrize("missing", ["train::trainer", "train::inferer", "train::dataset"])
@copied
def test_the_property_check_can_fail(missing: str, bundle: Path, synthetic: Path) -> None:
    path = bundle / "configs" / "train.json"
    path.write_text(path.read_text().replace(f'"{missing.rpartition("::")[2]}": ', '"elsewhere": '))
    with pytest.raises((KeyError, RuntimeError, ValueError)):
        unmet_properties(bundle, synthetic, "train", "train")


@every
def test_training_is_resumed_on_the_same_files_alone(source: Path) -> None:
    """On all of the data set: how many there are decides which of them validate."""
    handlers = read(source, "train")["train"]["handlers"]
    (checkpoint,) = [h for h in handlers if h["_target_"] == "monai_autoaug.engines.TrainingCheckpoint"]
    assert checkpoint["files"] == "$@images + @labels"


@every
def test_commands_of_the_readme_are_the_ones_tested_here(source: Path) -> None:
    text = (source / "docs" / "README.md").read_text()
    commands = [shlex.split(line) for line in text.splitlines() if "monai.bundle" in line]
    assert len(commands) >= 7
    for command in commands:
        for word in command:
            for file in re.findall(r"configs/[\w.]+", word):
                assert (source / file).is_file(), file
    assert "@" not in text.split("## Scores")[1].split("# Commands")[0]
