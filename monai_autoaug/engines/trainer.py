# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A MONAI trainer that takes any method: a drop-in for ``monai.engines.SupervisedTrainer``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer, Workflow
from monai.engines.utils import IterationEvents, default_prepare_batch
from monai.inferers import Inferer, SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from monai_autoaug.data.batch import Batch
from monai_autoaug.data.loading import stop_workers, worker_faults
from monai_autoaug.engines.assembly import build_method, build_task, builder, check_host, margins, micro_batch
from monai_autoaug.engines.batches import Converter, EngineBatches, output_of
from monai_autoaug.engines.checkpoints import AutoAugState
from monai_autoaug.engines.losses import PerSampleLoss
from monai_autoaug.engines.phases import PhaseEvents, check_phases, enter_phase
from monai_autoaug.engines.savers import forget_undefined
from monai_autoaug.engines.side_streams import SideStreams, check_meta_size
from monai_autoaug.engines.sides import sides_warning
from monai_autoaug.engines.streams import starting_at
from monai_autoaug.engines.task import can_compile, check_options, first_convolution
from monai_autoaug.methods import Method, Task
from monai_autoaug.methods.late_views import tenths
from monai_autoaug.precision import broadcast, rank, skip_warnings

__all__ = ["AutoAugTrainer"]

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_RESERVED = {Keys.IMAGE, Keys.LABEL, Keys.PRED, Keys.LOSS}


class AutoAugTrainer(SupervisedTrainer):
    """``monai.engines.SupervisedTrainer`` with learned augmentation; ``method="none"`` is the same step by step.

    The network goes through `monai_autoaug.methods.prepare` before its optimiser is made. In a bundle::

        "imports": ["$from monai_autoaug.methods import prepare"],
        "network": "$prepare(@method, @network_def.to(@device), **@method_options)",
        "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()"},
        "trainer": {"_target_": "monai_autoaug.engines.AutoAugTrainer", "method": "@method",
                    "method_options": "@method_options", "network": "@network", "optimizer": "@optimizer", ...}

    It fires all events of ``IterationEvents``. ``engine.state.output`` holds image, label, prediction and loss as in
    MONAI (of the samples as the network saw them, which a method may have reordered) and every figure of the step under
    its own name; ``engine.state.metrics`` gets the method's figures at the end of each epoch, before any handler runs,
    and its warnings go to the engine's logger, each sentence once, as does at the start what it announces.

    Args:
        device: where training runs.
        max_epochs: epochs.
        train_data_loader: yields what ``prepare_batch`` takes, or whole `Batch` objects (`data.loader`).
        network: the segmentation network, prepared; DistributedDataParallel is unwrapped, since gradients of all
            players are averaged over ranks here.
        optimizer: its optimiser.
        loss_function: any loss of MONAI or torch; see `engines.per_sample` for what a learned augmentation makes of it.
        method: name of the method, or a function of a `Task` that returns one.
        method_options: the method's options; ``image_channels`` is read from the network's first convolution if absent.
        seed: of the method and of the second stream.
        real_data_loader: a second, independent loader of training batches for methods that compare with real ones;
            None: one over the same data set in another order, made when it's needed.
        meta_data_loader: meta-validation batches for methods that learn from these ("joint_policy"), which other
            methods leave alone: of cases that are neither in ``train_data_loader`` nor in any validation or test set,
            with the same ``margin`` and ``prepare_batch``.
        unlabelled_data_loader: images without labels for methods that learn from these: dictionaries with ``image`` (a
            ``label`` in them is not looked at), or `PatchBatches` with ``labelled=False``, with the same ``margin``.
        margin: voxels by which the loader's patches are larger than what the network sees, at each end of each axis, so
            that a warped patch shows real surroundings rather than continued borders.
        spatial_dims: 2 or 3; None: as the network's first convolution has it.
        num_classes: classes or regions, the background included; None: as many channels as the network gives.
        classification: labels and output are of whole images: class indices (B,) or one-hot (B, K), and logits (B, K);
            no transformation changes a label.
        regions: whether the label's channels overlap; None: yes if the loss has a sigmoid and no ``to_onehot_y``.
        patch_size: voxels of a patch without margin, if all are alike; None: as a loader of `PatchBatches` says.
        label_names: names of the label values from 0 on (of regions "background" and theirs), for policies by label and
            for ``laterality``, whose pairs may be names; names that look like left and right are warned of.
        orientation: the directions in which the patches' axes increase, such as "RAS", as preprocessing has left them:
            says which axis runs between left and right, where ``laterality`` needs it.
        clip: largest norm of the network's gradient, or None.
        network_builder: a function that makes ``network`` as it was given to `methods.prepare`, untrained; for methods
            that begin anew with a fresh one in a later phase. In a bundle ``{"_target_": ..., "_mode_": "callable"}``,
            of which ``$@network_builder()`` is the first. See `PhaseSchedule` and `LastPhaseOnly` too.
        prepare_batch: as in MONAI; with a learned augmentation it gives the network no further tensors.
        inferer: as in MONAI; with a learned augmentation none that cuts samples into windows.
        train_handlers: as in MONAI.
        amp: mixed precision; float16 switches itself off on the CPU.
        amp_kwargs: of ``torch.autocast``; ``{"dtype": torch.bfloat16}`` for bfloat16, also on the CPU.
        compile: run the network through ``torch.compile``; switched off, and logged, for batch norms with auxiliary
            groups.
        compile_kwargs: of ``torch.compile``.
        options: further arguments of ``SupervisedTrainer``: epoch_length, non_blocking, postprocessing,
            key_train_metric, additional_metrics, metric_cmp_fn, event_names, event_to_attr, decollate, to_kwargs,
            accumulation_steps.

    Attributes:
        doubts: what a user should know before training; its start logs them.

    Raises:
        ConfigError: something that can't work with the method, named, before training starts.

    >>> net = nn.Conv3d(1, 2, 1)
    >>> data = [{"image": torch.rand(2, 1, 8, 8, 8), "label": torch.ones(2, 1, 8, 8, 8)}]
    >>> from monai.losses import DiceLoss
    >>> trainer = AutoAugTrainer("cpu", 1, data, net, torch.optim.SGD(net.parameters(), lr=0.1),
    ...                          DiceLoss(to_onehot_y=True, softmax=True), method="none")
    >>> trainer.run()
    >>> trainer.state.iteration
    1
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable[..., Tensor],
        *,
        method: str | Callable[[Task], Method] = "adversarial",
        method_options: Mapping[str, Any] | None = None,
        seed: int = 0,
        real_data_loader: Iterable[Any] | None = None,
        meta_data_loader: Iterable[Any] | None = None,
        unlabelled_data_loader: Iterable[Any] | None = None,
        margin: int | Sequence[int] = 0,
        spatial_dims: int | None = None,
        num_classes: int | None = None,
        regions: bool | None = None,
        classification: bool = False,
        patch_size: Sequence[int] | None = None,
        label_names: Sequence[str] = (),
        orientation: str | None = None,
        clip: float | None = None,
        network_builder: Callable[[], nn.Module] | None = None,
        prepare_batch: Callable[..., Any] = default_prepare_batch,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = False,
        amp_kwargs: dict[str, Any] | None = None,
        compile: bool = False,
        compile_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        check_options(options)
        plain: nn.Module = network.module if isinstance(network, _WRAPPERS) else network
        wanted, compile = compile, compile and can_compile(plain)
        super().__init__(
            device, max_epochs, train_data_loader, network, optimizer, loss_function, prepare_batch=prepare_batch,
            inferer=SimpleInferer() if inferer is None else inferer, amp=amp, amp_kwargs=amp_kwargs, compile=compile,
            compile_kwargs=compile_kwargs, optim_set_to_none=True, **options,
        )  # fmt: skip
        self.plain_network = plain
        if wanted and not compile:
            self.logger.warning(
                "torch.compile is off: this network's batch norms have auxiliary groups of varying size"
            )
        if compile and self.plain_network is not network:
            compiled: Any = torch.compile(self.plain_network, **(compile_kwargs or {}))
            self.network = compiled
        self.seed = seed
        found = first_convolution(self.plain_network)
        dims = spatial_dims if spatial_dims is not None else 3 if found is None else found[0]
        self.task = build_task(
            self, self.plain_network, dims, self._listen, regions=regions, classification=classification, clip=clip,
            patch_size=patch_size, label_names=label_names,
            build=builder(method, method_options or {}, network_builder),
        )  # fmt: skip
        # its precision is the engine's scaler from now on
        self.losses, self.scaler = cast(PerSampleLoss, self.task.losses), cast(Any, self.task.precision.scaler)
        self.method, image_channels = build_method(
            method, method_options or {}, self.task, seed=seed, channels=None if found is None else found[1],
            orientation=orientation,
        )  # fmt: skip
        doubt = sides_warning(self.method.policies(), label_names, orientation=orientation)
        self.doubts = [] if doubt is None else [doubt]
        self.converter = Converter(
            self._prepare, self.plain_network, self.task.device, spatial_dims=dims, margin=margins(margin, dims),
            soft=self.method.name != "none", image_channels=image_channels, regions=self.task.regions,
            num_classes=num_classes, loss_function=loss_function, classification=classification,
        )  # fmt: skip
        check_host(self.method, self.plain_network, self.optimizer, self.inferer, self.prepare_batch)
        self.register_events(*PhaseEvents)
        self.streams = SideStreams(
            self.method.needs, self.data_loader,
            {"real": real_data_loader, "meta": meta_data_loader, "unlabelled": unlabelled_data_loader},
            lambda data: self.converter(data).batch, seed=seed, method=self.method.name,
            unlabelled=lambda data: self.converter.unlabelled(data),
        )  # fmt: skip
        self._figures: tuple[str, ...] = ()
        self._entered = False  # between the start of a run and its first epoch
        self._said: set[str] = set()
        self._opened: Iterator[Any] | None = None  # over the training batches
        # figures of what the method did after the last step, and who hears how far it is: updates done, and all
        self.finished: dict[str, float] = {}
        self.heard: Callable[[int, int], None] | None = None
        self.batches = EngineBatches(self._next_side)
        self.autoaug_state = AutoAugState(self)
        self._register()
        if train_handlers is not None:
            self._register_handlers(train_handlers)

    def _prepare(self, data: Any) -> Any:
        return self.prepare_batch(data, self.state.device, self.non_blocking, **self.to_kwargs)

    def _next_side(self, stream: str) -> Batch:
        batch = self.streams.next(stream)
        if stream == "meta":
            check_meta_size(batch, self.task.patch_size)
        return batch

    def _register(self) -> None:
        """Attach what the engine itself does at events, before any handler of the user's."""
        self.add_event_handler(Events.EPOCH_STARTED, AutoAugTrainer._start_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, AutoAugTrainer._end_epoch)
        self.add_event_handler(Events.COMPLETED, AutoAugTrainer.finish)

    def _start_epoch(self) -> None:
        self.autoaug_state.restore()
        if self._entered:
            self.state.dataloader = starting_at(self.data_loader, self.state.iteration)
            self._entered = False
        self.streams.start_epoch(self.state.epoch)
        if enter_phase(self.method, self.state.epoch, self.state.max_epochs):
            self.state.best_metric = self.state.best_metric_epoch = -1  # of the last phase only
            again = ", with a fresh segmentation network" if self.method.phase.fresh else ""
            self._say(logging.INFO, f"Phase {self.method.phase.name!r} begins{again}")
            self.fire_event(PhaseEvents.PHASE_STARTED)

    def _end_epoch(self) -> None:
        """Put the method's figures where handlers look for them and its warnings into the log."""
        forget_undefined(self)
        broadcast(self.plain_network.buffers())
        for name in self._figures:  # a figure that this epoch didn't have must not stay from an earlier one
            self.state.metrics.pop(name, None)
        figures = self.method.on_epoch(self.state.epoch)
        self._figures = tuple(figures)
        self.state.metrics.update(figures)
        precision = self.task.precision
        skipped = skip_warnings(precision.skipped, self.method.steps, precision.dtype)
        for warning in [*self.method.warnings(), *skipped]:
            self._say(logging.WARNING, warning)
        self.autoaug_state.gather()

    def finish(self) -> None:
        """Let the method do what comes after the last step, before any handler saves what was learned.

        It is part of `run`; who resumes a run that has no step left calls it. What was done isn't done again.
        """
        if not self.method.finishing:
            return
        self.autoaug_state.restore()  # of a run that was stopped within it
        self.streams.start_epoch(self.state.epoch)
        figures = self.method.finish(self.batches)
        if figures:
            self.finished = figures
            self.state.metrics.update(figures)

    def _say(self, level: int, sentence: str) -> None:
        """Log a sentence of the method's, the first time that it says it."""
        if rank() == 0 and sentence not in self._said:
            self._said.add(sentence)
            self.logger.log(level, sentence)

    def run(self) -> None:  # type: ignore[override]  # MONAI's signature, not ignite's
        """Train; called again with a larger ``max_epochs``, it goes on (and so does the gradient scaler)."""
        self._entered = True
        check_phases(self.method, self.state.max_epochs)
        for doubt in self.doubts:
            self._say(logging.WARNING, doubt)
        for sentence in self.method.announcement():
            self._say(logging.INFO, sentence)
        with worker_faults():
            try:
                Workflow.run(self)
            finally:
                stop_workers(self._opened)
                self.streams.close()

    def _setup_dataloader_iter(self) -> None:
        """As ignite, which forgets the iterator when something goes wrong, and leaves its workers behind."""
        super()._setup_dataloader_iter()
        self._opened = self._dataloader_iter

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        """One step of the method on one batch; see ``SupervisedTrainer._iteration`` for what it returns.

        Raises:
            ValueError: there is no batch.
        """
        if batchdata is None:
            raise ValueError("Must provide batch data for current iteration.")
        prepared = self.converter(batchdata, values=self.method.draws_operations)
        if self.converter.form is not None:
            self.losses.set_form(self.converter.form)
        self.batches.current = prepared.batch
        self.task.args, self.task.kwargs = prepared.args, prepared.kwargs
        self.state.output = {Keys.IMAGE: prepared.inputs, Keys.LABEL: prepared.targets}
        self._prepared = prepared
        self.task.first_micro_batch, self.task.last_micro_batch = micro_batch(
            self.state.iteration, self.state.epoch_length, self.accumulation_steps
        )
        self.network.train()
        figures = self.method.step(self.batches)
        output = self.state.output
        output.setdefault(Keys.LOSS, figures.get("loss"))
        output.update({name: value for name, value in figures.items() if name not in _RESERVED})
        # only now, with all figures in place: decollation and postprocessing hang on it
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _listen(self, event: str, values: Mapping[str, Any]) -> None:
        """What a method says within its step, as MONAI's events; and how far it is with what comes after the last."""
        if event == "finish":
            for sentence in tenths(**values) if rank() == 0 else []:
                self.logger.info(sentence)
            if self.heard is not None:
                self.heard(values["done"], values["total"])
            return
        output = self.state.output
        if event == "forward":
            batch = None if self.method.name == "none" else values["batch"]
            output.update(output_of(self._prepared, batch, values["output"], self.converter))
            self.fire_event(IterationEvents.FORWARD_COMPLETED)
        elif event == "loss":
            output[Keys.LOSS] = values["loss"]
            self.fire_event(IterationEvents.LOSS_COMPLETED)
        elif event == "backward":
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
