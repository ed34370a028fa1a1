# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Same seed, same training, with any number of workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fault_helpers import same

from monai_autoaug.nnunet.trainers import nnUNetTrainerAutoAugAdversarial as Adversarial

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_training_is_the_same_with_any_number_of_workers(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, closing: list[Any]
) -> None:
    wanted: list[Any] = []
    for workers, seed in (("0", 5), ("1", 5), ("3", 5), ("0", 6)):
        monkeypatch.setenv("nnUNet_n_proc_DA", workers)
        trainer = tiny.trainer(Adversarial, fold=50, seed=seed, method_options={"warm_up": 0, "width": 2})
        trainer.fold, trainer.disable_checkpointing = 0, True
        closing.append(trainer)
        trainer.run_training()
        found = [
            {k: v.clone() for k, v in trainer.network.state_dict().items()}, trainer.method.state_dict(),
            trainer.logger.get_value("train_losses", step=None), trainer.logger.get_value("val_losses", step=None),
        ]  # fmt: skip
        if seed == 6:
            assert not all(torch.equal(a, b) for a, b in zip(found[0].values(), wanted[0].values(), strict=True))
        elif wanted:
            same(found, wanted)
        else:
            wanted = found
