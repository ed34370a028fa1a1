# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net's own commands with this package's trainers, without an environment variable, and on several CPU ranks.

Plain ``nnUNetv2_train`` finds our trainers through ``nnUNet_extTrainer``, but looks through its own first and
imports all of them on the way; one of those needs torchvision, and where that is missing no external trainer is
found. `train` and `predict` hand nnU-Net our classes directly, then run nnU-Net's own entry points with the
arguments as they are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_autoaug.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_TRAINER", "EXT_VARIABLE", "ext_path", "find_trainer", "predict", "threads", "to_continue", "train"]

EXT_VARIABLE = "nnUNet_extTrainer"
DEFAULT_TRAINER = "nnUNetTrainerAutoAugAdversarial"


def ext_path() -> Path:
    """The folder to name in ``nnUNet_extTrainer``.

    >>> [p.name for p in ext_path().glob("*.py")]
    ['monai_autoaug_trainers.py']
    """
    return Path(__file__).resolve().parent / "ext"


def find_trainer(name: str) -> Any:
    """A trainer class by name: this package's directly, any other as nnU-Net finds it.

    >>> find_trainer("nnUNetTrainerAutoAugNone").__name__
    'nnUNetTrainerAutoAugNone'
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from monai_autoaug.nnunet.baselines import BASELINES
    from monai_autoaug.nnunet.trainers import TRAINERS

    own = TRAINERS | BASELINES
    return own[name] if name in own else recursive_find_trainer_class_by_name(name)


def threads(share: int = 1) -> int:
    """Threads for torch on the CPU: OMP_NUM_THREADS, or this process's cores (nnU-Net takes the machine's), shared.

    Args:
        share: processes that train side by side.

    >>> threads() >= 1
    True
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // share)


def _name_ext_path() -> None:
    """For processes that nnU-Net starts: they look trainers up themselves."""
    paths = [p for p in os.environ.get(EXT_VARIABLE, "").split(os.pathsep) if p]
    if str(ext_path()) not in paths:
        os.environ[EXT_VARIABLE] = os.pathsep.join([str(ext_path()), *paths])


@contextmanager
def _replaced(module: Any, **values: Any) -> Iterator[None]:
    """Give names of a module other values within the block."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _add_tea(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tea", choices=("patch", "volume"), default="patch",
        help="Learned test-time views are of patches, inside the network, or as in the paper of the whole volume, which"
        " takes more memory. Default: patch. How many: the environment variable MONAI_AUTOAUG_TEA, 0 for none.",
    )  # fmt: skip


@contextmanager
def _as_command(name: str, arguments: Sequence[str]) -> Iterator[None]:
    """Let an entry point of nnU-Net see these arguments, with our default trainer, which its help names too."""
    plain = argparse.ArgumentParser.add_argument

    def add_argument(parser: argparse.ArgumentParser, *flags: Any, **given: Any) -> argparse.Action:
        if "-tr" in flags:
            text = str(given.get("help", "")).split("Default:")[0].strip()
            given |= {"default": DEFAULT_TRAINER, "required": False, "help": f"{text} Default: {DEFAULT_TRAINER}"}
            if name == "predict":
                _add_tea(parser)
        return plain(parser, *flags, **given)

    with (
        _replaced(argparse.ArgumentParser, add_argument=add_argument),
        _replaced(sys, argv=[f"monai-autoaug nnunet {name}", *arguments]),
    ):
        yield


def to_continue(arguments: Sequence[str]) -> list[str]:
    """The arguments of a training that was stopped, so that it goes on from its last checkpoint.

    Args:
        arguments: as for ``nnUNetv2_train``.

    >>> to_continue(["4", "3d_fullres", "0"]), to_continue(["4", "2d", "0", "--c"])
    (['4', '3d_fullres', '0', '--c'], ['4', '2d', '0', '--c'])
    """
    return [*arguments, *([] if {"--c", "--val"} & set(arguments) else ["--c"])]


def train(arguments: Sequence[str]) -> None:
    """Run ``nnUNetv2_train`` with these arguments.

    ``-tr`` defaults to nnUNetTrainerAutoAugAdversarial; ``-num_gpus 2 -device cpu`` trains on two CPU ranks.

    Args:
        arguments: as for ``nnUNetv2_train``.
    """
    import torch
    from nnunetv2.run import run_training as host

    original = host.run_training

    def run(*values: Any, device: torch.device) -> None:
        parsed = dict(zip(_ARGUMENTS, values, strict=True))
        if device.type == "cpu":
            torch.set_num_threads(threads())
        if device.type == "cpu" and parsed["num_gpus"] > 1:
            _train_on_cpu_ranks(parsed)
        else:
            original(*values, device=device)

    _name_ext_path()
    with (
        _replaced(host, recursive_find_trainer_class_by_name=find_trainer, run_training=run, run_ddp=_gpu_rank),
        _as_command("train", arguments),
    ):
        host.run_training_entry()


def predict(arguments: Sequence[str]) -> None:
    """Run ``nnUNetv2_predict`` with these arguments.

    Args:
        arguments: as for ``nnUNetv2_predict``; ``-tr`` defaults to nnUNetTrainerAutoAugAdversarial, and
            ``--tea volume`` averages views of whole volumes, not of patches.

    Raises:
        DataError: an image can't be read, or a prediction could not be written whole.
        WorkerError: a process that reads or writes has died.
        OSError: disk full, no permission.
    """
    from nnunetv2.inference import predict_from_raw_data as host

    from monai_autoaug.nnunet.exporting import whole_exports
    from monai_autoaug.nnunet.predicting import faults_told, tended_processes
    from monai_autoaug.nnunet.volume_views import VolumePredictor

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_tea(parser)
    parser.add_argument("-o", type=Path)
    known = parser.parse_known_args(arguments)[0]
    volume = known.tea == "volume"
    _name_ext_path()
    with (
        _replaced(
            host,
            recursive_find_trainer_class_by_name=find_trainer,
            nnUNetPredictor=VolumePredictor if volume else host.nnUNetPredictor,
        ),
        whole_exports(host),
        _as_command("predict", arguments),
        tended_processes(known.o),
        faults_told(),
    ):
        host.predict_entry_point()


# the order in which nnU-Net's entry point hands its arguments on
_ARGUMENTS = (
    "dataset",
    "configuration",
    "fold",
    "trainer",
    "plans",
    "pretrained_weights",
    "num_gpus",
    "npz",
    "continue_training",
    "only_validation",
    "disable_checkpointing",
    "validate_best",
)


def _gpu_rank(rank: int, *arguments: Any) -> None:
    """nnU-Net's process of one GPU, which finds our trainers directly."""
    from nnunetv2.run import run_training as host

    host.recursive_find_trainer_class_by_name = find_trainer
    host.run_ddp(rank, *arguments)


def _train_on_cpu_ranks(parsed: dict[str, Any]) -> None:
    from nnunetv2.run.run_training import find_free_network_port
    from torch.multiprocessing.spawn import spawn

    if parsed["continue_training"] and parsed["only_validation"]:
        raise ConfigError("--c continues training and --val only validates; give one of them")
    if parsed["continue_training"] and parsed["pretrained_weights"]:
        raise ConfigError("--c continues a training, which -pretrained_weights would begin anew; give one of them")
    if parsed["fold"] != "all":
        parsed["fold"] = int(parsed["fold"])
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ.setdefault("MASTER_PORT", str(find_free_network_port()))
    spawn(_cpu_rank, args=(parsed["num_gpus"], parsed), nprocs=parsed["num_gpus"], join=True)


def _cpu_rank(rank: int, world_size: int, parsed: dict[str, Any]) -> None:
    """One rank on the CPU: what nnU-Net's process of one GPU does, with gloo."""
    import torch
    import torch.distributed as dist
    from nnunetv2.run import run_training as host

    torch.set_num_threads(threads(world_size))
    host.recursive_find_trainer_class_by_name = find_trainer
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        trainer = host.get_trainer_from_args(
            parsed["dataset"], parsed["configuration"], parsed["fold"], parsed["trainer"], parsed["plans"],
            parsed["continue_training"], device=torch.device("cpu"),
        )  # fmt: skip
        trainer.disable_checkpointing = trainer.disable_checkpointing or parsed["disable_checkpointing"]
        host.maybe_load_checkpoint(trainer, parsed["continue_training"], parsed["only_validation"])
        if parsed["pretrained_weights"] and not parsed["only_validation"]:
            if not trainer.was_initialized:
                trainer.initialize()
            load_pretrained_weights(trainer.network.module, parsed["pretrained_weights"])
        if not parsed["only_validation"]:
            trainer.run_training()
        if parsed["validate_best"]:
            trainer.load_checkpoint(os.path.join(trainer.output_folder, "checkpoint_best.pth"))
        trainer.perform_actual_validation(parsed["npz"])
    finally:
        dist.destroy_process_group()


def load_pretrained_weights(network: Any, filename: str) -> None:
    """Take over the weights of a checkpoint but the segmentation layers, as nnU-Net does (its own wants a GPU a rank).

    Args:
        network: unwrapped.
        filename: a checkpoint of nnU-Net.

    Raises:
        CheckpointError: unreadable, or of a network of another form.
    """
    from monai_autoaug.nnunet.checkpoint import read_checkpoint

    given, own = read_checkpoint(filename)["network_weights"], network.state_dict()
    wanted = {name for name in own if ".seg_layers." not in name}
    for name in wanted:
        if name not in given or given[name].shape != own[name].shape:
            came = tuple(given[name].shape) if name in given else "none"
            raise CheckpointError(
                f"{filename}: does not fit this network; {name} has shape {tuple(own[name].shape)} here, came {came}"
            )
    network.load_state_dict({name: given[name] if name in wanted else tensor for name, tensor in own.items()})
