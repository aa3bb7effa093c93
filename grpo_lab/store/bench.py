"""From the rounds of a bench to its result.json: per load, medians over the measured rounds with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from grpo_lab.config.schema import Config
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.loads import Load
from grpo_lab.store import folder as store
from grpo_lab.store import stats
from grpo_lab.store.folder import Row, Run

RATES = ("generated_tokens_per_s", "generated_tokens_per_s_per_gpu", "requests_per_s", "tokens_per_joule", "round_s")
LATENCIES = ("ttft_s", "itl_s")


def build(run: Run, config: Config, plan: BenchPlan, *, status: str, failure: Row | None, server: Row) -> Row:
    """The content of result.json (docs/bench.md has the fields). `server`: its `startup_s`, empty without one."""
    rows, said = run.rows(), store.read_json(run.outcome) or {}
    whole = {
        "kv_cache_tokens": said.get("kv_cache_tokens"),
        "startup_s": server.get("startup_s", said.get("startup_s")),
    }
    loads = [
        {"name": load.name, "load": load.asked(), "metrics": {**metrics_of(_measured(rows, load)), **whole}}
        for load in plan.loads
    ]
    return {
        "kind": "bench",
        "status": status,
        "failure": failure,
        "model": config.model.name,
        "vllm_mode": plan.mode,
        "tp": plan.tp,
        "dp": plan.dp,
        "gpus": plan.gpus,
        "seed": config.seed,
        "steps": len(rows),
        "warmup_steps": config.bench.warmup,
        "metrics": loads[0]["metrics"],
        "loads": loads,
    }


def _measured(rows: Sequence[Row], load: Load) -> list[Row]:
    return [row for row in rows if row["load"] == load.name and not row["warmup"]]


def metrics_of(rows: Sequence[Row]) -> Row:
    """Of the measured rounds of one load; null for what was not measured."""
    preempted = [row["preemptions"] for row in rows if row["preemptions"] is not None]
    return {
        **{key: stats.timing([row[key] for row in rows if row[key] is not None]) for key in RATES},
        **{key: _latency(rows, key) for key in LATENCIES},
        "preemptions": sum(preempted) if preempted else None,
        "engines": _engines(rows),
        "prefix_cache_hit_share": _median(rows, "prefix_cache_hit_share"),
        "client_share": _median(rows, "client_share"),
        "power_w": _per_gpu(rows, "power_w", statistics.fmean),
        "peak_memory_gib": _per_gpu(rows, "peak_memory_gib", max),
    }


def _latency(rows: Sequence[Row], key: str) -> Any:
    """Median over rounds of each round's median, with its interval, and of each round's 99th percentile."""
    timing = stats.timing([row[key] for row in rows if row[key] is not None])
    return timing and {**timing, "p99": _median(rows, f"{key}_p99")}


def _median(rows: Sequence[Row], key: str) -> float | None:
    found = [row[key] for row in rows if row[key] is not None]
    return statistics.median(found) if found else None


def _engines(rows: Sequence[Row]) -> Row:
    """How many engines generated, and how many tokens each did."""
    tokens: dict[str, int] = {}
    for row in rows:
        for name, count in row["engines"].items():
            tokens[name] = tokens.get(name, 0) + count
    return {"n": sum(count > 0 for count in tokens.values()), "generated_tokens": tokens}


def _per_gpu(rows: Sequence[Row], key: str, summed: Any) -> dict[str, float] | None:
    found = [row[key] for row in rows if row[key]]
    return {name: round(summed([row[name] for row in found]), 2) for name in found[0]} if found else None
