# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a trainer with learned augmentation saves and resumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import monai_autoaug
from monai_autoaug.errors import CheckpointError
from monai_autoaug.methods import Method
from monai_autoaug.nnunet import checkpoint, ranks
from monai_autoaug.nnunet.loading import StockStream, Stream
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.task import TrainingTask
from monai_autoaug.precision import rank, world_size

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["ResumingMixin"]

# options whose change makes a checkpoint unreadable
_FIXED = ("method", "method_options", "features", "optimizer")


class ResumingMixin(_Host):
    """The part of `AutoAugMixin` that writes and reads checkpoints."""

    autoaug: Options
    autoaug_base: ClassVar[type[Any]]
    method: Method
    task: TrainingTask
    run_seed: int
    _best_ema: Any
    _streams: dict[str, Stream | StockStream]
    _positions: dict[str, int]
    _resumed: dict[str, Any] | None

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with one more key, put in place in one step; every rank takes part."""
        if self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        addition = self._state()
        if self.local_rank == 0:
            checkpoint.write_atomically(super().save_checkpoint, addition, filename)

    def _state(self) -> dict[str, Any]:
        method = self.method.state_dict()
        # ranks share players and norm groups; noise, the order of the parts and counters are each rank's own
        own = {name: value for name, value in method.items() if name not in ("players", "auxiliary")}
        here = {"random": checkpoint.random_states(self.device), "method": own}
        plain = type(self).build_network_architecture is nnUNetTrainer.build_network_architecture
        return {
            "version": checkpoint.VERSION,
            "package": monai_autoaug.__version__,
            "options": self.autoaug.as_dict(),
            "seed": self.run_seed,
            "method": method,
            "ranks": ranks.gather(here),
            "streams": {name: stream.position for name, stream in self._streams.items()},
            "parameter_names": checkpoint.parameter_names(self.task.network, self.optimizer),
            "plain_trainer": nnUNetTrainer.__name__ if plain else self.autoaug_base.__name__,
        }

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Restore everything that was saved, after seeing that it fits this run's options.

        Raises:
            CheckpointError: unreadable, of plain nnU-Net, or of a run with other options.
        """
        if not self.was_initialized:
            self.initialize()
        kept = checkpoint.read_checkpoint(filename_or_checkpoint).get(checkpoint.KEY)
        self._check_fits(filename_or_checkpoint, kept)
        super().load_checkpoint(filename_or_checkpoint)
        # nnU-Net writes checkpoint_latest.pth before it updates this: a resumed run would overwrite a better checkpoint
        for value in self.logger.get_value("ema_fg_dice", step=None):
            if self._best_ema is None or value > self._best_ema:
                self._best_ema = value
        if kept is None:
            return
        self.task.optimizer = self.optimizer
        same_ranks = len(kept["ranks"]) == world_size()
        self.method.load_state_dict(kept["method"] | (kept["ranks"][rank()]["method"] if same_ranks else {}))
        self._positions, self.run_seed = dict(kept["streams"]), kept["seed"]
        if same_ranks:
            self._resumed = kept["ranks"][rank()]["random"]
        else:
            self.print_to_log_file(
                f"The checkpoint is of {len(kept['ranks'])} rank(s), this run has {world_size()}: the global random"
                " numbers start anew"
            )
            self._resumed = checkpoint.random_states(self.device)

    def _check_fits(self, filename: Any, kept: Mapping[str, Any] | None) -> None:
        if kept is None:
            if self.autoaug.method == "none":
                return
            raise CheckpointError(
                f"{filename}: was written by plain nnU-Net and knows no learned augmentation; start from its weights"
                " with -pretrained_weights instead"
            )
        if kept["version"] > checkpoint.VERSION:
            raise CheckpointError(f"{filename}: was written by a newer monai_autoaug ({kept['package']}); update it")
        here = self.autoaug.as_dict()
        for name in _FIXED:
            if kept["options"].get(name) != here[name]:
                raise CheckpointError(
                    f"{filename}: was written with {name} = {kept['options'].get(name)!r}, this run has {here[name]!r};"
                    " give it the options it was trained with (the plans' key autoaug, or the file that"
                    " MONAI_AUTOAUG_CONFIG names)"
                )
