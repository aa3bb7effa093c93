"""What is a bench's own: its defaults, its plan and checks, the banner, the table at the end."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor.run import RunJob
from grpo_lab.config import compose as configuration
from grpo_lab.config.schema import Config, LauncherConfig
from grpo_lab.machine.gpus import Machine, read_machine
from grpo_lab.planner.bench import BenchPlan, make_plan
from grpo_lab.planner.modes import mode
from grpo_lab.planner.parts import Ports
from grpo_lab.predictor.check import advice_bench, check_bench
from grpo_lab.store import bench as summing
from grpo_lab.store import measures, stats
from grpo_lab.store.estimates import estimate
from grpo_lab.store.records import Failure, Result

DEFAULTS = Config(
    kind="bench",
    objective="generated_tokens_per_s_per_gpu",
    launcher=LauncherConfig(exclusive=True),
)


class Bench(RunJob[BenchPlan]):
    kind = "bench"

    def make_plan(self, ports: Ports) -> BenchPlan:
        return make_plan(self.config, self.machine, folder=self.run.folder, ports=ports)

    def default_name(self) -> str:
        config, vllm = self.config, self.config.vllm
        layout = mode(vllm.mode).suffix(vllm.tp, vllm.dp)
        return f"bench-{config.model.name}-{layout}-{configuration.identity(config)}"

    def check(self) -> tuple[str, ...]:
        warnings = check_bench(self.config, self.plan, self.machine)
        return (*super().check(), *warnings)

    def banner(self) -> list[tuple[str, str]]:
        config, loads = self.config, self.plan.loads
        alone = "one point of a sweep at a time" if config.launcher.exclusive else "points share this machine"
        return [
            ("model", f"{config.model.name} ({self.plan.model_path})"),
            ("generate", generation(self.plan, self.machine)),
            *[(f"load {load.name}" if len(loads) > 1 else "load", str(load)) for load in loads],
            ("rounds", f"{config.bench.warmup} left out, {config.bench.repeats} measured"),
            ("launcher", f"exclusive: {alone}" if config.launcher.exclusive else alone),
        ]

    def where_stopped(self) -> str:
        return f"after {len(self.run.rows())} rounds; the same command measures again"

    def advice(self) -> str:
        return advice_bench(self.config, self.plan, read_machine(self.config.gpus))

    def result(self, failure: Failure | None) -> Result:
        return summing.build(self.run, self.config, self.plan, failure=failure, server=self.server_seen)

    def show(self, console: Console, end: Result) -> None:
        console.print(table(end))
        terminal.lines(console, [f"  {stats.WITHIN_A_RUN}"])
        terminal.files(console, self.run)


JOB = Bench


def generation(plan: BenchPlan, machine: Machine) -> str:
    """Who generates, on which GPUs."""
    name = f" ({machine.gpus[0].name})" if plan.gpus else ""
    where = f"GPU {','.join(plan.used)}{name}" if plan.gpus else f"CPU, {machine.cores} cores"
    place = f"running already at {plan.url}" if plan.url and not plan.server else where
    return plan.generation.bench_where(plan.tp, plan.dp, plan.devices, place)


def table(result: Result) -> Table:
    """Speeds and latencies of each load."""
    shown = measures.on_terminal("bench")
    rounds = estimate(shown[0].field(result.metrics))
    kind = "range" if rounds and rounds.ranged else "95% interval"
    title = f"{result.status}, median and {kind} of {rounds.n if rounds else 0} rounds, p99"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("load", overflow="fold")
    for measure in shown:
        table.add_column(f"{measure.terminal}, {measure.unit}", justify="right")
    for load in result.loads or ():
        table.add_row(load["name"], *(_cell(measure.field(load["metrics"])) for measure in shown))
    return table


def _cell(field: Any) -> str:
    """Median, interval, and the 99th percentile where there is one, below each other."""
    measured = estimate(field)
    if measured is None:
        return "not measured"
    high = estimate(field.get("p99"))
    return "\n".join(line for line in (*measured.text(), f"p99 {high.text()[0]}" if high else "") if line)
