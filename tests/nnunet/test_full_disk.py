# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's checkpoint on a disk that is full: one message, and the last checkpoint stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_autoaug.errors import CheckpointError
from monai_autoaug.nnunet.checkpoint import read_checkpoint, write_atomically


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    file = str(tmp_path / "checkpoint_latest.pth")

    def write(size: int, added: int) -> None:
        content = {"network_weights": torch.ones(size)}
        write_atomically(lambda path: torch.save(content, path), {"noise": torch.ones(added)}, file)

    write(10, 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint_latest.pth: can't be written .* goes on .* with --c"):
            write(100_000, 10)  # nnU-Net's own part does not fit
        with pytest.raises(OSError, match="checkpoint_latest.pth"):
            write(10, 100_000)  # what is added does not
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_checkpoint(file)["network_weights"].tolist() == [1] * 10
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_latest.pth"]


def test_another_failure_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def broken(path: str) -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        write_atomically(broken, {}, str(tmp_path / "a.pth"))
