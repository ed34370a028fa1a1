# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a method does when nnU-Net's last epoch is over, before the final checkpoint is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_autoaug.methods.late_views import tenths
from monai_autoaug.nnunet import ranks

__all__ = ["finish"]


def finish(trainer: Any) -> None:
    """Let the method learn of the trained network; a run that is killed within it begins with it again (``--c``).

    Args:
        trainer: nnU-Net's, whose loop is through, so that its counter is beyond the last epoch.
    """
    if not trainer.method.finishing:
        return

    def hear(event: str, values: Mapping[str, Any]) -> None:
        if event == "finish":
            for sentence in tenths(**values):
                trainer.print_to_log_file(sentence)

    before = trainer.task.notify
    trainer.current_epoch -= 1  # as nnU-Net does for its final checkpoint
    try:
        # after the last epoch nnU-Net writes that one only
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
        if trainer._split is not None and trainer._split.resampled:
            trainer._serve_meta(trainer._split)  # a resumed run's are those of the epoch that would follow
        trainer.task.notify = hear
        figures = trainer.method.finish(trainer.batches)
    finally:
        trainer.task.notify = before
        trainer.current_epoch += 1
    if figures:
        if (Path(trainer.output_folder) / "checkpoint_best.pth").exists():
            trainer.print_to_log_file(
                "The test-time views were learned for the final network and are in checkpoint_final.pth;"
                " checkpoint_best.pth, another network, has none and predicts without them"
            )
        mean = ranks.mean_over_ranks(figures)
        trainer.print_to_log_file("autoaug after training", ", ".join(f"{n} {v:.4g}" for n, v in mean.items()))
