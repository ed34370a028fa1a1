# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""nnU-Net trainers with learned augmentation: `with_autoaug` gives it to any trainer class.

Plain nnU-Net finds these classes through the folder that ``monai-autoaug nnunet path`` prints::

    export nnUNet_extTrainer=$(monai-autoaug nnunet path)
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerAutoAugAdversarial
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerAutoAug  # policies; nnUNetv2_predict averages the learned views

With ``task_driven`` images without labels are preprocessed first. The network of the best pseudo Dice of its last phase
is ``checkpoint_best.pth``, the one after the last epoch ``checkpoint_final.pth``::

    monai-autoaug nnunet preprocess-unlabelled 4 3d_fullres FOLDER
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerAutoAugTaskDriven
    nnUNetv2_predict -i IN -o OUT -d 4 -c 3d_fullres -tr nnUNetTrainerAutoAugTaskDriven -chk checkpoint_best.pth

A trainer of one's own, in a folder of one's own that is named in ``nnUNet_extTrainer`` too::

    # my_trainers.py
    from monai_autoaug.nnunet import with_autoaug
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5


    class nnUNetTrainerDA5Adversarial(with_autoaug(nnUNetTrainerDA5, "adversarial", epochs=500)):
        pass

nnU-Net looks trainers up by class name and writes that name into the checkpoint, so the class's name and the
variable's must be the same; a class statement sees to that.
"""

from __future__ import annotations

import sys
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from monai_autoaug.errors import ConfigError
from monai_autoaug.nnunet.mixin import AutoAugMixin
from monai_autoaug.nnunet.options import Options

__all__ = [
    "TRAINERS",
    "nnUNetTrainerAutoAug",
    "nnUNetTrainerAutoAugAdversarial",
    "nnUNetTrainerAutoAugBilevel",
    "nnUNetTrainerAutoAugGeneral",
    "nnUNetTrainerAutoAugNone",
    "nnUNetTrainerAutoAugRandom",
    "nnUNetTrainerAutoAugTaskDriven",
    "with_autoaug",
]


def with_autoaug(
    Base: type[nnUNetTrainer], method: str = "adversarial", *, name: str | None = None, **defaults: Any
) -> type[nnUNetTrainer]:
    """An nnU-Net trainer class with learned augmentation.

    What ``Base`` does stays: its augmentation (under the learned one), loss, optimiser, schedule, network, sampling.

    Args:
        Base: any subclass of nnUNetTrainer.
        method: the method it uses unless an option says otherwise.
        name: the class's name; default: ``<Base>AutoAug<Method>``.
        defaults: defaults of further options (see `Options`).

    Returns:
        A subclass of ``Base``, in the caller's module, picklable where the caller keeps it under its name.

    Raises:
        ConfigError: ``Base`` is no nnU-Net trainer or has learned augmentation already, or an option is wrong.

    >>> with_autoaug(nnUNetTrainer, "random").__name__
    'nnUNetTrainerAutoAugRandom'
    """
    if not (isinstance(Base, type) and issubclass(Base, nnUNetTrainer)):
        raise ConfigError(f"with_autoaug takes a subclass of nnUNetTrainer, got {Base!r}")
    if issubclass(Base, AutoAugMixin):
        raise ConfigError(f"{Base.__name__} has learned augmentation already; choose its method by the option method")
    layer = {"method": method, **defaults}
    Options.from_mapping(layer, f"with_autoaug({Base.__name__})")
    title = "".join(word.capitalize() for word in method.split("_"))
    attributes = {
        "__module__": sys._getframe(1).f_globals.get("__name__", __name__),
        "__doc__": f"{Base.__name__} with learned augmentation, by default method {method!r}; options: `Options`.",
        "autoaug_defaults": layer,
        "autoaug_base": Base,
    }
    return type(name or f"{Base.__name__}AutoAug{title}", (AutoAugMixin, Base), attributes)


nnUNetTrainerAutoAug = with_autoaug(  # noqa: N816  # a class
    nnUNetTrainer, "joint_policy", name="nnUNetTrainerAutoAug"
)
nnUNetTrainerAutoAugAdversarial = with_autoaug(nnUNetTrainer, "adversarial")  # noqa: N816
nnUNetTrainerAutoAugBilevel = with_autoaug(nnUNetTrainer, "bilevel")  # noqa: N816
nnUNetTrainerAutoAugGeneral = with_autoaug(  # noqa: N816  # a class
    nnUNetTrainer, "general_adversarial", name="nnUNetTrainerAutoAugGeneral"
)
nnUNetTrainerAutoAugRandom = with_autoaug(nnUNetTrainer, "random")  # noqa: N816
nnUNetTrainerAutoAugTaskDriven = with_autoaug(nnUNetTrainer, "task_driven")  # noqa: N816
nnUNetTrainerAutoAugNone = with_autoaug(nnUNetTrainer, "none")  # noqa: N816

TRAINERS: dict[str, type[nnUNetTrainer]] = {
    c.__name__: c
    for c in (
        nnUNetTrainerAutoAug,
        nnUNetTrainerAutoAugAdversarial,
        nnUNetTrainerAutoAugBilevel,
        nnUNetTrainerAutoAugGeneral,
        nnUNetTrainerAutoAugTaskDriven,
        nnUNetTrainerAutoAugRandom,
        nnUNetTrainerAutoAugNone,
    )
}
