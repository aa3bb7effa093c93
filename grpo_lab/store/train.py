"""From what a run left behind to result.json: the numbers that tables are made of."""

from __future__ import annotations

import math
from typing import Any

from grpo_lab.config import model as policy
from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.store import folder as store
from grpo_lab.store import health, stats
from grpo_lab.store.folder import Row, Run

PHASES = ("generate", "sync", "reward", "logprobs", "train", "other")
OBJECTIVES = (
    "accuracy_after",
    "accuracy_gain",
    "reward_last",
    "step_time_s",
    "generated_tokens_per_s",
    "generated_tokens_per_s_per_gpu",
    "requests_per_s",
    "ttft_s",
    "itl_s",
    "tokens_per_s_per_gpu",
    "samples_per_s",
    "mfu",
)
"""Measurements that a sweeper can optimise."""
LOWER_IS_BETTER = ("step_time_s", "ttft_s", "itl_s")
FORWARD_BACKWARD, FORWARD = 6, 2
"""FLOPs a parameter and token: training, and one pass forward (Kaplan et al. 2020, section 2.1)."""


def build(run: Run, config: Config, plan: Plan, *, status: str, failure: Row | None, server: Row) -> Row:
    """The content of result.json (see the README for the fields and their units).

    `server` is what the conductor saw of the vLLM server: `startup_s`, `peak_memory_gib`; empty without one.
    """
    rows, outcome = run.rows(), store.read_json(run.outcome) or {}
    timed = [row for row in rows if row["step"] > config.warmup_steps]
    return {
        "kind": "train",
        "status": status,
        "failure": failure,
        "model": config.model.name,
        "algorithm": config.algorithm.kind,
        "vllm_mode": plan.mode,
        "tp": plan.tp,
        "dp": plan.dp,
        "gpus": plan.gpus,
        "seed": config.seed,
        "steps": len(rows),
        "warmup_steps": config.warmup_steps,
        "data": outcome.get("data"),
        "warnings": health.warnings(rows),
        "metrics": {
            **accuracy(run),
            "reward_last": _reward_last(rows),
            "step_time_s": _timing(timed, "step_time_s"),
            "time_s": {phase: _timing(timed, f"time_s/{phase}") for phase in PHASES},
            "generated_tokens_per_s": _timing(timed, "generated_tokens_per_s"),
            "generated_tokens_per_s_per_gpu": _timing(timed, "generated_tokens_per_s_per_gpu"),
            "tokens_per_s_per_gpu": _timing(timed, "tokens_per_s_per_gpu"),
            "samples_per_s": _timing(timed, "samples_per_s"),
            "mfu": _mfu(timed, config, plan),
            "prompt_tokens": _prompt_tokens(rows, config),
            "logp_difference": _timing(rows, "sampling/sampling_logp_difference/mean"),
            "peak_memory_gib": {"trainer": outcome.get("peak_memory_gib"), "server": server.get("peak_memory_gib")},
            "startup_s": {"trainer": outcome.get("startup_s"), "server": server.get("startup_s")},
        },
    }


def check_objective(name: str) -> None:
    """Raises RequestError for a name that is not one of OBJECTIVES."""
    if name not in OBJECTIVES:
        raise RequestError(f"objective={name}: {nearest(name, OBJECTIVES)}")


def objective(result: Row, name: str) -> float | None:
    """One of OBJECTIVES as a number, median or value; None if it was not measured."""
    found = result.get("metrics", {}).get(name)
    return None if found is None else float(found.get("median", found.get("value")))


def accuracy(run: Run) -> Row:
    """Held-out pass@1 before and after, and the paired gain; null for what was not evaluated."""
    before, after = (store.read_json(run.evaluation(moment)) for moment in ("before", "after"))
    both = [pair for pair in zip(before or (), after or (), strict=False) if None not in pair]
    return {
        "accuracy_before": proportion(before),
        "accuracy_after": proportion(after),
        "accuracy_gain": stats.paired_difference(*zip(*both, strict=True)) if both else None,
    }


def proportion(marks: list[int | None] | None) -> Any:
    """Unreadable gold answers (None) are left out; n says how many problems counted."""
    readable = [mark for mark in marks or () if mark is not None]
    return stats.proportion(readable) if readable else None


def _reward_last(rows: list[Row]) -> Any:
    rewards = [row["reward"] for row in rows if row.get("reward") is not None]
    tenth = rewards[-max(1, len(rewards) // 10) :]
    return {"value": math.fsum(tenth) / len(tenth), "n": len(tenth)} if tenth else None


def _timing(rows: list[Row], key: str) -> Any:
    return stats.timing([row[key] for row in rows if row.get(key) is not None])


def _prompt_tokens(rows: list[Row], config: Config) -> Any:
    """Mean tokens of a prompt: TRL's `num_tokens` grows in each step by those of its prompts and completions. Null
    where the trainer does not count them.
    """
    counted = [row for row in rows if row.get("num_tokens") is not None and "completion_tokens" in row]
    if not counted:
        return None
    completions = len(counted) * int(config.grpo["generation_batch_size"])
    seen = counted[-1]["num_tokens"] - math.fsum(row["completion_tokens"] for row in counted)
    return {"value": seen / completions, "n": completions}


def _mfu(rows: list[Row], config: Config, plan: Plan) -> Any:
    """Model FLOPs utilisation of the whole step: training, log-probabilities and generation of the completion
    tokens over what all GPUs of the run could do; attention and prompts are left out. Null where unknown.
    """
    active = policy.active_parameters(config.model)
    if not plan.peak_flops or not active:
        return None
    passes = FORWARD_BACKWARD + FORWARD + (FORWARD if plan.mode != "off" else 0)
    work = passes * active
    return stats.timing(
        [
            row["completion_tokens"] * work / row["step_time_s"] / plan.peak_flops
            for row in rows
            if "completion_tokens" in row
        ]
    )
