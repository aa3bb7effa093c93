"""How many cores this process may use: its affinity, a container's quota, and the ranks that share the host."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self")


def cores() -> int:
    """At least 1. Ranks of one host share its cores."""
    return max(1, allowed() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def allowed() -> int:
    """Cores of the affinity, or as many as the quota pays for, rounded up."""
    limit = quota()
    shown = len(os.sched_getaffinity(0))
    return shown if limit is None else min(shown, math.ceil(limit))


def quota(proc: Path = PROC) -> float | None:
    """CPUs' worth of time that the control groups of a process may use, the least of all above; None: no limit."""
    limits = [limit for group in _groups(proc) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def _groups(proc: Path) -> Iterator[Path]:
    """Folders of the process's own control groups and of those above, in every hierarchy that can limit CPU time."""
    lines = [line.split(":", 2) for line in _text(proc / "cgroup").splitlines()]
    own = {name: path for _, controllers, path in lines for name in controllers.split(",")}  # version 2 has no name
    for line in _text(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, options = after.split()[0], after.split()[2].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options):
            path = own.get("" if kind == "cgroup2" else "cpu", "/")
            # A container sees its own part alone, at the mount point, though its path may count from the host's root.
            below = path.removeprefix(root.rstrip("/")).strip("/") if path.startswith(root) else ""
            group = Path(point, below)
            yield from (group, *(parent for parent in group.parents if parent.is_relative_to(point)))


def _limit(group: Path) -> float | None:
    """Of cpu.max (version 2), or of cpu.cfs_quota_us and cpu.cfs_period_us (version 1)."""
    words = [
        word for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us") for word in _text(group / name).split()
    ]
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _text(file: Path) -> str:
    """Nothing of a file that is not there."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
