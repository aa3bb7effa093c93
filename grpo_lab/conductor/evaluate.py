"""What is an evaluation's own: its plan, one process that answers, pass@k at the end, two policies compared."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor import models
from grpo_lab.conductor.children import Children, Failed, failure_of
from grpo_lab.conductor.credentials import check_folder
from grpo_lab.conductor.job import NO_PORTS, Job, follow, full_disk
from grpo_lab.conductor.preflight import check_targets
from grpo_lab.conductor.request import Request, read_request
from grpo_lab.config import model as policy
from grpo_lab.config.errors import RequestError
from grpo_lab.machine.disk import DiskFull
from grpo_lab.machine.gpus import Machine, read_machine
from grpo_lab.machine.logs import Log
from grpo_lab.planner.evaluate import EvaluationPlan, commands_of, make_plan, name_of
from grpo_lab.planner.parts import Command, Ports
from grpo_lab.rewards.held_out import accuracy_rule
from grpo_lab.store import evaluate as summing
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Evaluation, Run
from grpo_lab.store.records import EvaluationResult, Failure, Progress
from grpo_lab.store.stats import Proportion

REFUSED = 2
"""Exit code of an answering process that was asked for what cannot work."""


@dataclass(frozen=True)
class Answered:
    """How an evaluation ended."""

    failure: Failure | None = None
    result: EvaluationResult | None = None
    """None where it failed."""


class Evaluate(Job[EvaluationPlan, Answered]):
    kind = "evaluate"

    def __init__(self, request: Request, machine: Machine) -> None:
        super().__init__(request.config, machine)
        self.request = request
        self._answered = False

    @property
    def work(self) -> Evaluation:
        return Evaluation.of(self.request.run, name_of(self.config, self.plan))

    @property
    def run(self) -> Run:
        return Run(self.work.folder)

    @property
    def seed(self) -> int:
        return self.plan.seed

    def make_plan(self, ports: Ports) -> EvaluationPlan:
        return make_plan(self.config, self.request.policy, self.machine)

    def check(self) -> tuple[str, ...]:
        check_targets(dataclasses.replace(self.config, rewards=dict([accuracy_rule(self.config.rewards)])))
        if self.config.dry_run:
            return ()
        check_folder(self.work.folder)
        return models.check(self.config.model) if self.plan.model_path == policy.location(self.config.model) else ()

    def banner(self) -> list[tuple[str, str]]:
        plan, sampling = self.plan, self.plan.sampling
        return [
            ("policy", f"{self.config.model.name}, {plan.policy} ({plan.adapter or plan.model_path})"),
            ("data", str(self.config.data["_target_"])),
            ("generate", plan.generator),
            (
                "sampling",
                f"{plan.samples} a problem, temperature {sampling['temperature']:g}, at most"
                f" {sampling['max_tokens']} tokens",
            ),
        ]

    def commands(self) -> Iterator[tuple[str, Command]]:
        *prepare, answer = commands_of(self.config, self.plan, self.machine, self.work.folder)
        yield from (("prepare", command) for command in prepare)
        yield "answer", answer

    def settle(self, console: Console) -> Answered | None:
        """An answer to the same problems is kept; which k are reported may have changed."""
        if not self.work.records.is_file():
            for leftover in (self.run.progress, self.run.outcome):
                leftover.unlink(missing_ok=True)
            return None
        console.print("  answered before")
        end = self._summed_up()
        self.show(console, end)
        return end

    def carry_out(self, children: Children) -> None:
        """Raises RequestError, with nothing left behind, where the answering process refuses."""
        for _, command in self.commands():
            log = Log(self.work.log)
            code = children.finish([command], self.work.log, children.progress.update)
            if code == REFUSED:
                refusal = log.refusal()
                discard(self.work)
                raise RequestError(refusal)
            if code:
                raise Failed(failure_of(self.run, code, log))
        self._answered = True

    def ended_by_itself(self) -> bool:
        return self._answered or super().ended_by_itself()

    def where_stopped(self) -> str:
        place = records.read(self.run.progress, Progress)
        return f"at {place.done if place else 0} of {place.total if place else '?'} problems;" + (
            " the same command goes on from there"
        )

    def sum_up(self, failure: Failure | None) -> Answered:
        if failure:
            return Answered(failure)
        try:
            summing.gather(self.work)
            return self._summed_up()
        except DiskFull as error:
            return Answered(full_disk(error))

    def _summed_up(self) -> Answered:
        result = summing.build(self.work, self.plan)
        records.write(self.work.result, result)
        return Answered(result=result)

    def show(self, console: Console, end: Answered) -> None:
        if (result := end.result) is None:
            return
        left_out = f", {result.unreadable} more with an unreadable solution" if result.unreadable else ""
        for name, proportion in result.metrics.items():
            terminal.lines(console, [f"  {name:<9}{_proportion(proportion, '.3f')}{left_out}"])
        tokens, seconds = result.tokens, result.seconds
        speed = f"{tokens:,} tokens in {terminal.clock(seconds)}, {tokens / seconds:,.0f} a second"
        terminal.lines(console, [f"  {'speed':<9}{speed}", f"  {'files':<9}{self.work.folder}"])


JOB = Evaluate


def evaluate(folders: Sequence[Path], overrides: Sequence[str], console: Console) -> None:
    """Evaluate each folder and compare the later ones with the first.

    Raises:
        RequestError: before anything is started.
        RunFailed: after.
    """
    wanted: Sequence[Path | None] = folders or [None]
    requests = [read_request(folder, overrides) for folder in wanted]
    machine = read_machine("auto" if any(request.config.gpus != 0 for request in requests) else 0)
    jobs = [Evaluate(request, machine) for request in requests]
    for job in jobs:
        job.decide(NO_PORTS)
        if job.config.data != jobs[0].config.data:
            raise RequestError(f"{requests[0].run.folder} and {job.request.run.folder} have other data; data= sets one")
    ends = [follow(job, console) for job in jobs]
    if all(ends):  # no dry run
        compare(jobs, console)


def compare(jobs: Sequence[Evaluate], console: Console) -> None:
    """Write and show how the later evaluations differ from the first. Raises RequestError for other problems."""
    first = jobs[0].work
    for work in (job.work for job in jobs[1:]):
        differences = summing.compare(first, work, jobs[0].plan.k)
        store.write_json(work.comparison, {"against": str(first.folder), "difference": differences})
        console.print(f"{work.folder} less {first.folder}, paired", soft_wrap=True)
        terminal.lines(console, [f"  {name:<9}{_proportion(gain, '+.3f')}" for name, gain in differences.items()])


def discard(work: Evaluation) -> None:
    """Remove a folder in which nothing was answered, and those above it that were made for it."""
    if work.parts.exists():
        return
    shutil.rmtree(work.folder)
    with contextlib.suppress(OSError):  # not empty
        work.folder.parent.rmdir()
        work.folder.parent.parent.rmdir()


def _proportion(proportion: Proportion | None, style: str) -> str:
    if proportion is None:
        return "no readable solution"
    low, high = proportion["ci95"]
    return f"{proportion['value']:{style}} (95% {low:{style}} to {high:{style}})   n={proportion['n']} problems"
