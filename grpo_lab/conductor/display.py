"""What a person sees of a bench: the plan before, a table after."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.store import measures, stats
from grpo_lab.store.estimates import Estimate, estimate
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.measures import Measure
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
    shown = measures.on_terminal("bench")
    rounds = estimate(shown[0].field(result.metrics))
    table = Table(title=f"{result.status}, {_rounds(rounds)}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("load", overflow="fold")
    for measure in shown:
        table.add_column(f"{measure.terminal}, {measure.unit}", justify="right")
    for load in result.loads or ():
        table.add_row(load["name"], *(_cell(measure, load["metrics"]) for measure in shown))
    console.print(table)
    for note in (f"  {stats.WITHIN_A_RUN}", f"  files    {run.folder}", f"  {look}" if look else None):
        if note:
            console.print(note, highlight=False, markup=False, soft_wrap=True)


def _rounds(measured: Estimate | None) -> str:
    """What the cells hold."""
    kind = "range" if measured and measured.ranged else "95% interval"
    return f"median and {kind} of {measured.n if measured else 0} rounds, p99"


def _cell(measure: Measure, metrics: Row) -> str:
    """Median, the interval, and the 99th percentile where there is one, below each other."""
    measured, field = estimate(measure.field(metrics)), measure.field(metrics)
    if measured is None:
        return "not measured"
    high = estimate(field.get("p99"))
    lines = [*measured.text(), f"p99 {high.text()[0]}" if high else ""]
    return "\n".join(line for line in lines if line)
