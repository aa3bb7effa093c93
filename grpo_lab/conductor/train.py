"""What is training's own: its plan and checks, the banner, the pictures and numbers at the end, publishing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor import models, preview, publishing, rehearsal, samples
from grpo_lab.conductor.adornment import adorn
from grpo_lab.conductor.job import full_disk
from grpo_lab.conductor.preflight import check_data, check_targets
from grpo_lab.conductor.run import RunJob, objective
from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RunFailed
from grpo_lab.config.schema import AlgorithmConfig, Config
from grpo_lab.machine.disk import DiskFull
from grpo_lab.machine.gpus import Machine, read_machine
from grpo_lab.planner.algorithms import algorithm
from grpo_lab.planner.checks.combinations import unresumable
from grpo_lab.planner.modes import mode
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import Plan, make_plan
from grpo_lab.predictor.check import advice
from grpo_lab.predictor.check import check as check_fit
from grpo_lab.predictor.choice import settled
from grpo_lab.predictor.filling import Filled, filled
from grpo_lab.store import completions, measures
from grpo_lab.store import picture as curve
from grpo_lab.store import train as results
from grpo_lab.store.estimates import Estimate, estimate
from grpo_lab.store.measures import PHASES
from grpo_lab.store.records import Failure, Result

BAR = 40
SAMPLE = 200
"""Characters of a completion that a warning shows."""


class Train(RunJob[Plan]):
    kind = "train"
    filled: Filled
    """The config as it is planned; `self.config` is what was asked."""

    def choose(self, console: Console, *, on_paper: bool) -> None:
        say = functools.partial(terminal.note, console)
        trial = None if on_paper else functools.partial(attempt, console)
        self.config = settled(self.config, self.machine, say=say, trial=trial)

    def make_plan(self, ports: Ports) -> Plan:
        self.filled = filled(self.config, self.machine)
        plan = make_plan(self.filled.config, self.machine, folder=self.run.folder, ports=ports)
        return dataclasses.replace(plan, chosen=self.filled.chosen, why=self.filled.why)

    def default_name(self) -> str:
        config, vllm = self.config, self.config.vllm
        data = str(config.data.get("_target_", "")).rpartition(".")[2]
        layout = mode(vllm.mode).suffix(vllm.tp, vllm.dp)
        return f"{config.model.name}-{data}-{layout}-{configuration.identity(config)}"

    def check(self) -> tuple[str, ...]:
        warnings = check_fit(self.filled.config, self.plan, self.machine)
        check_targets(self.config)
        notes = super().check()
        publishing.check(self.config.publish)
        return (*self.filled.notes, *notes, *warnings)

    def check_data(self, console: Console) -> None:
        row = check_data(self.config)
        in_plain_text = isinstance(row["prompt"], str) or models.has_chat_template(self.config.model) is False
        algorithm(self.config.algorithm.kind).check_prompts(self.config, in_plain_text=in_plain_text)
        for text in rehearsal.check(self.config, row, in_plain_text=in_plain_text):
            terminal.note(console, text)

    def create(self) -> None:
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        super().create()

    def banner(self) -> list[tuple[str, str]]:
        config = self.config
        rewards = " + ".join(f"{reward.get('weight', 1.0):g} {name}" for name, reward in config.rewards.items())
        trainer = algorithm(config.algorithm.kind).banner(config.grpo)
        return [
            ("model", f"{config.model.name} ({self.plan.model_path})"),
            ("data", str(config.data["_target_"]) + _asked(config.data.get("system_prompt"))),
            ("rewards", rewards),
            *([("algorithm", trainer)] if trainer else []),
            *roles(self.plan, self.machine),
            ("batch", f"{self.plan.batch}{', sorted by length' if self.plan.sorted_passes else ''}"),
            ("training", training(config.grpo)),
        ]

    def preview(self) -> Iterator[str]:
        return preview.prompt(self.config)

    def where_stopped(self) -> str:
        if (checkpoint := self.run.last_checkpoint()) is None:
            return "before the first checkpoint"
        goes_on = unresumable(self.config.grpo) is None
        return f"at step {checkpoint[1]}; " + ("resume=true goes on from there" if goes_on else "it cannot be resumed")

    def advice(self) -> str:
        return advice(self.filled.config, self.plan, read_machine(self.config.gpus))

    def result(self, failure: Failure | None) -> Result:
        try:
            completions.gather(self.run)
        except DiskFull as error:
            failure = failure or full_disk(error)
        return results.build(self.run, self.config, self.plan, failure=failure, server=self.server_seen)

    def adorn(self, console: Console, end: Result) -> None:
        adorn(console, "no picture", lambda: curve.draw(self.run, end))

    def show(self, console: Console, end: Result) -> None:
        samples.two(console, self.run)
        terminal.lines(console, summary(end))
        terminal.files(console, self.run)

    def publish(self, console: Console) -> None:
        publishing.once(self.run, self.config.publish, console)


JOB = Train


def attempt(console: Console, config: Config) -> float | None:
    """Run a trial of a layout; None where it failed. Raises RunFailed if it was stopped."""
    try:
        return objective(Train, config, console)
    except RunFailed as failure:
        if failure.exit_code > 128:
            raise
        return None


def roles(plan: Plan, machine: Machine) -> list[tuple[str, str]]:
    """Who does what, on which GPUs."""
    name = machine.gpus[0].name if machine.gpus else ""
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    trainer = f"GPU {','.join(plan.trainer_gpus)} ({name})" if plan.trainer_gpus else f"CPU, {cores}"
    many = f", {plan.batch.processes} processes" if plan.batch.processes > 1 else ""
    server = f"GPU {','.join(plan.server_gpus)}" if plan.server_gpus else "CPU" if plan.server else "running already"
    return [("trainer", trainer + many), ("generate", plan.generation.where(plan.tp, plan.dp, server))]


def training(grpo: Mapping[str, Any]) -> str:
    """`100 steps, learning rate 1e-06, completions of at most 512 tokens, temperature 1`."""
    steps, longest = grpo.get("max_steps"), grpo.get("max_completion_length")
    parts = [
        f"{steps} steps" if steps and steps > 0 else f"epochs: {grpo.get('num_train_epochs', 3):g}",
        f"learning rate {grpo['learning_rate']:g}" if grpo.get("learning_rate") is not None else "",
        f"completions of at most {longest} tokens" if longest else "",
        f"temperature {grpo['temperature']:g}" if grpo.get("temperature") is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _asked(system_prompt: Any) -> str:
    """Which system prompt goes before the problems; nothing where none does."""
    if not system_prompt or system_prompt == "none":
        return ""
    return f", system prompt {'of your own' if any(map(str.isspace, str(system_prompt))) else system_prompt}"


def summary(result: Result) -> list[str]:
    """The end of a run: accuracy, times, signs of ill health."""
    metrics = result.metrics
    trainer = algorithm(result.algorithm or AlgorithmConfig.kind).suffix()
    lines = [f"{result.status}  {result.steps} steps{trainer}, the first {result.warmup_steps} not timed"]
    lines += _accuracy(metrics)
    for measure in measures.on_terminal("train"):
        if measured := estimate(measure.field(metrics)):
            lines.append(f"  {measure.terminal:<17}{_shown(measured, measure.unit)}, median of {measured.n}")
            lines += _bars(metrics["time_s"]) if measure.name == "step_time_s" else []
    return lines + [line for sign in (result.warnings or {}).values() for line in _warning(sign)]


def _accuracy(metrics: Mapping[str, Any]) -> list[str]:
    """The line of the held-out accuracy; none where it was not measured."""
    before, after, gain = (estimate(metrics[f"accuracy_{name}"]) for name in ("before", "after", "gain"))
    both = [measured for measured in (before, after) if measured]
    if not both:
        return []
    change = f"   gain {_shown(gain, sign='+')}" if gain else "" if after else " before"
    return [f"  held-out pass@1  {' -> '.join(map(_shown, both))}{change}   n={both[-1].n}"]


def _shown(measured: Estimate, unit: str = "", sign: str = "") -> str:
    """`0.373 s (95% 0.341 to 0.428)`."""
    value, interval = measured.text(sign)
    kind = "range" if measured.ranged else "95%"
    return " ".join([value, *([unit] if unit else []), *([f"({kind} {interval})"] if interval else [])])


def _warning(sign: Mapping[str, Any]) -> list[str]:
    """What a sign says, and the start of the completion that shows it."""
    lines = [f"  warning          {sign['message']}"]
    if sample := sign.get("sample"):
        shown = sample if len(sample) <= SAMPLE else f"{sample[:SAMPLE]}..."
        lines.append(f"    for example    {shown!r}")
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
