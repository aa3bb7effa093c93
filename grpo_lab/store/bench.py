"""From the rounds of a bench to its result.json: per load, medians over the measured rounds with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lab.config.schema import Config
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.loads import Load
from grpo_lab.store import measures
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Failure, Result


def build(run: Run, config: Config, plan: BenchPlan, *, failure: Failure | None, server: Row) -> Result:
    """Sum up a bench that has ended (docs/results.md has the fields). `server`: its `startup_s`, empty without one."""
    rows, outcome = run.rows(), run.read_outcome()
    whole = {
        "kv_cache_tokens": outcome.kv_cache_tokens,
        "startup_s": server.get("startup_s", outcome.startup_s),
    }
    loads: tuple[Row, ...] = tuple(
        {"name": load.name, "load": load.asked(), "metrics": metrics_of(_measured(rows, load), whole)}
        for load in plan.loads
    )
    return Result(
        kind="bench",
        status="failed" if failure else "finished",
        failure=failure,
        model=config.model.name,
        vllm_mode=plan.mode,
        tp=plan.tp,
        dp=plan.dp,
        gpus=plan.gpus,
        seed=config.seed,
        steps=len(rows),
        warmup_steps=config.bench.warmup,
        metrics=loads[0]["metrics"],
        loads=loads,
    )


def _measured(rows: Sequence[Row], load: Load) -> list[Row]:
    return [row for row in rows if row["load"] == load.name and not row["warmup"]]


def metrics_of(rows: Sequence[Row], whole: Row) -> Row:
    """Of the measured rounds of one load; null for what was not measured. `whole`: what all loads share."""
    return measures.content("bench", rows, rows, whole)
