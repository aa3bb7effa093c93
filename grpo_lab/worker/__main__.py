"""`python -m grpo_lab.worker <run folder>`: train what the folder's config and plan say."""

from __future__ import annotations

import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before torch: start-up time is what a user waits

if __name__ == "__main__":
    from grpo_lab.planner.train import Plan
    from grpo_lab.store import records
    from grpo_lab.store.folder import Run
    from grpo_lab.worker.process import uncollected, without_vllm

    folder = Path(sys.argv[1])
    with uncollected():
        if not records.must_read(Run(folder).plan, Plan).generation.engines:
            without_vllm()
        from grpo_lab.worker.train import train

    train(folder, started=STARTED)
