# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The training loop of a run: network, optimiser and method in an engine, with validation, log and checkpoints."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from ignite.engine import Events
from torch import nn

from monai_autoaug import methods, policies
from monai_autoaug.data import EpochCases, MetaSplit, PatchBatches
from monai_autoaug.data.loading import worker_faults
from monai_autoaug.data.patches import Items
from monai_autoaug.data.preprocess import Preprocessing
from monai_autoaug.engines import log
from monai_autoaug.engines.board import SampleSaver, write_scalars
from monai_autoaug.engines.building import Labels, make_optimizer, make_trainer
from monai_autoaug.engines.folder import Run
from monai_autoaug.engines.given_policy import KEY, find_given, with_given
from monai_autoaug.engines.handlers import PolicyLogger, board_writer
from monai_autoaug.engines.options import TrainOptions, find_device, find_precision
from monai_autoaug.engines.phases import PhaseEvents, PhaseSchedule
from monai_autoaug.engines.progress import Ended, Listener, Progress
from monai_autoaug.engines.segmentation import build_network
from monai_autoaug.engines.streams import UNLABELLED
from monai_autoaug.engines.validation import validate
from monai_autoaug.errors import CheckpointError
from monai_autoaug.memory import peak_memory
from monai_autoaug.methods import Method, find
from monai_autoaug.policies import TrainingPolicy, no_ops
from monai_autoaug.policies.course import course_interval
from monai_autoaug.precision import Precision, skip_warnings
from monai_autoaug.reading import MALFORMED

__all__ = ["Fit"]

_NO_BEST = "no validation of the last phase has a Dice, so the network is that of the last epoch, not the best one"


class Fit:
    """Trains one network.

    Args:
        run: where log and checkpoint go.
        options: of the run.
        preprocessing: of the volumes.
        patch_size: of training patches and of validation's windows.
        margin: by which training patches are enlarged for the method.
        listener: hears of every iteration.
    """

    def __init__(
        self,
        run: Run,
        options: TrainOptions,
        preprocessing: Preprocessing,
        patch_size: tuple[int, ...],
        margin: tuple[int, ...],
        listener: Listener,
    ) -> None:
        self.folder, self.options, self.preprocessing = run, options, preprocessing
        self.patch_size, self.margin, self.listener = patch_size, margin, listener
        self.device = find_device(options.device)
        self.precision = Precision(self.device, find_precision(options.precision, self.device))
        plain = self.build()
        self.parameters = sum(p.numel() for p in plain.parameters())
        self.network = methods.prepare(options.method, plain, **options.method_options).to(self.device)
        if self.device.type == "cpu":  # oneDNN's 3D convolutions take a fifth less time so
            self.network = self.network.to(memory_format=torch.channels_last_3d)
        self.optimizer = make_optimizer(options, self.network)
        self.steps = options.epochs * options.iterations
        self.schedule = PhaseSchedule(self.optimizer, _polynomial, epoch_level=False)
        self._best: dict[str, Any] = {}
        self.clock = {"seconds": 0.0, "cpu_seconds": 0.0}
        self._started = (0.0, 0.0)
        self._losses: list[float] = []
        self._dice: dict[str, float] = {}
        self._warnings: list[str] = []
        self._writer: Any = None
        self._given: Any = None

    def build(self) -> nn.Module:
        """The run's network, plain and untrained."""
        inputs, outputs = len(self.preprocessing.channels), self.preprocessing.num_outputs
        return build_network(self.options.network, inputs, outputs, **self.options.network_options)

    @property
    def method(self) -> Method:
        """The method, once `run` has begun."""
        return self.trainer.method

    @property
    def _trained(self) -> int:
        """Whole epochs so far."""
        return self.trainer.state.iteration // self.options.iterations

    def run(
        self,
        items: Items,
        validation: Items,
        checkpoint: Mapping[str, Any] | None,
        *,
        meta: Items | None = None,
        resampled: int = 0,
        unlabelled: Items | None = None,
    ) -> None:
        """Train to the end.

        Args:
            items: preprocessed training cases.
            validation: preprocessed validation cases.
            checkpoint: what `Run.save_checkpoint` wrote, to go on from there; None: from the beginning.
            meta: preprocessed meta-validation cases, if there are any.
            resampled: instead of ``meta``, how many of the training cases are meta-validation cases in each epoch.
            unlabelled: preprocessed images without labels, if the method learns from any.
        """
        self.validation = validation
        self.prepare(items, checkpoint, meta=meta, resampled=resampled, unlabelled=unlabelled)
        self.schedule.attach(self.trainer)
        self.trainer.add_event_handler(PhaseEvents.PHASE_STARTED, lambda: self._best.clear())
        if checkpoint is not None:
            self._restore(checkpoint)
        log.cut(self.folder.log, self._trained)
        self._watch()
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        self.trainer.heard = lambda done, total: self.listener(Progress("views", done, total))
        self._started = (time.perf_counter(), time.process_time())
        if self.trainer.state.iteration < self.steps:
            for sentence in self.method.announcement():
                self.listener(Progress("training", self.trainer.state.iteration, self.steps, note=sentence))
            self.trainer.run()
        else:  # stopped after the last step
            with worker_faults():
                try:
                    self.trainer.finish()
                finally:
                    self.trainer.streams.close()
        self._read_clock()
        if self._writer is not None:
            self._writer.close()
        if self.trainer.finished:
            self._save_checkpoint()
        if self._best:
            self.network.load_state_dict(self._best["network"])
            self._dice = dict(self._best["dice"])

    def prepare(
        self,
        items: Items,
        checkpoint: Mapping[str, Any] | None = None,
        *,
        meta: Items | None = None,
        resampled: int = 0,
        unlabelled: Items | None = None,
    ) -> None:
        """Make the trainer; nothing is trained, restored or written.

        Args:
            items: see `run`, as all others.
            checkpoint: says which policies the run was given.
            meta: meta-validation cases.
            resampled: how many of ``items`` these are instead.
            unlabelled: images without labels.
        """
        self._given = find_given(self.options, checkpoint)
        options = self.options if self._given is None else with_given(self.options, self._given)
        self.batches = self._batches(items, resampled, values=find(self.options.method).draws_operations)
        self.trainer = make_trainer(
            options, self.network, self.optimizer, self.batches, self.device, self.precision.dtype,
            meta=self._meta_batches(items if resampled else meta, resampled), labels=Labels.of(self.preprocessing),
            unlabelled=None if unlabelled is None else self._batches(unlabelled, 0, stream=UNLABELLED, labelled=False),
            build=self.build,
        )  # fmt: skip

    def _watch(self) -> None:
        """Let what the augmentation becomes be kept, for reports and TensorBoard; the training stays as it is."""
        if self.options.tensorboard:
            self._writer = board_writer(self.folder.board, self._trained + 1)
        names = self.preprocessing.label_names
        interval = course_interval(self.options.epochs)
        PolicyLogger(self.folder.course, interval, summary_writer=self._writer).attach(self.trainer)
        SampleSaver(
            self.folder.samples, summary_writer=self._writer, orientation=self.preprocessing.orientation,
            structures=names if self.preprocessing.regions is not None else names[1:],
        ).attach(self.trainer)  # fmt: skip

    def _batches(self, items: Items, resampled: int, **changes: Any) -> PatchBatches:
        """A stream of patches, long enough for all iterations."""
        options = self.options
        part: Literal["train", "meta"] = "meta" if changes.get("stream") == "meta" else "train"
        cases = None
        if resampled:
            split = MetaSplit(tuple(range(len(items))), resampled, options.seed, resampled=True)
            cases = EpochCases(split, options.iterations, part)
        given: dict[str, Any] = {"batch_size": options.batch_size, "cases": cases} | changes
        return PatchBatches(
            items, patch_size=self.patch_size, seed=options.seed, length=self.steps, margin=self.margin, **given,
            **self.preprocessing.patch_options,
        )  # fmt: skip

    def _meta_batches(self, items: Items | None, resampled: int) -> PatchBatches | None:
        """Meta-validation patches, half of them centred on foreground; None where the method doesn't ask for any."""
        if items is None or not self.options.learns_from_meta:
            return None
        size = self.options.meta_batch
        return self._batches(items, resampled, batch_size=size, stream="meta", foreground=0.5)

    def save_policies(self) -> None:
        """Write what the method has learned so far to ``policy.json``, if it learns policies."""
        learned: dict[str, Any] = self.method.policies()
        if not learned:
            return
        origin = {"method": self.method.name, "seed": self.options.seed, "epoch": self.trainer.state.epoch,
                  "data_fingerprint": self._fingerprint()}  # fmt: skip
        policies.save(self.folder.policy, **learned, provenance=origin, seen=self.method.seen())

    def _fingerprint(self) -> str:
        """Of the data: of what was measured on the training cases, which names neither files nor patients."""
        return hashlib.sha256(self.folder.preprocessing.read_bytes()).hexdigest()[:16]

    def no_ops(self) -> list[str] | None:
        """The operations of the training policy that the trained network can't see, on one training patch.

        Returns:
            None where the method has no training policy.
        """
        policy = self.method.policies().get("training")
        if not isinstance(policy, TrainingPolicy):
            return None
        last = self.trainer.batches.current  # of a run that was resumed after its last step there is none
        patch = (self.batches[0] if last is None else last).rows(slice(0, 1)).cropped().image
        return list(no_ops(self.network, patch.to(self.device), policy.cascades))

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint holds, by name."""
        return {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule,
                "trainer": self.trainer, "autoaug": self.trainer.autoaug_state}  # fmt: skip

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        parts = self._parts()
        if not set(parts) | {"clock", "dice", "warnings"} <= set(checkpoint):
            raise CheckpointError(f"{self.folder.checkpoint}: is incomplete; it holds {sorted(checkpoint)}")
        try:
            for name, part in parts.items():
                part.load_state_dict(checkpoint[name])
            self.clock, self._dice = dict(checkpoint["clock"]), dict(checkpoint["dice"])
            self._warnings = list(checkpoint["warnings"])
            self.trainer.finished = dict(checkpoint.get("finished", {}))
            best = checkpoint.get("best", {})
            if best and not math.isnan(best["dice"]["dice"]):  # which earlier versions kept, and nothing is above it
                self._best.update(best)
        except MALFORMED as error:
            raise CheckpointError(
                f"{self.folder.checkpoint}: does not fit this run ({type(error).__name__}: {error}). To do: put the"
                " run's own checkpoint back, or start it anew"
            ) from error

    def _after_iteration(self) -> None:
        state = self.trainer.state
        self._losses.append(float(state.output["loss"].detach()))
        self._tell()

    def _tell(self) -> None:
        state, loss = self.trainer.state, self._losses[-1]
        dice = self._dice.get("dice")
        self.listener(Progress("training", state.iteration, self.steps, state.epoch, self.options.epochs, loss, dice))

    def _after_epoch(self) -> None:
        state, options = self.trainer.state, self.options
        self._warnings = self.method.warnings()
        row: dict[str, Any] = {"epoch": state.epoch, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        row |= {"phase": self.method.phase.name} if len(self.method.phases) > 1 else {}
        row |= {"loss": sum(self._losses) / max(len(self._losses), 1)}
        row |= {name: float(value) for name, value in state.metrics.items()}
        if state.epoch % options.validation_interval == 0 or state.epoch == options.epochs:
            self._dice = validate(
                self.network, self.validation, self.preprocessing, self.patch_size, self.precision
            )
            row |= self._dice
            self._keep_best()
            self.save_policies()
            self._tell()
        self._losses.clear()
        before = self.clock["seconds"]
        self._read_clock()
        self._tell_end(row, self.clock["seconds"] - before)
        row |= self.clock | ({"warnings": self._warnings} if self._warnings else {})
        log.append(self.folder.log, row)  # the module's text explains every key
        if self._writer is not None:
            write_scalars(self._writer, row)
            self._writer.flush()  # who resumes from the checkpoint does not write this epoch again
        self._save_checkpoint()

    def _tell_end(self, row: Mapping[str, Any], seconds: float) -> None:
        """Let the listener hear of the epoch that has ended."""
        training = self.method.policies().get("training")
        kinds = (*(training.classes if isinstance(training, TrainingPolicy) else ()), "views")
        ended = Ended.of(row, kinds, seconds, peak_memory(self.device))
        done, epoch = self.trainer.state.iteration, self.trainer.state.epoch
        dice = self._dice.get("dice")
        self.listener(
            Progress("training", done, self.steps, epoch, self.options.epochs, row["loss"], dice, ended=ended)
        )

    def _keep_best(self) -> None:
        """Remember the network where the method deploys the one of the best validation Dice, of the last phase.

        A Dice that isn't defined, because no validation case has a structure, is never the best.
        """
        last = self.method.phase_number == len(self.method.phases) - 1
        if not self.method.keeps_best or not last or math.isnan(self._dice["dice"]):
            return
        if self._best and not self._dice["dice"] > self._best["dice"]["dice"]:
            return
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        self._best.update(dice=dict(self._dice), epoch=self.trainer.state.epoch, network=state)

    def _save_checkpoint(self) -> None:
        content = {name: part.state_dict() for name, part in self._parts().items()}
        own = {"clock": self.clock, "dice": self._dice, "warnings": self._warnings, "finished": self.trainer.finished,
               "best": self._best, KEY: self._given}  # fmt: skip
        self.folder.save_checkpoint(content | own)

    def _read_clock(self) -> None:
        """Add the time since the last look."""
        now = (time.perf_counter(), time.process_time())
        for name, before, after in zip(("seconds", "cpu_seconds"), self._started, now, strict=True):
            self.clock[name] = round(self.clock[name] + after - before, 3)
        self._started = now

    def _memory(self) -> dict[str, int]:
        """The most that this process has had on the GPU."""
        return {"gpu_memory_bytes": torch.cuda.max_memory_allocated(self.device)} if self.device.type == "cuda" else {}

    def summary(self) -> dict[str, Any]:
        """What the training took and gave; its warnings are those of the last epoch and what was skipped in all."""
        skipped, unseen = dict(self.trainer.task.precision.skipped), self.no_ops()
        return {
            "method": self.method.name,
            "epochs": self.options.epochs,
            "iterations": self.steps,
            "parameters": self.parameters,
            "device": self.device.type,
            "precision": str(self.precision.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "skipped_updates": skipped,
            "validation_on_preprocessed_grid": {name: log.plain_number(value) for name, value in self._dice.items()},
            "warnings": [
                *self.trainer.doubts, *self._warnings, *skip_warnings(skipped, self.steps, self.precision.dtype),
                *([_NO_BEST] if self.method.keeps_best and not self._best else []),
            ],
            **({"best_epoch": self._best["epoch"]} if self._best else {}),
            **({"after_training": self.trainer.finished} if self.trainer.finished else {}),
            **({} if unseen is None else {"no_ops": unseen}),
            **self._memory(),
        } | self.clock  # fmt: skip


def _polynomial(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.PolynomialLR:
    """From the optimiser's learning rate to 0, as nnU-Net."""
    return torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)
