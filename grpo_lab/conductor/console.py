"""What a person sees: the plan before, one line that moves while it runs, the numbers after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from grpo_lab.config.schema import AlgorithmConfig, Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.algorithms import algorithm
from grpo_lab.planner.train import Plan
from grpo_lab.store import folder as store
from grpo_lab.store import health, records, stats
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.measures import PHASES
from grpo_lab.store.records import Failure, Result

PLAIN_EVERY_S = 10.0
"""Without a terminal: at most one line in so many seconds."""
RECENT = 20
"""Steps that the time left is reckoned from."""
BAR = 40
SAMPLE = 200
"""Characters of a completion that a warning shows."""


def banner(console: Console, config: Config, plan: Plan, machine: Machine, folder: Path) -> None:
    rewards = " + ".join(f"{reward.get('weight', 1.0):g} {name}" for name, reward in config.rewards.items())
    console.print(f"[bold]{escape(str(folder))}[/bold]  seed {config.seed}", highlight=False)
    lines = [
        ("model", f"{config.model.name} ({plan.model_path})"),
        ("data", str(config.data["_target_"])),
        ("rewards", rewards),
        *([("algorithm", name)] if (name := algorithm(config.algorithm.kind).banner(config.grpo)) else []),
        *[(role, what) for role, what in roles(plan, machine)],
        ("batch", str(plan.batch)),
    ]
    for name, value in lines:
        console.print(f"  {name:<10}{value}", highlight=False, markup=False, soft_wrap=True)


def roles(plan: Plan, machine: Machine) -> list[tuple[str, str]]:
    """Who does what, on which GPUs."""
    name = machine.gpus[0].name if machine.gpus else ""
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    trainer = f"GPU {','.join(plan.trainer_gpus)} ({name})" if plan.trainer_gpus else f"CPU, {cores}"
    many = f", {plan.batch.processes} processes" if plan.batch.processes > 1 else ""
    server = f"GPU {','.join(plan.server_gpus)}" if plan.server_gpus else "CPU" if plan.server else "running already"
    generation = plan.generation.where(plan.tp, plan.dp, server)
    return [("trainer", trainer + many), ("generate", generation)]


class Progress:
    """One line about a run, rewritten in place on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console, run: Run) -> None:
        self.console, self.run = console, run
        self._live = Live("", console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._printed, self._printed_at = "", float("-inf")
        self._rows: list[Row] = []
        self._offset = 0
        self._judged = 0
        self._warned: set[str] = set()
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def rows(self) -> Sequence[Row]:
        """All steps recorded so far."""
        fresh, self._offset = store.read_new_rows(self.run.metrics, self._offset)
        self._rows += fresh
        return self._rows

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def show(self, line: str) -> None:
        """The line of the moment."""
        if self._live:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
        elif line != self._printed and time.monotonic() - self._printed_at >= PLAIN_EVERY_S:
            self._printed, self._printed_at = line, time.monotonic()
            self.say(line)

    def update(self) -> None:
        """Show where the worker is."""
        progress = records.read(self.run.progress, records.Progress) or records.Progress("loading")
        waited = time.monotonic() - self._started
        if progress.phase != "training":
            count = f" {progress.done}/{progress.total} problems" if progress.total else ""
            self.show(f"{progress.phase}{count} | {clock(waited)}")
            return
        rows = self.rows
        self._warn(rows)
        self.show(step_line(rows, progress.total) if rows else f"training: first step | {clock(waited)}")

    def _warn(self, rows: Sequence[Row]) -> None:
        """Say each sign of ill health once, when it first shows."""
        for end in range(self._judged + 1, len(rows) + 1):
            for name, words in health.shown_by(rows[max(0, end - health.STREAK) : end]):
                if name not in self._warned:
                    self._warned.add(name)
                    self.say(f"warning: {words}")
        self._judged = len(rows)


def step_line(rows: Sequence[Row], total: int) -> str:
    """Step, reward, tokens a second, time left."""
    row = rows[-1]
    pace = statistics.fmean(row["step_time_s"] for row in rows[-RECENT:])
    rewards = [row["reward"] for row in rows[-RECENT:] if row.get("reward") is not None]
    parts = [f"step {row['step']}/{total}"]
    if rewards:
        parts.append(f"reward {statistics.fmean(rewards):.3f}")
    if row.get("generated_tokens_per_s"):
        parts.append(f"{row['generated_tokens_per_s']:,.0f} tokens/s generated")
    parts += [f"{pace:.2f} s a step", f"{clock(pace * (total - row['step']))} left"]
    return " | ".join(parts)


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(console: Console, run: Run, result: Result, look: str | None) -> None:
    """The end of a run: accuracy, times, files."""
    metrics = result.metrics
    trainer = algorithm(result.algorithm or AlgorithmConfig.kind).suffix()
    say = [f"[bold]{result.status}[/bold]  {result.steps} steps{trainer}"]
    if metrics["accuracy_after"]:
        gain = metrics["accuracy_gain"]
        say.append(
            f"  held-out pass@1  {_share(metrics['accuracy_before'])} -> {_share(metrics['accuracy_after'])}"
            f"   gain {_share(gain, sign=True)}   n={metrics['accuracy_after']['n']}"
        )
    elif metrics["accuracy_before"]:
        say.append(
            f"  held-out pass@1  {_share(metrics['accuracy_before'])} before   n={metrics['accuracy_before']['n']}"
        )
    if metrics["step_time_s"]:
        skipped = f"first {result.warmup_steps} left out"
        say.append(f"  step time        {_seconds(metrics['step_time_s'])}, {skipped}")
        say += _bars(metrics["time_s"])
        say.append(f"  generation       {_rate(metrics['generated_tokens_per_s'])} completion tokens/s")
    say += [line for sign in (result.warnings or {}).values() for line in _warning(sign)]
    say.append(f"  files            {run.folder}")
    if run.reward_curve.is_file():
        say.append(f"  picture          {run.reward_curve}")
    if look:
        say.append(f"  {look}")
    for line in say:
        console.print(line, highlight=False, soft_wrap=True)


def failure(console: Console, failure: Failure) -> None:
    console.print(f"[bold red]failed: {failure.class_}[/bold red]", highlight=False)
    console.print(f"  {failure.message}", highlight=False, markup=False, soft_wrap=True)
    if failure.log:
        console.print(f"  log: {failure.log}", highlight=False, markup=False, soft_wrap=True)


def _share(accuracy: Any, *, sign: bool = False) -> str:
    style = "+.3f" if sign else ".3f"
    low, high = accuracy["ci95"]
    return f"{accuracy['value']:{style}} (95% {low:{style}} to {high:{style}})"


def _seconds(timing: Any) -> str:
    return f"{timing['median']:.3f} s{_spread(timing, '.3f')}, median of {timing['n']}"


def _rate(timing: Any) -> str:
    if not timing:
        return "no"
    return f"{timing['median']:,.0f}{_spread(timing, ',.0f')}"


def _spread(timing: Any, style: str) -> str:
    spread = stats.spread(timing)
    return f" ({spread[0]} {spread[1][0]:{style}} to {spread[1][1]:{style}})" if spread else ""


def _warning(sign: Mapping[str, Any]) -> list[str]:
    """What a sign says, and the start of the completion that shows it."""
    lines = [f"  warning          {escape(sign['message'])}"]
    if sample := sign.get("sample"):
        shown = sample if len(sample) <= SAMPLE else f"{sample[:SAMPLE]}..."
        lines.append(f"    for example    {escape(repr(shown))}")
    return lines


def _bars(times: Mapping[str, Any]) -> list[str]:
    """The phases of the median step as bars."""
    medians = {phase: times[phase]["median"] for phase in PHASES if times.get(phase)}
    whole = sum(medians.values()) or 1.0
    return [
        f"    {phase:<9}{seconds:8.3f} s {seconds / whole:4.0%} {'█' * round(BAR * seconds / whole)}"
        for phase, seconds in medians.items()
        if seconds > 0
    ]
