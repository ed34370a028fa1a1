# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""All of a comparison: train what is left, and say what is known."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from monai_autoaug.engines.claims import check_writable
from monai_autoaug.engines.options import TrainOptions
from monai_autoaug.engines.progress import Listener, Progress, unheard
from monai_autoaug.engines.rehearsal import rehearse
from monai_autoaug.engines.volumes import sound
from monai_autoaug.errors import AutoAugError, ConfigError
from monai_autoaug.evaluation.comparison.claims import Claim, holder
from monai_autoaug.evaluation.comparison.planning import Plan
from monai_autoaug.evaluation.comparison.scheduling import POLL, Execute, in_a_process, run_cells
from monai_autoaug.evaluation.comparison.summary import Summary, summarise
from monai_autoaug.evaluation.comparison.working import Place

if TYPE_CHECKING:
    from monai_autoaug.nnunet.experiment import Experiment

__all__ = ["check_arms", "compare", "prepare_nnunet"]


def compare(
    plan: Plan,
    place: Place,
    *,
    execute: Execute | None = None,
    begun: Callable[[], object] = lambda: None,
    wait: bool = True,
    listener: Listener = unheard,
) -> tuple[Summary, dict[str, str]]:
    """Do the cells of a comparison that are left, and sum up.

    It may be called again, by several processes at once, and with more arms, seeds or numbers of cases: what is done
    stays. ``monai-autoaug compare`` also writes tables and a page.

    Args:
        plan: what is compared, see `plan`.
        place: where this process works.
        execute: does a cell; None: a process of its own.
        begun: called once the folder is that of this comparison, before anything is trained.
        wait: for cells that others work on.
        listener: hears where the comparison is.

    Returns:
        What is known, and the name of each cell that could not be done -> why.

    Raises:
        ConfigError: an option can't work, or the folder holds a comparison of another setting; nothing was trained.
        DataError: the data set can't be used.
    """
    check_writable("--output", plan.folder)
    plan.check()
    check_arms(plan)
    by_name = {case.name: case for case in plan.datalist.training}
    sound(replace(plan.datalist, training=tuple(by_name[n] for n in plan.parts.test), test=(), unlabelled=()),
          listener=listener)  # fmt: skip
    plan.begin()
    begun()
    if plan.setting.host == "nnunet" and execute is None:
        prepare_nnunet(plan, place, listener)
    do = execute or in_a_process(place)
    failed = run_cells(plan.cells(), plan.place, do, listener=listener, wait=wait)
    if plan.equal_time:
        more = plan.equal_time_cells()
        failed |= run_cells(more, plan.place, do, listener=listener, wait=wait)
    return summarise(plan), failed


def check_arms(plan: Plan) -> None:
    """Try every arm's options in miniature, so that what can't work is refused before hours of training.

    Raises:
        ConfigError: an option of an arm can't work; the message names the arm.
    """
    for arm in plan.arms:
        cell = plan.cell(arm, plan.counts[0], plan.seeds[0])
        options = cell.config["options"]
        try:
            if plan.setting.host == "monai":
                given = TrainOptions(
                    data=plan.datalist.folder, output=plan.folder, method=arm.method,
                    method_options=arm.method_options, **options,
                )  # fmt: skip
                rehearse(given, plan.datalist)
            else:
                _rehearse_nnunet(arm.method, arm.method_options, options)
        except (AutoAugError, TypeError) as error:
            raise ConfigError(f"arm {arm.name!r}: {error}") from error
        if arm.learns_from_meta and min(plan.counts) < 2:
            raise ConfigError(
                f"arm {arm.name!r} sets some of its training cases apart to learn from, which can't be done with"
                " 1 (--cases)"
            )


def _rehearse_nnunet(method: str, method_options: object, options: dict[str, object]) -> None:
    from monai_autoaug.evaluation.comparison.nnunet_work import PLAN_OPTIONS
    from monai_autoaug.nnunet import rehearsal
    from monai_autoaug.nnunet.options import Options

    size = options.get("patch_size")
    if size and not options.get("features"):
        raise ConfigError("patch_size makes a small network of its own, which needs features: channels of each stage")
    kept = {name: value for name, value in options.items() if name not in PLAN_OPTIONS}
    given = Options.from_mapping(kept | {"method": method, "method_options": method_options})
    if size and given.features is not None and len(given.features) < 2:
        raise ConfigError(f"features are the channels of at least 2 stages, got {list(given.features)}")
    rehearsal.rehearse(given)


def prepare_nnunet(plan: Plan, place: Place, listener: Listener = unheard) -> None:
    """Let nnU-Net plan and preprocess the data set, unless that is done; others wait meanwhile.

    Args:
        plan: of the comparison.
        place: where this process works.
        listener: hears of it.

    Raises:
        AutoAugError: nnU-Net can't.
    """
    from monai_autoaug.evaluation.comparison.nnunet_work import configuration_of, small_of
    from monai_autoaug.nnunet.experiment import Experiment

    experiment = Experiment(plan.folder / "nnunet", "compare")
    configuration = configuration_of(plan.setting.options)
    further = experiment.unlabelled(configuration, plan.unlabelled_names) if plan.unlabelled_needed() else None

    def ready() -> bool:
        return experiment.prepared and (further is None or further.is_dir())

    experiment.folder.mkdir(parents=True, exist_ok=True)
    while not ready():
        stop = threading.Event()
        claim = Claim.take(experiment.folder, done=ready, lost=stop.set)
        if claim is None:
            who = holder(experiment.folder)
            listener(Progress("planning", 0, 1, note=None if who is None else f"{who} prepares the data for nnU-Net"))
            time.sleep(POLL)
            continue
        try:
            listener(Progress("planning", 0, 1, note="nnU-Net plans and preprocesses"))
            _prepare(plan, experiment, configuration, small_of(plan.setting.options), place.workers, stop)
            experiment.tidy()
        except (AutoAugError, OSError):
            if not claim.is_lost and not ready():  # else another process has made it meanwhile, or does
                raise
        finally:
            claim.release(all_of_them=ready())
    listener(Progress("planning", 1, 1))


def _prepare(
    plan: Plan, experiment: Experiment, configuration: str, small: dict[str, object] | None, workers: int | None,
    stop: threading.Event,
) -> None:  # fmt: skip
    processes = max(1, min(8, os.cpu_count() or 1) if workers is None else workers)
    names = {*plan.parts.pool, *plan.parts.validation}
    cases = [case for case in plan.datalist.training if case.name in names]
    if not experiment.prepared:
        planned = str(plan.setting.options.get("configuration", "3d_fullres"))
        experiment.prepare(plan.datalist, cases, configuration=planned, small=small, processes=processes, stop=stop)
    if plan.unlabelled_needed():
        channels = len(plan.datalist.channels)
        experiment.prepare_unlabelled(plan.unlabelled, channels, configuration, plan.unlabelled_names, stop=stop)
