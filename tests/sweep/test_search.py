"""A search over values, and what the trackers show of a sweep: one group, tags, and a run that holds the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_lab.store import folder as store
from tests.conftest import SHORT, cli
from tests.offline_wandb import wandb_records
from tests.sweep.test_sweeps import only_sweep, statuses


@pytest.mark.slow
def test_a_search_goes_on_after_failed_and_infeasible_trials(runs: Path, tmp_path: Path) -> None:
    command = [
        "--multirun",
        f"runs_dir={runs}",
        *SHORT,
        "eval.problems=16",
        "grpo.max_steps=3",
        "objective=reward_last",
    ]
    command += ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=4", "tracker=wandb"]
    command += ["hydra.sweeper.n_trials=4"]  # the first two are the same
    command += ["rewards=[format]", "rewards.fate._target_=tests.sweep.fates.fate", f"rewards.fate.marks={tmp_path}"]
    command += ["rewards.fate.how=choice(ok,raise_once)", "vllm.tp=choice(1,2)"]
    worst = cli(*command)
    assert (worst.returncode, runs.exists()) == (2, False)
    assert "objective=reward_last is to be maximized; hydra.sweeper.direction=maximize" in worst.stderr
    begun = cli(*command, "hydra.sweeper.direction=maximize", "dry_run=true")
    assert (begun.returncode, runs.exists()) == (0, False)
    assert begun.stdout.endswith("  then others, by what these measure\n")
    assert "value" not in begun.stdout + begun.stderr
    ended = cli(*command, "hydra.sweeper.direction=maximize", timeout_s=560)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    sweep = only_sweep(runs)
    assert set(statuses(sweep).values()) == {("failed", "bad_reward"), ("finished", None), ("infeasible", "infeasible")}
    best = store.read_json(sweep.run("rewards.fate.how=ok,vllm.tp=1").result)["metrics"]["reward_last"]["value"]
    told = (sweep.folder / "optimization_results.yaml").read_text()
    assert f"best_value: {best}" in told
    assert "rewards.fate.how: ok" in told

    run = sweep.run("rewards.fate.how=ok,vllm.tp=1")
    records = wandb_records(run.folder, store.read_json(run.env)["run_id"])[0]
    started = next(record["run"] for record in records if record["type"] == "run")
    assert started["run_group"] == sweep.folder.name
    assert {"rewards.fate.how=ok", "vllm.tp=1"} <= set(started["tags"])
    config = started["config"]["update"]
    assert config["overrides"] == {"rewards.fate.how": "ok", "vllm.tp": "1"}

    summaries = wandb_records(sweep.folder, store.read_json(sweep.points)["run_id"])
    summary = next(record["run"] for record in summaries[-1] if record["type"] == "run")
    assert summary["run_group"] == sweep.folder.name
    (table,) = sorted(sweep.folder.glob("wandb/offline-run-*/files/media/table/*.json"))[-1:]
    content = json.loads(table.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert {row["status"] for row in rows} == {"finished", "failed", "infeasible"}
    assert next(row["reward_last"] for row in rows if row["status"] == "finished") == pytest.approx(best)
