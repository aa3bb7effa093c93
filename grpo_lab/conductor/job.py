"""The course of every job: lease, plan, check, banner, lock, settle, create, execute, sum up.

A kind of job is a class in a file of its own beside this one, bound to the name `JOB` there.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor import provenance
from grpo_lab.conductor.children import Children, Failed, ended_by_itself, of_server
from grpo_lab.conductor.signals import stop_signals
from grpo_lab.config.errors import RunFailed
from grpo_lab.config.schema import Config
from grpo_lab.machine import locks, processes
from grpo_lab.machine.disk import DiskFull, hold_back, is_full
from grpo_lab.machine.gpus import Machine
from grpo_lab.machine.ports import lease
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.planner.parts import Command, Ports
from grpo_lab.server.command import ServerPlan
from grpo_lab.server.process import ServerError
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Env, Failure

LEFTOVERS_S = 30.0
"""How long the processes of a killed job in the same folder may take to end; their wardens need about ten seconds."""
NO_PORTS = Ports(0, 0, 0)
"""For planning alone."""


class Ended(Protocol):
    """What a job sums up to."""

    @property
    def failure(self) -> Failure | None: ...


PlanT = TypeVar("PlanT")
EndT = TypeVar("EndT", bound=Ended)


class Job(ABC, Generic[PlanT, EndT]):
    """One job, with what is its kind's own."""

    kind: ClassVar[str]
    """As in `python -m grpo_lab.<kind>`."""
    plan: PlanT
    notes: tuple[str, ...] = ()
    """To be known before the start."""

    def __init__(self, config: Config, machine: Machine) -> None:
        self.config, self.machine = config, machine

    @property
    @abstractmethod
    def run(self) -> Run:
        """The job's folder; known once it is planned."""

    @property
    def seed(self) -> int:
        return self.config.seed

    def choose(self, console: Console, *, on_paper: bool) -> None:
        """Settle what the config leaves open. Unless `on_paper`, trial runs may be started for it."""

    def decide(self, ports: Ports) -> None:
        """Plan and check. Raises RequestError for what cannot work."""
        self.plan = self.make_plan(ports)
        self.notes = tuple(self.check())

    @abstractmethod
    def make_plan(self, ports: Ports) -> PlanT: ...

    @abstractmethod
    def check(self) -> Sequence[str]:
        """Notes for the user. Raises RequestError."""

    @abstractmethod
    def banner(self) -> list[tuple[str, str]]:
        """Who does what: names and values."""

    @abstractmethod
    def commands(self) -> Iterator[tuple[str, Command | ServerPlan]]:
        """All that is started, in order, each with its role."""

    def preview(self) -> Iterable[str]:
        """What a dry run shows beside the commands."""
        return ()

    def check_data(self, console: Console) -> None:
        """What a dry run leaves unread and untried. Raises RequestError."""

    @abstractmethod
    def settle(self, console: Console) -> EndT | None:
        """Make room for the job, or give the end of an earlier one that is the same. Raises RequestError."""

    def create(self) -> None:
        """Write into the folder what was asked, what was decided, and where it runs. Secrets stay out."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        hold_back(self.run.ballast)
        store.save_config(self.config, self.run.config)
        store.save_plan(self.run.plan, self.plan, **self.derived())
        records.write(self.run.env, self.env())

    def derived(self) -> Row:
        """What plan.json has beside the plan's own fields."""
        return {}

    def env(self) -> Env:
        command = provenance.command(f"grpo_lab.{self.kind}")
        return records.env(self.machine, command=command, git_commit=provenance.git_commit())

    @abstractmethod
    def carry_out(self, children: Children) -> None:
        """Start all processes and await their end. Raises Failed, ServerError, KeyboardInterrupt."""

    def ended_by_itself(self) -> bool:
        """Whether the worker finished or failed for a reason of its own. A signal to us may have gone to it as well."""
        return ended_by_itself(self.run)

    @abstractmethod
    def where_stopped(self) -> str:
        """How far an interrupted job came, and how it goes on."""

    def advice(self) -> str:
        """The way out for a job that went out of memory; empty where there is none."""
        return ""

    @abstractmethod
    def sum_up(self, failure: Failure | None) -> EndT:
        """Write what the job leaves."""

    def adorn(self, console: Console, end: EndT) -> None:
        """Make what stands beside the result and is no part of it."""

    @abstractmethod
    def show(self, console: Console, end: EndT) -> None: ...

    def publish(self, console: Console) -> None:
        """Pass a finished job on."""


def of(config: Config, machine: Machine) -> Job[Any, Any]:
    """The job of `config.kind`."""
    job: Job[Any, Any] = import_module(f"grpo_lab.conductor.{config.kind}").JOB(config, machine)
    return job


def conduct(job: Job[PlanT, EndT], console: Console) -> EndT | None:
    """Carry a job from its config to its end; None for a dry run.

    Raises:
        RequestError: before anything is started.
        RunFailed: after.
    """
    job.choose(console, on_paper=job.config.dry_run)
    with lease(len(dataclasses.fields(Ports))) as free:
        job.decide(Ports(*free))
        return follow(job, console)


def follow(job: Job[PlanT, EndT], console: Console) -> EndT | None:
    """Carry out what was decided; as for :func:`conduct`."""
    terminal.banner(console, job.run.folder, job.seed, job.banner(), job.notes)
    if job.config.dry_run:
        terminal.commands(console, job.commands())
        terminal.lines(console, job.preview())
        return None
    job.check_data(console)
    with locks.held(job.run.lock, patience_s=LEFTOVERS_S):
        processes.await_end(RUN_VARIABLE, str(job.run.folder.resolve()), LEFTOVERS_S)
        end = job.settle(console)
        if end is None:
            job.create()
            end = execute(job, console)
        job.publish(console)
    return end


def execute(job: Job[PlanT, EndT], console: Console) -> EndT:
    """Start the children, wait for the end, sum up. Raises RunFailed if the job did not finish."""
    try:
        failure = _failure(job, console)
    finally:
        job.run.ballast.unlink(missing_ok=True)
    if failure and failure.class_ == "oom" and (way_out := job.advice()):
        failure = failure.adding(f"\n{way_out}")
    end = job.sum_up(failure)
    job.adorn(console, end)
    job.show(console, end)
    if end.failure:
        terminal.failure(console, end.failure)
        raise RunFailed(end.failure.message)
    return end


def _failure(job: Job[PlanT, EndT], console: Console) -> Failure | None:
    """Carry the job out; why it failed. Raises RunFailed if the user stopped it."""
    failure: Failure | None = None
    with stop_signals(job.run) as stop, terminal.Progress(console, job.run) as progress:
        try:
            job.carry_out(Children(job.run, job.config, stop, progress))
        except Failed as failed:
            failure = failed.failure
        except ServerError as error:
            failure = of_server(job.run, error)
        except OSError as error:
            if not is_full(error, job.run.folder):
                raise
            failure = full_disk(error)
        except KeyboardInterrupt:
            stop.hard = True
    if stop.asked and not job.ended_by_itself():
        console.print(f"stopped {job.where_stopped()}", soft_wrap=True)
        raise RunFailed("stopped", exit_code=128 + stop.number)
    return failure


def full_disk(error: DiskFull | OSError) -> Failure:
    return Failure("disk_full", str(error))
