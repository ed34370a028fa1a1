# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What is exported, what is refused, and what is never in a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from export_helpers import mixed_policy
from monai.transforms import RandGaussianSmooth

from monai_autoaug.cli import main
from monai_autoaug.errors import ConfigError, PolicyError
from monai_autoaug.policies import Policies, Seen, TestTimePolicy, TrainingPolicy, save
from monai_autoaug.policies.export import TARGETS, export
from monai_autoaug.policies.export.plan import Deed, deed, plan
from monai_autoaug.transforms import (
    Cascade,
    Operation,
    extra_cascades,
    from_monai,
    operations_at_test_time,
    training_cascades,
)

BOTH = Policies(TrainingPolicy.preset("nnunet"), TestTimePolicy.preset("nnunet"), {"seed": 1})


def call(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(w) for w in words], env={"COLUMNS": "300"})
    return done.exit_code, done.stdout, done.stderr


def test_every_operation_of_the_catalogue_is_known() -> None:
    every = [o for d in (2, 3) for c in (*training_cascades(d), *extra_cascades().values()) for o in c.operations]
    for operation in [*every, *operations_at_test_time(), *operations_at_test_time(2)]:
        found = deed(operation)
        letters = re.match(r"(rotate|flip)_([dhw]+)", operation.name)
        assert found.axes == tuple("dhw".index(a) for a in (letters[2] if letters else ""))
        if operation.name.endswith("_180"):
            assert found.what == "flip"
        else:
            assert (found.low, found.high) == (operation.low, operation.high)
    assert deed(Operation("identity")) == Deed("identity")


def test_cascades_come_in_order_of_execution_and_without_what_is_never_drawn() -> None:
    policy = TrainingPolicy.preset("nnunet", without=["badd"])
    with torch.no_grad():
        policy.logits[:, 1] = -1000.0
    found = plan(Policies(policy))
    assert [s.name for s in found.slots] == [
        "rotS", "rotL", "rotF", "scale", "noise", "sharpen", "bmul", "contrast", "simulow", "invgamma", "gamma",
        "mirrorS", "mirrorF", "mirrorA",
    ]  # fmt: skip
    names = {row.operation.name for slot in found.slots for row in slot.rows}
    assert "scale_1.00_1.10" not in names
    assert "scale_1.10_1.20" in names
    for slot in found.slots:
        for k in range(2):
            assert sum(row.probabilities[k] for row in slot.rows) == pytest.approx(1, abs=1e-5)


def test_operations_of_ones_own_are_refused_by_name() -> None:
    own = from_monai(RandGaussianSmooth(prob=1.0), "monai_blur", kind="resolution")
    policy = TrainingPolicy([Cascade("mine", (Operation("identity"), own)), *training_cascades()])
    other = replace(training_cascades()[7][1], high=3.0)  # under a name of the catalogue
    disguised = TrainingPolicy([Cascade("gamma", (Operation("identity"), other))])
    for target in TARGETS:
        with pytest.raises(PolicyError, match="monai_blur.*LearnedPolicyd"):
            export(Policies(policy), target)
        with pytest.raises(PolicyError, match=r"gamma_1.00_1.20"):
            export(Policies(disguised), target)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'torchio'"):
        export(BOTH, "torchi0")


def test_torchio_refuses_slices() -> None:
    with pytest.raises(PolicyError, match="slices"):
        export(Policies(TrainingPolicy.preset("nnunet", spatial_dims=2)), "torchio")


@pytest.mark.parametrize("target", TARGETS)
def test_limits_stand_at_the_head_and_nothing_tells_of_the_machine(target: str, tmp_path: Path) -> None:
    file = save(tmp_path / "policy.json", training=BOTH.training, test_time=BOTH.test_time, provenance={"fold": 2})
    output = tmp_path / "out"
    suffix = {"monai": ".yaml", "markdown": ".md"}.get(target, ".py")
    code, printed, _ = call("export", file, "--to", target, "--output", output.with_suffix(suffix))
    assert code == 0
    text = output.with_suffix(suffix).read_text()
    limits = export(BOTH, target).limits
    assert bool(limits) == (target != "markdown")
    flat = " ".join(re.sub(r"^# ?", "", line).strip() for line in text.splitlines())
    for limit in limits:
        assert limit in " ".join(flat.split())
        assert limit in printed
    assert str(tmp_path) not in text
    assert not re.search(r"(?<![\w:])/(home|root|tmp|work|usr)/", text)


def test_limits_speak_of_what_the_policy_does_only() -> None:
    plain = TrainingPolicy.preset("nnunet", without=["rotF", "rotS", "rotL", "scale", "sharpen"])
    told = " ".join(export(Policies(plain), "monai").limits)
    assert "resampled" not in told
    assert "quarter turn" not in told
    assert "elastic" not in told
    more = " ".join(export(Policies(TrainingPolicy.preset("nnunet", extra=["elastic"])), "monai").limits)
    for word in ("resampled more than once", "quarter turn", "elastic", "nearest voxel"):
        assert word in more


def test_how_often_monai_resamples_twice_is_computed_from_the_policy() -> None:
    """One rotation of probability 0.1 and a zoom of 0.2: both in 2 % of the patches."""
    policy = TrainingPolicy.preset("nnunet", ("all",), without=["rotS", "rotL", "rotate_hw_90"])
    told = " ".join(export(Policies(policy), "monai").limits)
    assert "2.0% of the patches are resampled more than once" in told
    assert "quarter turn" not in told
    turns = TrainingPolicy.preset("nnunet", ("all",), without=["rotS", "rotL"])
    assert "in up to 0.5% of the patches" in " ".join(export(Policies(turns), "monai").limits)  # 0.025 * 0.2


def test_the_command_refuses_to_overwrite_and_wrong_suffixes(tmp_path: Path) -> None:
    file = save(tmp_path / "policy.json", training=BOTH.training)
    output = tmp_path / "policy.py"
    assert call("export", file, "--to", "torchio", "-o", output)[0] == 0
    code, _, error = call("export", file, "--to", "batchgeneratorsv2", "-o", output)
    assert code == 2
    assert "--overwrite" in error
    assert "TorchIO" in output.read_text()
    assert call("export", file, "--to", "batchgeneratorsv2", "-o", output, "--overwrite")[0] == 0
    assert "TorchIO" not in output.read_text()
    code, _, error = call("export", file, "--to", "monai", "-o", tmp_path / "policy.txt")
    assert code == 2
    assert ".yaml" in error
    code, _, error = call("export", file, "--to", "monai", "-o", output / "policy.yaml")  # a file is no folder
    assert code == 2
    assert "policy.py" in error


def test_the_command_writes_to_standard_output_and_takes_a_run(tmp_path: Path) -> None:
    save(tmp_path / "policy.json", training=BOTH.training, test_time=BOTH.test_time)
    code, printed, told = call("export", tmp_path, "--to", "monai")
    assert code == 0
    assert printed == export(BOTH, "monai").text
    assert "what is otherwise there" in told
    code, _, error = call("export", tmp_path / "nothing.json", "--to", "monai")
    assert code == 2
    assert "policy.json" in error


def test_the_command_refuses_a_policy_over_operations_of_ones_own(tmp_path: Path) -> None:
    own = from_monai(RandGaussianSmooth(prob=1.0), "monai_blur", kind="resolution")
    policy = TrainingPolicy([Cascade("mine", (Operation("identity"), own))])
    file = save(tmp_path / "policy.json", training=policy)
    code, _, error = call("export", file, "--to", "torchio")
    assert code == 2
    assert "monai_blur" in error
    assert "can't be exported" in error


def test_markdown_tells_probabilities_by_class_the_start_and_what_is_decided() -> None:
    policy = mixed_policy()
    count = policy.logits.shape[1]
    seen = Seen(torch.full((2, count), 0.25), torch.zeros(2, count), torch.full((2, count), torch.inf))
    seen.advantage[1, 1], seen.error[1, 1] = 1.0, 0.1
    text = export(Policies(policy, seen=seen, provenance={"data": "a|b"}), "markdown").text
    cascade = policy.cascades[0]
    shares = [100 * float(policy.probabilities(name)[0][1].detach()) for name in policy.classes]
    row = next(line for line in text.splitlines() if f" {cascade[1].name} |" in line)
    assert f"{shares[0]:.1f} % (25.0 %)" in row
    assert f"**{shares[1]:.1f} %** (25.0 %)" in row
    assert "| data | a\\|b |" in text
    wide = {
        line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|") and "rotate" in line
    }
    assert wide == {6}
    views = export(Policies(test_time=TestTimePolicy.preset("nnunet")), "markdown").text
    assert views.count("12.5 %") == 8


def test_a_policy_that_does_nothing_can_be_exported(tmp_path: Path) -> None:
    for target in TARGETS:
        assert export(Policies(TrainingPolicy.preset("none"), TestTimePolicy.preset("none")), target).text


def test_class_names_of_any_kind_are_written_as_text() -> None:
    policy = TrainingPolicy.preset("nnunet", ("1", 'the "left" kidney\\', "Größe: {x} %"))
    text = export(Policies(policy), "torchio").text
    scope: dict[str, object] = {}
    exec(text[text.index("CLASSES =") : text.index("# cascade ->")], scope)  # noqa: S102
    assert scope["CLASSES"] == policy.classes
    export(Policies(policy), "monai")


def test_torchio_is_needed_by_tests_alone() -> None:
    root = Path(__file__).parents[2]
    required = (root / "setup.cfg").read_text().split("install_requires")[1].split("[options.packages")[0]
    assert "torchio" not in required


def test_a_run_that_has_learned_no_policy(tmp_path: Path) -> None:
    code, _, told = call("export", tmp_path, "--to", "monai")
    assert (code, "holds no policy.json, which method joint_policy alone learns" in told) == (2, True)
