"""The work of a harness run as a plain TRL script: what a user would write without the harness.

Reads the arguments that a run passed to GRPOConfig from its plan.json, so that both do the same work; the rest is TRL.

    python benchmarks/plain_trl.py runs/<run> --steps 10 --out times.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_lab import data, rewards
from grpo_lab.planner.train import Plan
from grpo_lab.store import records


class StepTimes(TrainerCallback):
    """Wall seconds from the end of one step to the end of the next, as a user with a watch would see them."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    plan = records.must_read(asked.run / "plan.json", Plan)
    config = yaml.safe_load((asked.run / "config.yaml").read_text())
    rows = data.arithmetic("train", **{key: value for key, value in config["data"].items() if key != "_target_"})
    arguments = {**plan.trl, "output_dir": str(asked.out.with_suffix(".checkpoints"))}
    times = StepTimes()
    trainer = GRPOTrainer(
        model=plan.model_path,
        args=GRPOConfig(**arguments),
        reward_funcs=[rewards.accuracy, rewards.format],
        train_dataset=rows,
        callbacks=[times],
    )
    trainer.train()
    wall = [later - earlier for earlier, later in zip(times.ends, times.ends[1:], strict=False)]
    trl_own = [row["step_time"] for row in trainer.state.log_history if "step_time" in row]
    asked.out.write_text(json.dumps({"wall_s": wall, "step_time": trl_own}))


if __name__ == "__main__":
    main()
