# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Methods against each other and against their baselines, on the same cases: who is better, by how much, how surely."""

from __future__ import annotations

from monai_autoaug.evaluation.comparison.arms import HOSTS, Arm, known_arms
from monai_autoaug.evaluation.comparison.comparing import compare
from monai_autoaug.evaluation.comparison.planning import Plan, plan
from monai_autoaug.evaluation.comparison.rows import Row, Summary
from monai_autoaug.evaluation.comparison.setting import Setting
from monai_autoaug.evaluation.comparison.summary import summarise

__all__ = ["HOSTS", "Arm", "Plan", "Row", "Setting", "Summary", "compare", "known_arms", "plan", "summarise"]
