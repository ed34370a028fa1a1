# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What can be compared: every method, every row of the papers' tables, and the baselines, by name.

A method's name is the method as it comes: with the MONAI host it is all the augmentation there is; in nnU-Net it is
over nnU-Net's own, as its trainers do it ("joint_policy" replaces it). ``METHOD/ROW`` is a row of the tables of the
method's paper, with nothing else under it. Every arm gets the same training cases. The papers' rows that learn nothing
but leave out the cases that a method learns from (``hold_out``) train on these, too: what a method costs in cases is a
part of what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from monai_autoaug import methods
from monai_autoaug.errors import ConfigError, did_you_mean
from monai_autoaug.methods import bilevel_comparisons
from monai_autoaug.methods.adversarial_comparisons import ADVERSARIAL_COMPARISONS
from monai_autoaug.methods.comparisons import COMPARISONS, Comparison
from monai_autoaug.methods.general_comparisons import GENERAL_COMPARISONS
from monai_autoaug.methods.task_driven_comparisons import TASK_DRIVEN_COMPARISONS

__all__ = ["HOSTS", "Arm", "known_arms"]

HOSTS = ("monai", "nnunet")
_PLAIN = "nnUNetTrainerAutoAugNone"
# method -> rows of its paper; joint_policy's "all cases" is what "heuristic" becomes here
_ROWS: dict[str, Mapping[str, Comparison]] = {
    "adversarial": ADVERSARIAL_COMPARISONS,
    "task_driven": TASK_DRIVEN_COMPARISONS,
    "joint_policy": {name: row for name, row in COMPARISONS.items() if name != "heuristic_all_cases"},
    "bilevel": {name: row for name, row in bilevel_comparisons.COMPARISONS.items() if name != "magnitude"}
    | {
        f"magnitude_{value}": Comparison(
            f"One candidate of the validated magnitude: all hand-made bounds times {value}.",
            {**bilevel_comparisons.COMPARISONS["magnitude"].options, "magnitude": value},
        )
        for value in bilevel_comparisons.MAGNITUDES
    },
    "general_adversarial": GENERAL_COMPARISONS,
}
_TRAINERS = {
    "joint_policy": "nnUNetTrainerAutoAug", "adversarial": "nnUNetTrainerAutoAugAdversarial",
    "bilevel": "nnUNetTrainerAutoAugBilevel", "general_adversarial": "nnUNetTrainerAutoAugGeneral",
    "task_driven": "nnUNetTrainerAutoAugTaskDriven", "random": "nnUNetTrainerAutoAugRandom",
}  # fmt: skip
_POLICY: dict[str, Any] = dict(COMPARISONS["heuristic_all_cases"].options)
_MIRRORS, _GAMMAS = ["mirrorS", "mirrorF", "mirrorA"], ["gamma", "invgamma"]
_ALONE: dict[str, Any] = {"base_augmentation": "none"}


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Args:
        name: as it was asked for, options after colons included.
        what: it is, in a sentence.
        method: of `monai_autoaug.methods`.
        method_options: its options.
        options: further options of the host: `engines.TrainOptions`, or those of nnU-Net's trainers
            (`nnunet.options.Options`).
        trainer: of nnU-Net, empty with the MONAI host.

    >>> arm = Arm.find("joint_policy:views=4:epochs=10", "monai")
    >>> arm.method_options, arm.options
    ({'views': 4}, {'epochs': 10})
    """

    name: str
    what: str
    method: str
    method_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    trainer: str = ""

    @classmethod
    def find(cls, text: str, host: str) -> Arm:
        """An arm by its name, perhaps with options: ``NAME:OPTION=VALUE:OPTION=VALUE``.

        Args:
            text: such as "none" or "joint_policy/learned:preset=deepmedic".
            host: "monai" or "nnunet".

        Raises:
            ConfigError: there is no such arm or option, or not with this host.

        >>> Arm.find("nunet", "monai")
        Traceback (most recent call last):
        monai_autoaug.errors.ConfigError: there is no arm 'nunet'...; did you mean 'nnunet'?
        """
        import yaml

        from monai_autoaug.yaml_values import parse

        name, *pairs = text.split(":")
        known = known_arms(host)
        if name not in known:
            elsewhere = [h for h in HOSTS if h != host and name in known_arms(h)]
            if elsewhere:
                raise ConfigError(f"arm {name!r} is one of host {elsewhere[0]} only; leave it out, or use that host")
            raise ConfigError(
                f"there is no arm {name!r}; monai-autoaug compare --arms lists those there are"
                f"{did_you_mean(name, known)}"
            )
        row = known[name]
        method_options, options = dict(row.method_options), dict(row.options)
        own, further = methods.options(row.method), _host_options(host)
        for pair in pairs:
            option, equals, value = pair.partition("=")
            if not equals or option not in {*own, *further} or option == "seed":
                names = sorted({*own, *further} - {"seed"})
                raise ConfigError(
                    f"arm {text!r}: {pair!r} is no OPTION=VALUE of method {row.method!r} or of the host; there are"
                    f" {', '.join(names)}{did_you_mean(option, names)}"
                )
            try:
                (method_options if option in own else options)[option] = parse(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"arm {text!r}: {value!r} can't be read as a value ({error})") from error
        methods.check(row.method, method_options)
        return cls(text, row.what, row.method, method_options, options, row.trainer)

    @property
    def learns_from_meta(self) -> bool:
        """Whether some of its training cases are set apart to learn from."""
        return "meta" in methods.streams(self.method, **self.method_options)

    @property
    def learns_from_unlabelled(self) -> bool:
        """Whether it learns from unlabelled images, too."""
        return "unlabelled" in methods.streams(self.method, **self.method_options)

    @property
    def chooses_epoch(self) -> bool:
        """Whether the network of the epoch that is best on the validation cases is kept."""
        return methods.find(self.method).keeps_best


def _host_options(host: str) -> tuple[str, ...]:
    """Options of a host that an arm may have for itself; the others are the same for all."""
    if host == "monai":
        return ("epochs", "iterations", "batch_size", "learning_rate", "weight_decay", "network_options", "meta_cases",
                "meta_split")  # fmt: skip
    return ("epochs", "iterations_per_epoch", "batch_size", "optimizer", "lr", "weight_decay", "momentum",
            "base_augmentation", "loader", "margin", "meta_cases", "meta_split", "policy_place")  # fmt: skip


@cache
def known_arms(host: str) -> Mapping[str, Arm]:
    """All arms of a host by name: baselines, then methods as they come, then rows of the papers.

    Args:
        host: "monai" or "nnunet".

    Raises:
        ConfigError: there is no such host.

    >>> {"none", "nnunet", "joint_policy", "task_driven/both_mixup"} <= set(known_arms("monai"))
    True
    """
    if host not in HOSTS:
        raise ConfigError(f"there is no host {host!r}; choose one of {', '.join(HOSTS)}{did_you_mean(host, HOSTS)}")
    arms = {arm.name: arm for arm in (*_baselines(host), *_policy_baselines(host), *_methods(host), *_rows(host))}
    return MappingProxyType(arms)


def _arm(host: str, name: str, what: str, method: str, options: Mapping[str, Any], **nnunet: Any) -> Arm:
    """An arm of a host; ``nnunet`` are options of nnU-Net's trainers, and perhaps the trainer."""
    if host == "monai":
        return Arm(name, what, method, options)
    trainer = nnunet.pop("trainer", _TRAINERS.get(method, _PLAIN))
    return Arm(name, what, method, options, nnunet, trainer)


def _baselines(host: str) -> Iterator[Arm]:
    """No augmentation, and nnU-Net's in its forms."""
    yield _arm(host, "none", "No augmentation: patches as they are.", "none", {}, **_ALONE)
    if host == "nnunet":
        yield Arm("nnunet", "Stock nnU-Net: its own trainer, augmentation and workers.", "none", {},
                  {"loader": "stock"}, _PLAIN)  # fmt: skip
        yield Arm("nnunet-reseeded", "Stock nnU-Net whose workers have random numbers of their own each.", "none", {},
                  {}, _PLAIN)  # fmt: skip
        for name, base, what in (
            ("da5", "DA5", "nnU-Net's DA5, its strongest hand-made augmentation"),
            ("no-mirroring", "NoMirroring", "nnU-Net without mirroring, when it trains and when it predicts"),
            ("nnunet-no-gamma", "NoGamma", "nnU-Net without gamma transformations (nnUNet Reduce of paper 000)"),
        ):
            yield Arm(name, f"{what}; workers as in nnunet-reseeded.", "none", {}, {},
                      f"nnUNetTrainer{base}AutoAugNone")  # fmt: skip
        return
    fixed = "nnU-Net's augmentation as a fixed policy of this package's operations"
    yield Arm("nnunet", f"{fixed}.", "joint_policy", _POLICY)
    yield Arm("no-mirroring", f"{fixed}, without mirroring.", "joint_policy", _POLICY | {"without": _MIRRORS})
    yield Arm("nnunet-no-gamma", f"{fixed}, without gamma (nnUNet Reduce of paper 000).", "joint_policy",
              _POLICY | {"without": _GAMMAS})  # fmt: skip


def _policy_baselines(host: str) -> Iterator[Arm]:
    """What the papers compare with under names of their own."""
    for size in ("small", "medium", "large"):
        yield _arm(host, f"randaugment-{size[0]}", f"RandAugment with {size} operations alone.", "joint_policy",
                   _POLICY | {"magnitude": size})  # fmt: skip
    yield _arm(host, "random-policy", "Operations of joint_policy, each as probable as any other.", "joint_policy",
               _POLICY | {"preset": "uniform"})  # fmt: skip
    for name, row in (
        ("affine", "affine"), ("elastic", "random_elastic"), ("contrast", "random_intensity"), ("mixup", "mixup"),
    ):  # fmt: skip
        found = TASK_DRIVEN_COMPARISONS[row]
        yield _arm(host, name, f"{found.what} The epoch is chosen on the validation cases.", "task_driven",
                   found.options, **_ALONE)  # fmt: skip
    yield _arm(host, "heuristic-tea", "nnU-Net's augmentation as a fixed policy; eight mirrored views averaged.",
               "joint_policy", {"learn_training": False, "learn_test_time": False})  # fmt: skip
    yield _arm(host, "learned-tea", "nnU-Net's augmentation as a fixed policy; views at test time learned.",
               "joint_policy", {"learn_training": False})  # fmt: skip


def _methods(host: str) -> Iterator[Arm]:
    """Methods as they come."""
    for name in methods.names():
        if name != "none":
            text = " ".join((methods.find(name).__doc__ or name).split("\n\n")[0].split())
            yield _arm(host, name, text, name, {})


def _rows(host: str) -> Iterator[Arm]:
    """The papers' tables."""
    for method, rows in _ROWS.items():
        for name, row in rows.items():
            options = {option: value for option, value in row.options.items() if option != "hold_out"}
            yield _arm(host, f"{method}/{name}", row.what, method, options, **_ALONE)
