# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a trainer with learned augmentation saves and resumes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import monai_autoaug
from monai_autoaug.errors import CheckpointError
from monai_autoaug.methods import Method
from monai_autoaug.nnunet import checkpoint, ranks
from monai_autoaug.nnunet.course import FREE, describe, differences
from monai_autoaug.nnunet.given_policy import KEPT, GivenPolicy
from monai_autoaug.nnunet.loading import StockStream, Stream
from monai_autoaug.nnunet.options import CONFIG_VARIABLE, Options
from monai_autoaug.nnunet.serving import environment
from monai_autoaug.nnunet.task import TrainingTask
from monai_autoaug.nnunet.test_time import without_views
from monai_autoaug.nnunet.worker_policy import SharedPolicy
from monai_autoaug.precision import gather_over_ranks, rank, world_size

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["ResumingMixin"]


class ResumingMixin(_Host):
    """The part of `AutoAugMixin` that writes and reads checkpoints."""

    autoaug: Options
    autoaug_base: ClassVar[type[Any]]
    method: Method
    task: TrainingTask
    run_seed: int
    _keep_views: Any
    _phase_start: Any
    _resume_phase: Any
    _keep_policies: Any
    _best_ema: Any
    _continues: bool
    _course: dict[str, Any]
    _refusal: str | None
    _streams: dict[str, Stream | StockStream]
    _positions: dict[str, int]
    _resumed: dict[str, Any] | None
    _given_policy: GivenPolicy | None
    _shared_policy: SharedPolicy | None
    _policy_versions: dict[str, Any] | None

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with one more key, put in place in one step; every rank takes part."""
        if self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        addition = self._state()
        self._keep_views()
        if self.local_rank == 0:
            checkpoint.write_atomically(super().save_checkpoint, addition, filename)
            self._keep_policies()

    def _state(self) -> dict[str, Any]:
        method = self.method.state_dict()
        # ranks share players and norm groups; noise, the order of the parts and counters are each rank's own
        own = {name: value for name, value in method.items() if name not in ("players", "auxiliary", "learners")}
        here = {"random": checkpoint.random_states(self.device), "method": own}
        plain = inspect.unwrap(type(self).build_network_architecture) is nnUNetTrainer.build_network_architecture
        return {
            "version": checkpoint.VERSION,
            "package": monai_autoaug.__version__,
            "options": self.autoaug.as_dict(),
            "course": self._course,
            "seed": self.run_seed,
            **({KEPT: None} if self._given_policy is None else self._given_policy.kept()),
            "method": method,
            "ranks": gather_over_ranks(here),
            "streams": {name: stream.position for name, stream in self._streams.items()},
            "policy_versions": None if self._shared_policy is None else self._shared_policy.state_dict(),
            "parameter_names": checkpoint.parameter_names(self.task.network, self.optimizer),
            "plain_trainer": nnUNetTrainer.__name__ if plain else self.autoaug_base.__name__,
        }

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Restore everything that was saved, after seeing that it fits this run.

        To validate it is enough that the network fits; to train on (``--c``), everything that decides the course of the
        training must.

        Raises:
            CheckpointError: unreadable, of another network, or, to train on, of plain nnU-Net or of other options.
        """
        if not self.was_initialized:
            self.initialize()
        content = checkpoint.read_checkpoint(filename_or_checkpoint)
        kept = content.get(checkpoint.KEY)
        self._refusal = self._why_not_continue(filename_or_checkpoint, kept)
        if self._refusal is not None and self._continues:
            raise CheckpointError(self._refusal)
        self._check_network(filename_or_checkpoint, content, kept)
        if self._refusal is not None:  # on_train_start says why, if it comes to that
            ranks.unwrapped(self.network).load_state_dict(content["network_weights"])
            self.inference_allowed_mirroring_axes = content.get("inference_allowed_mirroring_axes")
            return
        # nnUNetTrainer_warmup doesn't tell torch that the file, which was read above, holds more than weights
        with environment("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"):
            super().load_checkpoint(filename_or_checkpoint)
        if kept is not None:
            self._restore(kept)
        # nnU-Net writes checkpoint_latest.pth before it updates this: a resumed run would overwrite a better checkpoint
        for value in self.logger.get_value("ema_fg_dice", step=None)[self._phase_start() :]:
            if self._best_ema is None or value > self._best_ema:
                self._best_ema = value

    def _restore(self, kept: Mapping[str, Any]) -> None:
        """What nnU-Net's own checkpoint doesn't hold."""
        self.task.optimizer = self.optimizer
        same_ranks = len(kept["ranks"]) == world_size()
        self.method.load_state_dict(kept["method"] | (kept["ranks"][rank()]["method"] if same_ranks else {}))
        self._resume_phase()
        self._positions, self.run_seed = dict(kept["streams"]), kept["seed"]
        self._policy_versions = kept.get("policy_versions")
        if same_ranks:
            self._resumed = kept["ranks"][rank()]["random"]
        else:
            self.print_to_log_file(
                f"The checkpoint is of {len(kept['ranks'])} rank(s), this run has {world_size()}: the global random"
                " numbers start anew"
            )
            self._resumed = checkpoint.random_states(self.device)
        changed = differences(kept["course"], self._course)
        if changed:
            self.print_to_log_file(f"Options changed since the checkpoint: {'; '.join(describe(changed))}")

    def _why_not_continue(self, filename: Any, kept: Mapping[str, Any] | None) -> str | None:
        """Why training can't go on from a checkpoint, or None if it can."""
        if kept is None:
            if self.autoaug.method == "none":
                return None
            return (
                f"{filename}: was written by plain nnU-Net and knows no learned augmentation; start from its weights"
                " with -pretrained_weights instead"
            )
        if kept["version"] != checkpoint.VERSION:
            age = "a newer" if kept["version"] > checkpoint.VERSION else "an older"
            return (
                f"{filename}: was written by {age} monai_autoaug ({kept['package']}, here {monai_autoaug.__version__});"
                " train on with that version, or start from its weights with -pretrained_weights"
            )
        changed = differences(kept["course"], self._course)
        free = FREE if len(self.method.phases) == 1 else tuple(n for n in FREE if n != "epochs")  # shared out to phases
        fixed = {name: pair for name, pair in changed.items() if name not in free}
        if not fixed:
            return None
        listed = "".join(f"\n  {phrase}" for phrase in describe(fixed))
        return (
            f"{filename}: was written with other options, so this run would not be its continuation:{listed}\nGive this"
            f" run the options of the checkpoint (the plans' key autoaug, or the file that {CONFIG_VARIABLE} names;"
            f" {', '.join(free)} may change), or train anew without --c; --val validates the checkpoint as it is"
        )

    def _check_network(self, filename: Any, content: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
        both = (content["network_weights"], ranks.unwrapped(self.network).state_dict())
        given, own = (without_views(weights) for weights in both)
        shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (given, own)]
        different = differences(*shapes)
        if not different:
            return
        settings = {} if kept is None else differences(kept.get("course", {}), self._course)
        ours = {n: pair for n, pair in settings.items() if n == "features" or n.startswith("plans: architecture")}
        reason = dict([*(ours or different).items()][:1])
        raise CheckpointError(
            f"{filename}: is of another network; {describe(reason)[0]}. Give this run the plans it was trained with and"
            f" its options features or width (the plans' key autoaug, or the file that {CONFIG_VARIABLE} names)"
        )
