# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a run keeps of its augmentation: one patch, comparable samples of it, nothing that names a case."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from monai_autoaug.augmenters import AffineAugmenter, AppearanceAugmenter
from monai_autoaug.data.batch import Batch
from monai_autoaug.errors import CheckpointError, ConfigError
from monai_autoaug.methods.montage import check_board, montage, show
from monai_autoaug.methods.sample_file import Patch, planes, read_samples
from monai_autoaug.methods.samples import Samples, chosen_epochs
from monai_autoaug.policies import TrainingPolicy


def batch(foreground: tuple[bool, ...] = (False, True), *, classes: int = 3, margin: int = 2, **more: Any) -> Batch:
    """Patches of which some have two boxes as structures."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(len(foreground), 1, 16, 14, 12, generator=generator)
    label = torch.zeros(len(foreground), classes, 16, 14, 12)
    for row, there in enumerate(foreground):
        if there:
            label[row, 1, 4:9, 4:10, 3:8] = 1
            label[row, 2, 9:12, 4:10, 3:8] = 1
    label[:, 0] = 1 - label[:, 1:].amax(1)
    given: dict[str, Any] = {"spacing": torch.tensor([[1.0, 2.0, 3.0]]).expand(len(image), -1)} | more
    return Batch(image, label, case=tuple(f"patient_{k}" for k in range(len(image))), margin=(margin,) * 3, **given)


def method(strength: float = 1.0, policy: TrainingPolicy | None = None) -> Any:
    torch.manual_seed(0)
    kinds = {"affine": AffineAugmenter(3, 1), "appearance": AppearanceAugmenter(3, 1)}
    for augmenter in kinds.values():
        augmenter.strength.fill_(strength)
    learned = {} if policy is None else {"training": policy}
    return SimpleNamespace(
        task=SimpleNamespace(device=torch.device("cpu")), augmenters=lambda: {} if policy else kinds,
        policies=lambda: learned,
    )  # fmt: skip


def begun(path: Path, epochs: int = 8, **options: Any) -> Samples:
    samples = Samples(path, epochs, **({"orientation": "RAS", "structures": ("liver", "tumour")} | options))
    samples.offer(batch())
    return samples


@pytest.mark.parametrize("epochs", [1, 2, 7, 8, 9, 100, 1000])
def test_at_most_eight_epochs_with_the_first_and_the_last(epochs: int) -> None:
    chosen = chosen_epochs(epochs)
    assert chosen[0] == 1
    assert chosen[-1] == epochs
    assert len(chosen) == len(set(chosen)) == min(epochs, len(chosen)) <= 8
    gaps = [b - a for a, b in zip(chosen, chosen[1:], strict=False)]
    assert gaps == sorted(gaps)  # denser at the beginning


def test_the_patch_is_one_with_foreground_and_is_read_as_it_was(tmp_path: Path) -> None:
    samples = begun(tmp_path / "samples.pt")
    given = batch()
    samples.keep(1, method())
    patch = read_samples(tmp_path / "samples.pt").patch
    assert torch.allclose(patch.image, given.image[1], atol=2e-3)  # half precision
    assert torch.equal(patch.label, given.label[1])
    assert torch.equal(patch.foreground, given.cropped().label[1, 1:])
    assert (patch.margin, patch.spacing, patch.orientation) == ((2, 2, 2), (1.0, 2.0, 3.0), "RAS")
    assert patch.structures == ("liver", "tumour")
    # of the first axis the slice that shows both structures if there is one, else the larger one
    assert patch.foreground[0, patch.cuts[0]].sum() == 30
    assert b"patient" not in (tmp_path / "samples.pt").read_bytes()


def test_a_patch_without_foreground_is_taken_when_none_has_any_for_long(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.pt", 3)
    empty = batch((False,))
    assert [samples.offer(empty) for _ in range(8)] == [False] * 7 + [True]
    assert samples.patch.structures == ("structure 1", "structure 2")
    assert not samples.patch.foreground.any()


def test_plain_patches_are_shown_where_workers_have_augmented(tmp_path: Path) -> None:
    plain = batch()
    samples = Samples(tmp_path / "samples.pt", 3)
    samples.offer(batch(plain=plain, operations=torch.zeros(2, 15, dtype=torch.long)))
    assert torch.allclose(samples.patch.image, plain.image[1], atol=2e-3)


def test_samples_of_a_draw_can_be_compared_over_epochs(tmp_path: Path) -> None:
    samples, path = begun(tmp_path / "samples.pt"), tmp_path / "samples.pt"
    none, half, full = method(0.0), method(0.5), method(1.0)
    for epoch, given in ((1, none), (2, half), (3, full), (4, full)):
        assert samples.wants(epoch)
        samples.keep(epoch, given)
    kept = read_samples(path)
    assert {(s.epoch, s.kind, s.draw) for s in kept.shots} == {
        (e, k, d) for e in (1, 2, 3, 4) for k in ("affine", "appearance") for d in (0, 1)
    }
    by = {(s.epoch, s.kind, s.draw): s for s in kept.shots}
    original = planes(samples.patch.image[:, 2:-2, 2:-2, 2:-2][0], samples.patch.cuts)
    for kind in ("affine", "appearance"):
        for k in range(3):
            assert torch.allclose(by[1, kind, 0].image[k], original[k], atol=2e-3)  # strength 0: the identity
            assert torch.equal(by[3, kind, 0].image[k], by[4, kind, 0].image[k])  # the same random numbers
        change = [float((by[e, kind, 0].image[0] - original[0]).abs().mean()) for e in (2, 3)]
        assert 0.01 < change[0] < change[1]
    label = planes(samples.patch.foreground, samples.patch.cuts)
    assert torch.equal(by[3, "appearance", 1].label[2], label[2])  # appearance leaves the label alone
    assert not torch.equal(by[3, "affine", 1].label[2], label[2])


def test_each_class_of_a_policy_is_drawn_from(tmp_path: Path) -> None:
    policy = TrainingPolicy.preset("none", ("background", "foreground"))
    with torch.no_grad():  # the second class is always mirrored along the first axis
        place = [o.name for c in policy.cascades for o in c.operations].index("flip_d")
        policy.logits[1, place] += 1e4
    samples = begun(tmp_path / "samples.pt")
    samples.keep(1, method(policy=policy))
    by = {(s.kind, s.draw): s for s in read_samples(tmp_path / "samples.pt").shots}
    patch = samples.patch
    inner = patch.image[0, 2:-2, 2:-2, 2:-2]
    assert torch.allclose(by["background", 0].image[2], planes(inner, patch.cuts)[2], atol=2e-3)
    assert torch.allclose(by["foreground", 1].image[2], planes(inner.flip(0), patch.cuts)[2], atol=2e-3)


def test_a_resumed_run_replaces_what_it_does_again_and_a_fresh_one_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "samples.pt"
    samples = begun(path)
    for epoch in (1, 2, 3):
        samples.keep(epoch, method())
    again = Samples(path, 8)
    assert again.begun
    again.offer(batch((True,)))  # has one already
    again.keep(2, method(0.0))
    kept = read_samples(path)
    assert sorted({s.epoch for s in kept.shots}) == [1, 2]
    assert torch.equal(kept.patch.image, samples.patch.image)
    assert not Samples(path, 8, fresh=True).begun
    assert not path.exists()


def test_nothing_of_the_training_is_touched(tmp_path: Path) -> None:
    samples, given = begun(tmp_path / "samples.pt"), method()
    state = torch.get_rng_state()
    modes = [a.training for a in given.augmenters().values()]
    samples.keep(1, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert [a.training for a in given.augmenters().values()] == modes
    assert all(p.grad is None for a in given.augmenters().values() for p in a.parameters())


def test_nothing_is_written_where_nothing_is_learned(tmp_path: Path) -> None:
    samples = begun(tmp_path / "samples.pt")
    empty = method(policy=TrainingPolicy.preset("none"))
    empty.policies = dict
    assert samples.keep(1, empty) == ()
    assert not (tmp_path / "samples.pt").exists()
    whole = Batch(torch.zeros(2, 1, 8, 8, 8), torch.eye(2))  # a classification
    assert not Samples(tmp_path / "samples.pt", 3).offer(whole)


def test_regions_keep_their_overlap(tmp_path: Path) -> None:
    given = batch()
    label = given.label[:, 1:].clone()
    label[:, 0] = label.amax(1)  # the first region holds the second
    samples = Samples(tmp_path / "samples.pt", 3, structures=("whole", "core"), regions=True)
    samples.offer(Batch(given.image, label, margin=given.margin))
    samples.keep(1, method(0.0))
    kept = read_samples(tmp_path / "samples.pt")
    assert torch.equal(kept.patch.label, label[1])
    assert torch.equal(kept.shots[0].label[0], planes(kept.patch.foreground, kept.patch.cuts)[0])


def test_of_many_structures_the_largest_eight_are_kept(tmp_path: Path) -> None:
    label = torch.zeros(1, 13, 12, 12, 13)
    for k in range(1, 13):
        label[0, k, :k, :, k] = 1
    label[:, 0] = 1 - label[:, 1:].amax(1)
    samples = Samples(tmp_path / "samples.pt", 1)
    samples.offer(Batch(torch.rand(1, 1, 12, 12, 13), label))
    samples.keep(1, method(0.0))
    kept = read_samples(tmp_path / "samples.pt").patch
    assert kept.label.shape == label.shape[1:]
    assert [k for k in range(1, 13) if kept.label[k].any()] == list(range(5, 13))
    assert torch.equal(kept.label.sum(0), torch.ones(12, 12, 13))


def test_large_patches_are_cut_and_slices_of_2d_are_whole(tmp_path: Path) -> None:
    label = torch.zeros(1, 2, 150, 20, 20)
    label[:, 1, 70:80] = 1
    label[:, 0] = 1 - label[:, 1]
    samples = Samples(tmp_path / "large.pt", 1)
    samples.offer(Batch(torch.rand(1, 1, 150, 20, 20), label))
    assert samples.patch.image.shape == (1, 128, 20, 20)
    flat = Samples(tmp_path / "flat.pt", 1)
    flat.offer(Batch(torch.rand(1, 1, 10, 12), torch.eye(2)[torch.ones(10, 12, dtype=torch.long)].movedim(-1, 0)[None]))
    assert [tuple(p.shape) for p in planes(flat.patch.image[0], flat.patch.cuts)] == [(10, 12)]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"samples\.pt: can't be read as samples"):
        read_samples(path)
    torch.save({"format": "other", "version": 1}, path)
    with pytest.raises(CheckpointError, match="holds no samples"):
        read_samples(path)


def test_tensorboard_gets_a_picture_of_each_kind(tmp_path: Path) -> None:
    samples, seen = begun(tmp_path / "samples.pt"), {}
    made = samples.keep(1, method(0.0))
    writer = SimpleNamespace(add_image=lambda name, pixels, epoch: seen.update({(name, epoch): pixels}))
    show(writer, 7, samples.patch, made)
    assert set(seen) == {("samples/affine", 7), ("samples/appearance", 7)}
    pixels = seen["samples/affine", 7]
    assert (pixels.dtype, pixels.shape[0]) == (torch.uint8, 3)
    # three rows (as it was, two draws) of three planes that are to scale: 24 x 20, 12 x 24, 12 x 20 mm
    row = (pixels.shape[1] - 8) // 3
    assert torch.equal(pixels[:, :row], pixels[:, row + 4 : 2 * row + 4])  # at strength 0 nothing has changed
    colours = {tuple(c) for c in pixels.flatten(1).t().tolist()}
    assert {(255, 176, 0), (34, 199, 240)} <= colours  # both structures have their edges
    grey = {c for c in colours if len(set(c)) == 1}
    assert len(grey) > 20


def test_slices_are_drawn_to_scale_with_the_second_axis_upwards() -> None:
    image = torch.zeros(1, 4, 8, 2)
    image[0, :, 7] = 1.0  # bright at the end of the second axis
    label = torch.zeros(2, 4, 8, 2)
    label[0] = 1
    patch = Patch(image, label, (0, 0, 0), (2.0, 1.0, 5.0), "RAS", ("a",), False, (0, 0, 0))
    pixels = montage(patch, ())
    # across the first axis 8 x 10 mm, the second 8 x 10, the third 8 x 8: 160 pixels are 10 mm
    assert pixels.shape == (3, 160, 128 + 4 + 128 + 4 + 128)
    last = pixels[0, :, -128:]
    assert last[2].min() == 255  # the top
    assert last[100].max() == 0


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        check_board()
