"""`python -m grpo_lab.worker.bench <run folder>`: measure what the folder's config and plan say."""

from __future__ import annotations

import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before torch: start-up time is what a user waits

if __name__ == "__main__":
    from grpo_lab.worker.process import uncollected

    with uncollected():
        from grpo_lab.worker.bench.course import bench

    bench(Path(sys.argv[1]), started=STARTED)
