"""Run folders as the harness leaves them, with numbers that a test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from grpo_lab.store import folder as store
from grpo_lab.store.folder import Row, Run

ENV = {
    "command": "python -m grpo_lab.train",
    "git_commit": "a" * 40,
    "gpus": ["NVIDIA H200", "NVIDIA H200"],
    **{"torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0", "vllm": "0.31.0"},
}


def timing(median: float, half: float = 0.1, n: int = 8) -> Row:
    return {"median": median, "ci95": [median - half, median + half], "n": n}


def make(
    folder: Path,
    *,
    metrics: Row | None = None,
    failure: Row | None = None,
    env: Row | None = None,
    grpo: Row | None = None,
    rewards: list[float] | None = None,
    **said: Any,
) -> Run:
    """A run of `tiny`, colocate, on two GPUs. `said` replaces fields of result.json, `env` of env.json; `rewards`
    become metrics.jsonl, one step each."""
    run = Run(folder)
    folder.mkdir(parents=True)
    status = failure["class"] if failure and failure["class"] == "infeasible" else "failed" if failure else "finished"
    asked = {"kind": "train", "model": "tiny", "vllm_mode": "colocate", "tp": 1, "dp": 2, "gpus": 2, "seed": 0}
    result = {"status": status, "failure": failure, **asked, "metrics": metrics or {}, **said}
    store.write_json(run.result, result)
    store.write_json(run.env, {**ENV, **(env or {})})
    vllm = {"mode": result["vllm_mode"], "tp": result["tp"], "dp": result["dp"]}
    config = {"model": {"name": result["model"]}, "vllm": vllm, "grpo": grpo or {}, "seed": result["seed"]}
    run.config.write_text(yaml.safe_dump(config))
    for step, reward in enumerate(rewards or [], 1):
        run.append_metrics({"step": step, "loss": 0.1, "reward": reward, "rewards/accuracy/mean": reward / 2})
    return run


def sweep(folder: Path, command: str = "python -m grpo_lab.train --multirun") -> Path:
    folder.mkdir(parents=True)
    store.write_json(store.Sweep(folder).points, {"command": command, "points": []})
    return folder
