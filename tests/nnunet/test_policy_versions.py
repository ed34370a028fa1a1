# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What workers and the main process send each other: versions of a policy, and packed batches."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError, DataError
from monai_autoaug.nnunet import worker_policy
from monai_autoaug.nnunet.patches import PatchLayout
from monai_autoaug.nnunet.worker_policy import Versions, packed, unpacked

CPU = torch.device("cpu")


@pytest.mark.parametrize("regions", [False, True])
def test_a_packed_label_is_the_same(regions: bool) -> None:
    label = torch.rand(2, 5, 4, 4, 4) * (torch.rand(2, 5, 4, 4, 4) < (0.3 if regions else 1))
    label[0] = 0
    label[0, 3] = 1
    batch = Batch(
        torch.randn(2, 1, 4, 4, 4), label, valid=torch.rand(2, 1, 4, 4, 4), extra=torch.rand(2, 3, 4, 4, 4).half(),
        classes=torch.tensor([3, 0]), case=("a", "b"), spacing=torch.ones(2, 3), operations=torch.ones(2, 15).long(),
        mask=torch.ones(2, 1, 4, 4, 4),
    )  # fmt: skip
    layout = PatchLayout(5, 1, regions, None, (1.0, 1.0, 1.0), (False,), (0, 0, 0), None)
    raw = packed(batch) | {"keys": ["a", "b"]}
    assert len(raw["label_values"]) == int((label != 0).sum())
    again = unpacked(raw, layout, CPU)
    assert again.mask is None
    assert again.extra is not None
    torch.testing.assert_close(again.extra, torch.as_tensor(batch.extra).float())
    for name in ("image", "label", "valid", "classes", "operations", "spacing"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize(("ignore", "wrong"), [(None, 3), (None, -1), (3, 4), (3, -1), (255, 100)])
def test_an_undeclared_label_is_refused_and_its_case_named(
    values: bool, dtype: torch.dtype, ignore: int | None, wrong: int
) -> None:
    """As one-hot channels it would be nothing at all."""
    layout = PatchLayout(3, 1, False, ignore, (1.0, 1.0, 1.0), (False,), (0, 0, 0), None)
    target = torch.full((2, 1, 4, 4, 4), 2 if ignore is None else ignore, dtype=dtype)
    raw = {"data": torch.zeros(2, 1, 4, 4, 4), "target": [target, target[..., ::2]], "keys": ["a", "b"]}
    assert layout.batch(raw, CPU, values=values).case == ("a", "b")
    for value in (wrong, *((0.5, float("nan")) if dtype.is_floating_point else ())):
        target[1, 0, 0, 0, 0] = value
        with pytest.raises(DataError, match=rf"b: holds undeclared label values.*\[0, 1, 2.*\[{value}"):
            layout.batch(raw, CPU, values=values)


def test_versions_are_kept_as_long_as_a_batch_may_need_them() -> None:
    versions = Versions(torch.zeros(2, 3), lag=2)
    for number in range(6):
        versions.write(number, torch.full((2, 3), float(number)))
        wanted = torch.full((2, 3), float(max(0, number - 2)))
        assert torch.equal(versions.wait(number), wanted)  # what the last batch to be asked for needs
        later = Versions(torch.zeros(2, 3), lag=2)
        later.load_state_dict(versions.state_dict())
        later.write(number + 1, torch.full((2, 3), -1.0))
        for coming in (number + 1, number + 2):
            assert torch.equal(later.wait(coming), torch.full((2, 3), float(max(0, coming - 2))))
    with pytest.raises(StopIteration):  # in the writer's own process nobody else will write it
        versions.wait(9)
    fresh = Versions(torch.zeros(2, 3), lag=2)
    fresh.load_state_dict(Versions(torch.zeros(2, 3), lag=2).state_dict())  # of a checkpoint before the first batch
    fresh.write(0, torch.ones(2, 3))
    assert torch.equal(fresh.wait(0), torch.ones(2, 3))
    for other in (Versions(torch.zeros(2, 3), lag=3), Versions(torch.zeros(2, 4), lag=2)):
        with pytest.raises(CheckpointError, match=r"expected \(2, [34]\), [23] batches late"):
            other.load_state_dict(versions.state_dict())


def test_a_half_written_version_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    versions, naps = Versions(torch.zeros(4), lag=0), []
    versions.write(0, torch.arange(4.0))
    versions._rows[0, 2] = 7.0  # as if the writer were at work
    parent = Mock()
    monkeypatch.setattr(worker_policy.multiprocessing, "parent_process", lambda: parent)
    parent.is_alive.return_value = False
    with pytest.raises(StopIteration):
        versions.wait(0)
    parent.is_alive.return_value = True

    def finish(seconds: float) -> None:
        naps.append(seconds)
        versions._rows[0, 2] = 2.0

    monkeypatch.setattr(worker_policy.time, "sleep", finish)
    assert torch.equal(versions.wait(0), torch.arange(4.0))
    assert len(naps) == 1
