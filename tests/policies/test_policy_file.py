# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""``policy.json``: what is written is read again, bit for bit, and everything else is refused by name."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from monai.transforms import RandGaussianSmooth

from monai_autoaug import policies
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.policies import Laterality, TestTimePolicy, TrainingPolicy
from monai_autoaug.policies.schema import SCHEMA
from monai_autoaug.transforms import Cascade, Operation, from_monai, training_cascades


def learned() -> tuple[TrainingPolicy, TestTimePolicy]:
    """Policies whose every option is not the default."""
    sides = Laterality(((1, 2), (4, 3)), axis=1, mirrors="off")
    training = TrainingPolicy.preset(
        "deepmedic", ("background", "left lung", "Lunge rechts, groß"), extra=("gibbs", "elastic"), without=("noise",),
        temperature=0.7, floor=0.01, laterality=sides,
    )  # fmt: skip
    test_time = TestTimePolicy.preset(
        "nnunet", level="patch", average="probabilities", regions=True, laterality=sides, z=5
    )
    for policy in (training, test_time):
        with torch.no_grad():
            policy.logits.add_(torch.randn_like(policy.logits) * 3)
    return training, test_time


def written(folder: Path) -> Path:
    training, test_time = learned()
    return policies.save(folder / "policy.json", training=training, test_time=test_time, provenance={"seed": 7})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    training, test_time = learned()
    path = policies.save(
        tmp_path / "new" / "policy.json", training=training, test_time=test_time,
        provenance={"seed": 7, "data": "sha256:0a1b", "hours": 1.5, "planned": True, "cases": None},
    )  # fmt: skip
    again = policies.load(path)
    assert again.training is not None
    assert again.test_time is not None
    assert torch.equal(again.training.logits, training.logits)
    assert torch.equal(again.test_time.logits, test_time.logits)
    assert again.training.cascades == training.cascades
    assert again.test_time.operations == test_time.operations
    for name in ("classes", "temperature", "floor", "laterality", "spatial_dims"):
        assert getattr(again.training, name) == getattr(training, name)
    for name in ("level", "average", "regions", "z", "laterality", "spatial_dims"):
        assert getattr(again.test_time, name) == getattr(test_time, name)
    assert again.provenance["seed"] == 7
    assert again.provenance["data"] == "sha256:0a1b"
    assert set(again.provenance) >= {"monai_autoaug", "torch", "monai", "hours", "planned", "cases"}
    assert again.training.logits.requires_grad
    once_more = policies.save(
        tmp_path / "b.json", training=again.training, test_time=again.test_time, provenance=again.provenance
    )
    assert once_more.read_bytes() == path.read_bytes()
    image, indices = torch.rand(2, 1, 8, 8, 8), training.sample(torch.tensor([0, 2]))[0]
    both = [p.apply(image, None, indices, torch.Generator().manual_seed(0))[0] for p in (training, again.training)]
    assert torch.equal(*both)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["training", "test_time"])
def test_each_policy_alone(tmp_path: Path, kind: str, dims: int) -> None:
    made: Any = (TrainingPolicy if kind == "training" else TestTimePolicy).preset("nnunet", spatial_dims=dims)
    both = policies.load(policies.save(tmp_path / "p.json", **{kind: made}))
    assert torch.equal(getattr(both, kind).logits, made.logits)
    assert getattr(both, "test_time" if kind == "training" else "training") is None


def test_a_person_can_read_it(tmp_path: Path) -> None:
    text = written(tmp_path).read_text(encoding="utf-8")
    assert "Lunge rechts, groß" in text
    line = next(x for x in text.splitlines() if '"scale_1.00_1.10"' in x)
    for word in ('"range": [1.0, 1.1]', '"unit": "factor of the field of view"', '"probability": {"background": 0.'):
        assert word in line
    assert max(map(len, text.splitlines())) < 500
    assert len(text) < 60_000
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(json.loads(text))


def own() -> Cascade:
    blur = from_monai(RandGaussianSmooth(prob=1.0), "monai_blur", kind="resolution")
    return Cascade("mine", (Operation("identity"), blur))


def test_own_operations_are_given_again(tmp_path: Path) -> None:
    policy = TrainingPolicy([own(), *training_cascades()[:2]], identity=0.6)
    path = policies.save(tmp_path / "p.json", training=policy)
    with pytest.raises(
        PolicyError, match=r"p.json: .*does not have: monai_blur\. To do: .*give what is yours as cascades="
    ):
        policies.load(path)
    again = policies.load(path, cascades=[own()]).training
    assert again is not None
    assert again.cascades == policy.cascades
    x = torch.rand(1, 1, 6, 6, 6)
    assert not torch.equal(again.apply(x, None, torch.tensor([[1, 0, 0]]))[0], x)


def first(content: dict[str, Any]) -> dict[str, Any]:
    return content["training"]["cascades"][0]["operations"][1]  # type: ignore[no-any-return]


def change(where: Callable[[dict[str, Any]], Any], **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: where(content).update(values)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (change(lambda c: c, format="x"), "field format: .*expected 'monai_autoaug.policy', came 'x'"),
    "newer": (
        change(lambda c: c, version=2),
        "field version: .*newer version; expected at most 1, came 2. To do: update",
    ),
    "version is text": (change(lambda c: c, version="1"), "field version: .*expected const 1, came '1'"),
    "both missing": (lambda c: [c.pop(k) for k in ("training", "test_time")], r"field \(the whole file\)"),
    "more": (change(lambda c: c["training"], colour=1), "field training: .*'colour'"),
    "less": (lambda c: c["test_time"].pop("level"), "field test_time: .*'level' is a required property"),
    "unknown level": (change(lambda c: c["test_time"], level="slice"), r"field test_time.level: .*came 'slice'"),
    "logit is text": (
        change(lambda c: first(c)["logit"], background="1"),
        r"field training.cascades\[0\].operations\[1\].logit.background: .*expected type 'number', came '1'",
    ),
    "huge logit": (
        change(lambda c: first(c)["logit"], background=10**40),
        r"training.cascades\[0\].operations\[1\].logit.background: expected a number below 1e30",
    ),
    "probability above 1": (change(lambda c: first(c)["probability"], background=2), "maximum 1, came 2"),
    "edited probability": (
        change(lambda c: first(c)["probability"], background=0.987),
        r"class background, operation scale_1.00_1.10: expected the probability of its logits, .*came 0.987",
    ),
    "edited view": (
        change(lambda c: c["test_time"]["views"][3], probability=0.987),
        "test_time, operation scale_1.15: expected the probability of its logits",
    ),
    "unknown operation": (
        lambda c: (first(c).update(name="zoom"), c["training"]["cascades"][1]["operations"][2].update(name="spin")),
        "field training.cascades: names operations that this version does not have: spin, zoom. To do: use the version",
    ),
    "unknown view": (
        change(lambda c: c["test_time"]["views"][0], name="nothing"),
        "test_time.views: .*not have: nothing",
    ),
    "another range": (
        change(first, range=[1.0, 1.2]),
        r"training.cascades, scale, scale_1.00_1.10, range: expected \[1.0, 1.1\], came \[1.0, 1.2\]",
    ),
    "another magnitude": (
        change(lambda c: c["test_time"]["views"][1], magnitude=1.2),
        "scale_1.05, magnitude: expected 1.05",
    ),
    "another opposite": (change(first, opposite="none"), "opposite: expected reciprocal, came none"),
    "class without logit": (
        lambda c: first(c)["logit"].pop("background"),
        "expected logits and probabilities of the classes background, left lung, Lunge",
    ),
    "classes twice": (change(lambda c: c["training"], classes=["a", "a"]), "classes must be names, none twice"),
    "identity last": (
        lambda c: c["training"]["cascades"][0]["operations"].reverse(),
        "cascade scale must begin with the identity",
    ),
    "cascade twice": (
        lambda c: c["training"]["cascades"].append(c["training"]["cascades"][0]),
        "names of their own, got twice: scale",
    ),
    "laterality": (
        change(lambda c: c["training"], laterality={"pairs": [[1, 1]], "axis": 0, "mirrors": "swap"}),
        "each label must be in one pair only",
    ),
    "laterality of another axis": (
        change(lambda c: c["training"], laterality={"pairs": [[1, 2]], "axis": 2, "mirrors": "off"}),
        "names .* operations, of which its own laterality allows",
    ),
    "too many views": (change(lambda c: c["test_time"], views_averaged=85), "z must be a number of views"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_was_edited_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    edit, message = EDITS[name]
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(PolicyError, match=f"^{re.escape(str(path))}: .*{message}"):
        policies.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no policy file; expected JSON"),
        (b'{"format": "monai_autoaug.policy", "version": 1', "is no policy file; expected JSON .*To do: copy the file"),
        (b"[1, 2]", "expected 'monai_autoaug.policy', came 'list'"),
        (b"\xff\xfe\x00", "is no policy file"),
        (pickle.dumps({"format": "monai_autoaug.policy"}), "is no policy file"),
        (b'{"version": NaN}', "NaN is no number"),
        (b'{"version": -Infinity}', "-Infinity is no number"),
        (b'{"version": 1e999}', "1e999 is no number"),
        (b'{"version": 1' + b"0" * 400 + b"}", "a number has 401 digits"),
        (b'{"version": 1, "version": 1}', "a field is given twice: 'version'"),
        (b"[" * 200_000, "is no policy file"),
        (b" " * (16 * 2**20 + 1), "too large: expected at most 16777216 bytes"),
    ],
    ids=["empty", "cut", "list", "utf16", "pickle", "nan", "infinity", "overflow", "digits", "twice", "deep", "large"],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=f"^{re.escape(str(path))}: .*{message}"):
        policies.load(path)


def test_deep_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    deep = '{"format": "monai_autoaug.policy", "version": 1, "provenance": ' + '{"a": ' * 400 + "1" + "}" * 401
    path.write_text(deep, encoding="utf-8")
    with pytest.raises(PolicyError, match=re.escape(str(path))):
        policies.load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(
            PolicyError, match=f"{re.escape(str(path))}: can't be read .*give the path of a policy.json"
        ):
            policies.load(path)


def test_what_cannot_be_written_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    broken = TrainingPolicy.preset("nnunet")
    with torch.no_grad():
        broken.logits[1, 3] = torch.nan
    with pytest.raises(PolicyError, match=r"training.cascades\[0\].operations\[0\].probability.foreground: .*came nan"):
        policies.save(path, training=broken)
    with pytest.raises(ConfigError, match="needs a training-time policy, a test-time policy, or both"):
        policies.save(path)
    for value in ("/data/cases", "C:\\data\\cases"):
        with pytest.raises(ConfigError, match="provenance 'data' is a path"):
            policies.save(path, training=TrainingPolicy.preset("nnunet"), provenance={"data": value})
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["policy.json"]
