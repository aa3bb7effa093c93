"""Cores that this process may use."""

from __future__ import annotations

import os
import random

from grpo_lab.rewards.cores import allowed


def usable() -> list[int]:
    """Their numbers. Where a quota allows fewer than the affinity, a random stretch: other containers do the same."""
    shown, most = sorted(os.sched_getaffinity(0)), allowed()
    start = random.SystemRandom().randrange(len(shown)) if most < len(shown) else 0
    return sorted((shown[start:] + shown[:start])[:most])
