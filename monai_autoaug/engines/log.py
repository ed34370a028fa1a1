# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A run's ``log.jsonl``: one JSON object an epoch, and what each of its keys means.

``PLAYER`` is ``network`` (that segments), ``generators`` or ``discriminator``, of method general_adversarial
``generator``, ``class_discriminator`` or ``dissimilarity_discriminator``, of task_driven ``generator`` or
``discriminator``, of bilevel ``augmenter``; ``KIND`` is ``affine``, ``deformation`` or ``appearance``, of bilevel
``parametric``; ``STRUCTURE`` is a name of a label; ``CLASS`` is a class of patches (``background``, ``foreground``) and
``CASCADE`` a family of operations of which a patch gets one (``gamma``); ``GAME`` is ``class`` or ``dissimilarity``. A
key is there where there is such a thing: ``loss_KIND`` not without augmentation, ``dice`` only in epochs that validate.
A number that is not finite is null. Where nothing else is said, a figure is the mean over the epoch's iterations.

Training:

- ``epoch``: counted from 1.
- ``phase``: name of the phase that the epoch belongs to, where a method trains in several.
- ``learning_rate``: of the segmentation network's optimiser, at the end of the epoch.
- ``loss``: of the segmentation network (Dice + cross-entropy) on all samples of the batches.
- ``loss_clean``: the same on the samples that were not augmented.
- ``loss_KIND``: the same on the samples that this kind of augmentation transformed.
- ``loss_general``: the same on the samples that the generator of general_adversarial transformed.
- ``loss_deformation_appearance``: the same on those that both generators of task_driven transformed.
- ``loss_mixup``: the same on those that Mixup made, which then stand for all that are not clean.
- ``KIND_loss_ratio``: how much harder the augmentation makes the task: ``loss_KIND`` over ``loss_clean``; of a single
  kind the cross-entropy of the last batch, transformed over untransformed. Above 1 it is harder.
- ``seconds``: wall-clock time of the training so far, resumed parts included.
- ``cpu_seconds``: the same in seconds of CPU time of this process.
- ``warnings``: sentences about what has gone wrong, such as a collapse of an augmenter; only where there are any.

Validation, on the preprocessed grid (voxels resampled to the run's spacing, windows that overlap by a quarter, no
views). The final Dice in ``validation.json`` is another one: on the voxels of the label files, with windows that
overlap by half, and averaged over the views at test time if any were learned.

- ``dice``: mean of the structures below.
- ``dice_STRUCTURE``: mean Dice over the validation cases whose label has the structure (a structure predicted in a case
  that has none is not punished here, and counts as 0 in ``validation.json``).

What the augmenters and their opponents do:

- ``realism``: losses of the discriminator on real and on transformed patches, and of the generators against it; 2.08
  where it only guesses (1.39 with ``fidelity=paper``, where both sides share one loss). Of task_driven the generator's
  alone: 0.69 where the discriminator only guesses (-0.69 with ``saturating``), smaller where it is deceived.
- ``loss_discriminator``: the discriminator's of task_driven; 1.39 where it only guesses.
- ``field_size``: mean absolute value of what the generator of task_driven makes, in voxels or standard deviations.
- ``discriminator_accuracy``: share of real and transformed patches that the discriminator tells right, 0.5 to 1; above
  0.95 it no longer tells the generators anything.
- ``GAME_discriminator_accuracy``: the same of general_adversarial's two discriminators: of real and transformed patches
  with their labels; of pairs of two subjects and of a patch and what it was made to.
- ``GAME_discriminator_loss``: of one of these on both; 1.39 where it only guesses.
- ``generator_GAME``: loss of the generator against it; 0.69 where it only guesses, smaller where it is deceived.
- ``generator_adversarial``: loss of the generator against the network, which falls as the network errs.
- ``generator_loss``: the three by the method's weights.
- ``KIND_penalty``: magnitude of the transformations as the loss punishes it, before its weight.

How the augmenters stand at the end of the epoch, over eight noise vectors and one training patch (means over the eight
but where something else is said):

- ``KIND_noise_share``: share of the variation that is due to noise, 0 to 1; below 0.3 the augmenter is nearly one fixed
  transformation.
- ``KIND_learned_share``: the same for noise that the generator gets while the draw of the random policy stays the same:
  how much of the variation is learned.
- ``KIND_shift``: root mean square by which the generator moves the random policy, before it is bounded; 0 at first.
- ``KIND_spread``: factor by which the generator widens or narrows the random policy; 1 at first.
- ``KIND_saturation``: share of the parameters beyond 0.95 of their bound; 0.05 for uniform draws, a collapse above 0.3.
- ``KIND_displacement_mean``: mean displacement in voxels.
- ``KIND_displacement_max``: the largest displacement in voxels.
- ``KIND_jacobian_minimum``: the smallest determinant of the Jacobian; at 0 or below the field folds.
- ``KIND_rotation``: angle in degrees.
- ``KIND_translation``: length of the shift in voxels.
- ``KIND_log_volume``: natural logarithm of the change of volume; 0 keeps it.
- ``KIND_translation_share``: share of the field that is a uniform translation, 0 to 1; a collapse above 0.8.
- ``KIND_additive_mean``: mean absolute change of intensity, in standard deviations.
- ``parametric_mean``, ``parametric_deviation``: of the parameters that bilevel's augmenter makes from noise, root mean
  squares over the parameters of their mean and their deviation over noise, as shares of their bounds.
- ``parametric_brightness``, ``parametric_noise``: size of what is added, in standard deviations.
- ``parametric_contrast``, ``parametric_gamma``: size of the logarithm of factor and exponent.
- ``augmenter_updates``: updates of bilevel's augmenter so far.
- ``hypergradient``: length of the gradient by which it was updated; mean over the epoch's updates.

Policies; figures of updates are means over the epoch's updates of the policies, and missing where there were none:

- ``meta_loss``: on meta-validation patches, of the network as the next update will leave it; of bilevel, too.
- ``identity_loss``: soft Dice loss of a meta-validation patch predicted as it is.
- ``view_loss``: the same of the views that were drawn, each by itself.
- ``views_gain``: soft Dice that the average of the deployed views gains over the plain prediction, on a few
  meta-validation patches at the end of the epoch; below 0 it does harm.
- ``entropy_CLASS``: how undecided the training policy is, 1 for a uniform choice, 0 for certainty; mean of its
  cascades.
- ``entropy_CLASS_CASCADE``: the same of one cascade.
- ``entropy_views``: the same of the test-time policy.
- ``share_CLASS``: share of the patches that were of a class.
- ``policy_moved``: mean absolute change of the training policy's logits since the start.
- ``policy_updates``: updates of the policies so far.

nnU-Net's trainers write the last three groups into ``autoaug.jsonl`` too, and ``warnings``; ``epoch`` is counted from 0
there, as nnU-Net does, ``dice`` and ``dice_STRUCTURE`` are the pseudo Dice of nnU-Net's online validation, on patches,
missing where it is not defined. Besides the losses they have:

- ``train_loss``: nnU-Net's own figure of the epoch.
- ``skipped_PLAYER``: updates skipped so far because a gradient was not finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_autoaug.reading import MALFORMED
from monai_autoaug.writing import write_text

__all__ = ["append", "cut", "plain_number"]


def append(path: Path, row: Mapping[str, Any]) -> None:
    r"""Add a line, at once on disk.

    Args:
        path: the log.
        row: figures of an epoch.

    Raises:
        OSError: it can't be written; the error names the file.

    >>> import tempfile
    >>> log = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> append(log, {"epoch": 1, "loss": float("nan")}); log.read_text()
    '{"epoch": 1, "loss": null}\n'
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: plain_number(value) for name, value in row.items()}) + "\n")
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # a full disk names no file by itself
        raise


def cut(path: Path, epoch: int) -> None:
    """Remove lines after ``epoch``: of an epoch that was logged, but whose checkpoint was not reached.

    Args:
        path: the log; it need not be there.
        epoch: the last one that stays.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        write_text(path, "".join(line + "\n" for line in lines if _epoch_of(line) <= epoch))


def plain_number(value: Any) -> Any:
    """Six significant digits of a number; None, as JSON has it, where it is not finite.

    >>> plain_number(0.123456789), plain_number(float("inf")), plain_number(3)
    (0.123457, None, 3)
    """
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _epoch_of(line: str) -> float:
    """The epoch of a line; one that was cut off by a crash belongs to none."""
    try:
        return float(json.loads(line)["epoch"])
    except MALFORMED:
        return float("inf")
