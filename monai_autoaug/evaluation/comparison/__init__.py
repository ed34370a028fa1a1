# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Methods against each other and against their baselines, on the same cases: who is better, by how much, how surely."""

from __future__ import annotations

from monai_autoaug.evaluation.comparison.arms import HOSTS, Arm, known_arms
from monai_autoaug.evaluation.comparison.compare import compare
from monai_autoaug.evaluation.comparison.plan import Plan, plan
from monai_autoaug.evaluation.comparison.setting import Setting
from monai_autoaug.evaluation.comparison.summary import Row, Summary, summarise

__all__ = ["HOSTS", "Arm", "Plan", "Row", "Setting", "Summary", "compare", "known_arms", "plan", "summarise"]
