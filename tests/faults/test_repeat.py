"""One seed, one run: losses, rewards and completions to the last bit, with kills and neighbours in between."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import SHORT, cli

LEARNING = [*SHORT, "eval.enabled=false", "grpo.learning_rate=1e-4", "grpo.generation_batch_size=16"]
CLOCKS = ("time", "tokens_per_s", "samples_per_s", "pause_s", "peak_memory", "epoch")
"""Parts of the names of columns that say how long a step took, on whatever machine; all others are to be equal."""


def everything(run: Run) -> dict[str, Any]:
    """What the steps computed: every number of every step, every completion, the weights after the last one."""
    rows = [{key: value for key, value in row.items() if not any(c in key for c in CLOCKS)} for row in run.rows()]
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    return {
        "rows": json.dumps(rows),
        "completions": json.dumps(pyarrow.parquet.read_table(run.completions).to_pylist()),
        "weights": hashlib.sha256((checkpoint[0] / "model.safetensors").read_bytes()).hexdigest(),
    }


def completed(run: Run, *asked: str) -> dict[str, Any]:
    ended = cli(*asked, f"runs_dir={run.folder.parent}", f"name={run.folder.name}", timeout_s=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return everything(run)


def killed_and_resumed(run: Run, *asked: str, step: int) -> dict[str, Any]:
    """The same with a SIGKILL of the trainer in a step."""
    ended = cli(*asked, f"runs_dir={run.folder.parent}", f"name={run.folder.name}", timeout_s=600)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert store.read_json(run.result)["failure"]["class"] == "killed"
    left = run.last_checkpoint()
    assert left is not None
    assert left[1] < step
    return completed(run, *asked, "resume=true")


def killing(step: int, done: Path) -> list[str]:
    given = {"_target_": "tests.faults.rewards.killing", "step": step, "done": done}
    return ["rewards=[accuracy]", *(f"rewards.mine.{key}={value}" for key, value in given.items())]


def test_killed_and_resumed_equals_straight_where_a_batch_has_several_steps(runs: Path) -> None:
    """grpo.num_iterations=2: checkpoints are asked for at 1, 2, 3, ... and fall on 2, 4 and 6, the ends of the blocks,
    from where a resumed run draws what the straight one drew. `done` exists for the straight run: nothing kills it."""
    several = [*LEARNING, "grpo.num_iterations=2", "grpo.max_steps=6", "grpo.save_steps=1"]
    mark = runs.parent / "done"
    asked = [*several, *killing(5, mark)]
    broken = killed_and_resumed(Run(runs / "broken"), *asked, step=5)
    assert mark.exists()
    straight = completed(Run(runs / "straight"), *asked)
    assert sorted(Run(runs / "straight").whole_checkpoints()) == [2, 4, 6]
    assert broken == straight


@pytest.mark.nightly
def test_points_of_a_sweep_equal_runs_alone(runs: Path) -> None:
    """Two side by side with a core each, two alone with both cores; other seeds are other runs."""
    asked = [*LEARNING, "grpo.max_steps=3", "grpo.save_steps=3"]
    side = cli("--multirun", *asked, f"runs_dir={runs}", "seed=1,2", "launcher.max_parallel=2", timeout_s=600)
    assert side.returncode == 0, side.stdout + side.stderr
    (sweep,) = runs.iterdir()
    points = {seed: everything(Run(sweep / f"seed={seed}")) for seed in (1, 2)}
    alone = completed(Run(runs / "alone"), *asked, "seed=1")
    assert points[1] == alone
    assert points[1]["completions"] != points[2]["completions"]
    threads = [store.read_json(run.plan)["trainer"][0]["env"]["OMP_NUM_THREADS"] for run in pair(sweep, runs)]
    assert threads == ["1", str(len(os.sched_getaffinity(0)))], "with other numbers of threads"


def pair(sweep: Path, runs: Path) -> tuple[Run, Run]:
    return Run(sweep / "seed=1"), Run(runs / "alone")


@pytest.mark.nightly
def test_any_number_of_parallel_jobs(runs: Path) -> None:
    asked = ["--multirun", *LEARNING, "grpo.max_steps=6", "grpo.save_steps=6", "seed=1,2,3"]
    found = []
    for most in (1, 2):
        where = runs / str(most)
        ended = cli(*asked, f"runs_dir={where}", f"launcher.max_parallel={most}", timeout_s=600)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        (sweep,) = where.iterdir()
        found.append([everything(Run(sweep / f"seed={seed}")) for seed in (1, 2, 3)])
    assert found[0] == found[1]
    assert len({point["weights"] for point in found[0]}) == 3


@pytest.mark.nightly
@pytest.mark.vllm
def test_killed_and_resumed_equals_straight_with_vllm_in_the_trainer(runs: Path) -> None:
    asked = [*LEARNING, "vllm=colocate", "grpo.save_steps=2", *killing(4, runs.parent / "done")]
    broken = killed_and_resumed(Run(runs / "broken"), *asked, step=4)
    straight = completed(Run(runs / "straight"), *asked)
    other = completed(Run(runs / "other"), *asked, "seed=1")
    assert broken == straight
    assert other["completions"] != straight["completions"]
