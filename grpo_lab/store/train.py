"""From what a run left behind to result.json: the numbers that tables are made of."""

from __future__ import annotations

import math
from typing import Any

from grpo_lab.config import model as policy
from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.rewards.held_out import rule_text
from grpo_lab.store import folder as store
from grpo_lab.store import health, measures, stats
from grpo_lab.store.estimates import estimate
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Failure, Result

FORWARD_BACKWARD, FORWARD = 6, 2
"""FLOPs a parameter and token: training, and one pass forward (Kaplan et al. 2020, section 2.1)."""


def build(run: Run, config: Config, plan: Plan, *, failure: Failure | None, server: Row) -> Result:
    """Sum up a run that has ended (docs/results.md has the fields of result.json and their units).

    `server` is what the conductor saw of the vLLM server: `startup_s`, `peak_memory_gib`; empty without one.
    """
    rows, outcome = run.rows(), run.read_outcome()
    timed = [row for row in rows if row["step"] > config.warmup_steps]
    computed = {
        **accuracy(run),
        "mfu": _mfu(timed, config, plan),
        "prompt_tokens": _prompt_tokens(rows, config),
        **{f"{key}.trainer": getattr(outcome, key) for key in ("peak_memory_gib", "startup_s")},
        **{f"{key}.server": server.get(key) for key in ("peak_memory_gib", "startup_s")},
    }
    return Result(
        kind="train",
        status="failed" if failure else "finished",
        failure=failure,
        model=config.model.name,
        algorithm=config.algorithm.kind,
        vllm_mode=plan.mode,
        tp=plan.tp,
        dp=plan.dp,
        gpus=plan.gpus,
        seed=config.seed,
        steps=len(rows),
        warmup_steps=config.warmup_steps,
        data=outcome.data,
        accuracy_rule=rule_text(config.rewards),
        warnings=health.examine(run),
        metrics=measures.content("train", timed, rows, computed),
    )


def is_whole(result: Result | None, config: Config) -> bool:
    """Whether it is of a run that finished, and trained every step that was asked for."""
    if result is None or result.status != "finished":
        return False
    asked = config.grpo.get("max_steps", -1) if config.kind == "train" else -1
    return bool(asked <= 0 or result.steps >= asked)


def check_objective(name: str) -> None:
    """Raises RequestError for a name that is not one of :func:`measures.objectives`."""
    if name not in measures.objectives():
        raise RequestError(f"objective={name}: {nearest(name, list(measures.objectives()))}")


def objective(result: Result, name: str) -> float | None:
    """An objective as a number, median or value; None if it was not measured."""
    measured = estimate(measures.objectives()[name].field(result.metrics))
    return None if measured is None else measured.value


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
    passes = FORWARD_BACKWARD + FORWARD + (FORWARD if plan.generation.engines else 0)
    work = passes * active
    return stats.timing(
        [
            row["completion_tokens"] * work / row["step_time_s"] / plan.peak_flops
            for row in rows
            if "completion_tokens" in row
        ]
    )
