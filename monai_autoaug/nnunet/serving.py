# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How a trainer with learned augmentation is served with patches."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from monai_autoaug.data import EpochCases, MetaSplit
from monai_autoaug.errors import ConfigError
from monai_autoaug.methods import Method
from monai_autoaug.nnunet.loading import RecordingLoader, StockStream, Stream, second_loader, take_loader
from monai_autoaug.nnunet.options import Options
from monai_autoaug.nnunet.patches import PatchLayout, meta_loader, prepare_loader, steady_blur
from monai_autoaug.nnunet.split import meta_split
from monai_autoaug.nnunet.unlabelled import unlabelled_loader
from monai_autoaug.nnunet.worker_policy import SharedPolicy
from monai_autoaug.precision import rank

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Host
else:
    _Host = object  # the trainer class that it is mixed into follows in the method resolution order

__all__ = ["ServingMixin", "environment"]


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class ServingMixin(_Host):
    """The part of `AutoAugMixin` that makes and closes streams of patches."""

    autoaug: Options
    method: Method
    layout: PatchLayout
    run_seed: int
    _streams: dict[str, Stream | StockStream]
    _positions: dict[str, int]
    _split: MetaSplit[str] | None
    _cases: dict[str, int]
    _meta_loader: RecordingLoader
    _shared_policy: SharedPolicy | None
    _policy_versions: dict[str, Any] | None

    def get_dataloaders(self) -> tuple[Any, Any]:
        """The base trainer's loaders, recorded, and served seeded and in order (or as nnU-Net serves them)."""
        options = self.autoaug
        assert options.base_augmentation is not None  # noqa: S101  # for the type checker: options fill it in
        plain = options.base_augmentation == "stock" and not any(self.layout.margin)
        if options.loader == "stock" and options.method == "none" and plain:
            return super().get_dataloaders()
        workers = get_allowed_n_proc_DA()
        with environment("nnUNet_n_proc_DA", "0"):  # the loaders themselves, not yet in workers
            train, val = (take_loader(a, n) for a, n in zip(super().get_dataloaders(), ("train", "val"), strict=True))
        self._cases = {"train": len(train.loader.indices), "validation": len(val.loader.indices)}
        masked = options.method != "none" and any(self.configuration_manager.use_mask_for_norm)
        cases = self._set_apart(train, val, masked) if "meta" in self.method.needs else None
        prepare_loader(train, options.base_augmentation, self.layout.margin, masked)
        if options.base_augmentation == "none":
            self.inference_allowed_mirroring_axes = None  # a network that saw no mirrored patch shan't predict on them
        fewer = max(1, workers // 2) if workers else 0
        self._shared_policy = self._share_policy()
        self._streams["train"] = self._stream("train", train, workers, cases, self._shared_policy)
        self._streams["val"] = self._stream("val", val, fewer)
        if "real" in self.method.needs:
            self._streams["real"] = self._stream("real", second_loader(train), fewer, cases)
        if "unlabelled" in self.method.needs:
            self._streams["unlabelled"] = self._stream("unlabelled", unlabelled_loader(self, train), fewer)
        if self._split is not None:
            self._serve_meta(self._split)
        return self._streams["train"], self._streams["val"]

    def _set_apart(self, train: RecordingLoader, val: RecordingLoader, masked: bool) -> EpochCases[str] | None:
        """Take the meta-validation cases away from training; returns the rest by batch if it changes."""
        options = self.autoaug
        assert options.meta_cases is not None  # noqa: S101  # for the type checker: options fill it in
        if train.loader.sampling_probabilities is not None:
            raise ConfigError(
                f"{type(self).__name__} draws some cases more often than others (sampling_probabilities), which can't"
                " be divided into training and meta-validation; use another trainer"
            )
        known = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        split = self._split = meta_split(
            options.meta_cases, training=train.loader.indices, validation=set(val.loader.indices), known=set(known),
            seed=self.run_seed, resampled=options.meta_split == "resampled",
        )  # fmt: skip
        self._meta_loader = meta_loader(train, val, self.method.meta_batch, self.layout.margin, masked)
        train.restrict(split.training(self.current_epoch))
        meta, rest = split.meta(self.current_epoch), split.training(self.current_epoch)
        again = f", others in each epoch, in epoch {self.current_epoch}" if split.resampled else ""
        self.print_to_log_file(f"Meta-validation on {len(meta)} cases{again}: {', '.join(meta)}; {len(rest)} train")
        return EpochCases(split, self.num_iterations_per_epoch, "train") if split.resampled else None

    def _serve_meta(self, split: MetaSplit[str]) -> None:
        """Serve meta-validation patches of this epoch's cases; what was prefetched of others is thrown away."""
        before = self._streams.get("meta")
        if before is not None:
            before.close()
            self._positions["meta"] = before.position
        self._meta_loader.restrict(split.meta(self.current_epoch))
        workers = min(2, get_allowed_n_proc_DA())  # no augmentation, and not in every iteration
        self._streams["meta"] = self._stream("meta", self._meta_loader, workers)

    def on_train_epoch_start(self) -> None:
        """Meta-validation cases are drawn anew if so wished; the training stream knows its batches' cases itself."""
        super().on_train_epoch_start()
        split = self._split
        if split is not None and list(split.meta(self.current_epoch)) != self._meta_loader.loader.indices:
            self._serve_meta(split)

    def _share_policy(self) -> SharedPolicy | None:
        """What the training stream's workers augment by, if it is theirs to do."""
        drawing = self.method.drawing() if self.autoaug.policy_place == "workers" else None
        if drawing is None:
            return None
        shared = SharedPolicy(drawing, self.layout)
        if self._policy_versions is not None:
            shared.load_state_dict(self._policy_versions)
        return shared

    def _stream(
        self,
        name: str,
        loader: RecordingLoader,
        workers: int,
        cases: Callable[[int], Sequence[str]] | None = None,
        policy: SharedPolicy | None = None,
    ) -> Stream | StockStream:
        start, pinned = self._positions.get(name, 0), self.device.type == "cuda"
        if self.autoaug.loader == "stock":
            cached = max(6, workers // 2)
            return StockStream(
                loader, workers=workers, cached=cached, start=start, pin_memory=pinned, stream=name
            )
        steady_blur(loader.loader.transforms.transforms)
        return Stream(
            loader, seed=self.run_seed, rank=rank(), stream=name, workers=workers, start=start, pin_memory=pinned,
            cases=cases, policy=policy,
        )  # fmt: skip

    def _close_streams(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
