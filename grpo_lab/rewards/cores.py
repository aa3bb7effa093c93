"""How many cores this process may use: its affinity, the control group's quota, and the ranks that share the host."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores(cgroups: Path = CGROUPS) -> int:
    """At least 1. Ranks of one host share its cores."""
    allowed = min([len(os.sched_getaffinity(0)), *_quotas(cgroups)])
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _quotas(cgroups: Path) -> Iterator[int]:
    """Of version 2 (`cpu.max`: quota and period) and of version 1, in cores, rounded up; none where unlimited."""
    v1 = cgroups / "cpu"
    for files in ([cgroups / "cpu.max"], [v1 / "cpu.cfs_quota_us", v1 / "cpu.cfs_period_us"]):
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            if quota.isdigit():
                yield math.ceil(int(quota) / int(period))
