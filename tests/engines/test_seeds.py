# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Same seed, same result, with any number of workers; and no two workers draw the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import options, rows, weights

from monai_autoaug.data import PatchBatches, loader, write_phantom
from monai_autoaug.data.batch import Batch
from monai_autoaug.engines import train
from monai_autoaug.engines.folder import Run

# both have a second stream; that of the second method changes its cases each epoch
METHODS: dict[str, dict[str, Any]] = {
    "adversarial": {"method_options": {"warm_up": 0, "width": 2}},
    "bilevel": {"method_options": {"update_every": 1}},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_with_any_number_of_workers(method: str, tmp_path: Path) -> None:
    data = write_phantom(tmp_path / "data", cases=5, size=16)
    runs: list[Run] = []
    for workers, seed in ((0, 0), (1, 0), (3, 0), (0, 1)):
        given = options(
            data, tmp_path / f"run_{workers}_{seed}", method=method, epochs=2, iterations=2, validation_cases=1,
            batch_size=2, patch_size=(8, 8, 8), network_options={"channels": [2, 4]}, workers=workers, seed=seed,
            **METHODS[method],
        )  # fmt: skip
        runs.append(train(given))
    first, *others, another = runs
    for run in others:
        assert rows(run) == rows(first)
        assert all(torch.equal(a, b) for a, b in zip(weights(run).values(), weights(first).values(), strict=True))
        assert run.augmenters.read_bytes() == first.augmenters.read_bytes()
    assert rows(another) != rows(first)


class Numbers(PatchBatches):
    """Gives numbers of the process that makes the batches, as drawn outside of any batch."""

    def __getitem__(self, number: int) -> Batch:
        drawn = [float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
        worker = torch.utils.data.get_worker_info()
        return torch.tensor([worker.id if worker else -1, *drawn])  # type: ignore[return-value]


@pytest.mark.parametrize("stream", ["train", "meta"])
def test_streams_of_workers_differ_for_numpy_and_torch(stream: str) -> None:
    items = [{"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 8, dtype=torch.uint8)}]
    settings: dict[str, Any] = {"patch_size": (4, 4), "batch_size": 1, "seed": 3, "num_classes": 2, "length": 6}
    batches = Numbers(items, **settings, stream=stream)
    drawn = torch.stack(list(loader(batches, num_workers=3)))
    assert drawn[:, 0].unique().tolist() == [0, 1, 2]
    assert len(drawn[:, 1].unique()) == len(drawn[:, 2].unique()) == 6
    again = torch.stack(list(loader(batches, num_workers=3)))
    assert torch.equal(drawn, again)  # and are the seed's
    other = Numbers(items, **(settings | {"seed": 4}), stream=stream)
    assert not (torch.stack(list(loader(other, num_workers=3)))[:, 1:] == drawn[:, 1:]).any()
