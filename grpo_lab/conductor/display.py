"""What a person sees of a bench: the plan before, a table after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.store import stats
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Result


def banner(console: Console, config: Config, plan: BenchPlan, machine: Machine, folder: Path) -> None:
    name = f" ({machine.gpus[0].name})" if plan.gpus else ""
    where = f"GPU {','.join(plan.used)}{name}" if plan.gpus else f"CPU, {machine.cores} cores"
    place = f"running already at {plan.url}" if plan.url and not plan.server else where
    generation = plan.generation.bench_where(plan.tp, plan.dp, plan.devices, place)
    alone = "exclusive: one point of a sweep at a time" if config.launcher.exclusive else "points share this machine"
    rounds = f"{config.bench.warmup} left out, {config.bench.repeats} measured"
    console.print(f"[bold]{folder}[/bold]  seed {config.seed}", highlight=False, soft_wrap=True)
    lines = [
        ("model", f"{config.model.name} ({plan.model_path})"),
        ("generate", generation),
        *[(f"load {load.name}" if len(plan.loads) > 1 else "load", str(load)) for load in plan.loads],
        ("rounds", rounds),
        ("launcher", alone),
    ]
    for key, value in lines:
        console.print(f"  {key:<9}{'' if len(key) < 9 else ' '}{value}", highlight=False, markup=False, soft_wrap=True)
    for note in plan.notes:
        console.print(f"  {'note':<9}{note}", highlight=False, markup=False, soft_wrap=True)


def summary(console: Console, run: Run, result: Result, look: str | None) -> None:
    """The end of a bench: speeds, latencies, files."""
    table = Table(title=f"{result.status}, median of {_rounds(result)} rounds", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("load", overflow="fold")
    for column in ("tokens/s", _interval(result), "per GPU", "TTFT s, p99", "ITL ms, p99"):
        table.add_column(column, justify="right", no_wrap=True)
    for load in result.loads or ():
        table.add_row(load["name"], *_cells(load["metrics"]))
    console.print(table)
    console.print(f"  {stats.WITHIN_A_RUN}", highlight=False, soft_wrap=True)
    for note in (f"  files    {run.folder}", f"  {look}" if look else None):
        if note:
            console.print(note, highlight=False, markup=False, soft_wrap=True)


def _interval(result: Result) -> str:
    """Heading of the column beside the speeds."""
    return "95%" if _rounds(result) >= stats.LEAST else "range"


def _rounds(result: Result) -> int:
    speed = result.metrics["generated_tokens_per_s"]
    return speed["n"] if speed else 0


def _cells(metrics: Row) -> list[str]:
    speed = metrics["generated_tokens_per_s"]
    if not speed:
        return ["not measured", "", "", "", ""]
    spread = stats.spread(speed)
    interval = "{:,.0f} to {:,.0f}".format(*spread[1]) if spread else ""
    each = metrics["generated_tokens_per_s_per_gpu"]["median"]
    waits = [_latency(metrics["ttft_s"], 1, 3), _latency(metrics["itl_s"], 1000, 2)]
    return [f"{speed['median']:,.0f}", interval, f"{each:,.0f}", *waits]


def _latency(found: Any, scale: int, digits: int) -> str:
    if not found:
        return "not measured"
    return f"{found['median'] * scale:.{digits}f}, {found['p99'] * scale:.{digits}f}"
