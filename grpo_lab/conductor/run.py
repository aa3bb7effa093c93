"""Training and benches alike: jobs with a run folder, a server if need be, and a result with an objective."""

from __future__ import annotations

import dataclasses
import os
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

from omegaconf import DictConfig
from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor import credentials, models
from grpo_lab.conductor.children import Children, Processes
from grpo_lab.conductor.job import Job, conduct, full_disk
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import exit_codes
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.disk import DiskFull
from grpo_lab.machine.gpus import Machine, gpu_memory_gib, read_machine
from grpo_lab.machine.nodes import read_hosts
from grpo_lab.planner.checks.combinations import unresumable
from grpo_lab.planner.parts import Command
from grpo_lab.server.command import ServerPlan
from grpo_lab.server.exposure import check_url
from grpo_lab.store import checkpoints, records, tracker
from grpo_lab.store import train as results
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Env, Failure, Result

ALONE: AbstractContextManager[object] = nullcontext()


class RunPlan(Processes, Protocol):
    """What the plans of runs have in common."""

    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def devices(self) -> int: ...
    @property
    def generating_devices(self) -> int: ...
    def commands(self) -> Iterator[tuple[str, Command | ServerPlan]]: ...


PlanT = TypeVar("PlanT", bound=RunPlan)


class RunJob(Job[PlanT, Result]):
    """`turn`: entered when the server is ready, left after the last process, for who has several on the same GPUs."""

    def __init__(self, config: Config, machine: Machine, turn: AbstractContextManager[object] = ALONE) -> None:
        super().__init__(config, machine)
        self.turn = turn
        self.server_seen: Row = {}
        """What the conductor saw of the vLLM server: `startup_s`, `peak_memory_gib`."""

    @property
    def run(self) -> Run:
        return Run(Path(self.config.runs_dir) / (self.config.name or self.default_name()))

    @abstractmethod
    def default_name(self) -> str:
        """Readable, and different for every different config."""

    def check(self) -> tuple[str, ...]:
        check_url(self.config)
        tracker.check(self.config.tracker)
        if self.config.dry_run:
            return self.plan.notes
        unseen = (*credentials.check(self.config, self.run.folder), *models.check(self.config.model))
        return (*self.plan.notes, *unseen)

    def commands(self) -> Iterator[tuple[str, Command | ServerPlan]]:
        return self.plan.commands()

    def settle(self, console: Console) -> Result | None:
        finished = settle_folder(self.run, self.config, console)
        if finished:
            self.show(console, finished)
        return finished

    def derived(self) -> Row:
        return {"devices": self.plan.devices, "generating_devices": self.plan.generating_devices}

    def env(self) -> Env:
        before, identity = records.read(self.run.env, Env), configuration.identity(self.config)
        run_id = (before and before.run_id) or f"{identity}-{os.urandom(3).hex()}"
        return dataclasses.replace(super().env(), run_id=run_id, identity=identity)

    def carry_out(self, children: Children) -> None:
        children.prepare(self.plan.prepare)
        started = time.monotonic()
        with children.server(self.plan) as check_server:
            if check_server is not None:
                self.server_seen["startup_s"] = time.monotonic() - started
            children.progress.show("starting the trainer")
            with self.turn:
                children.train(self.plan, check_server)
            self.server_seen["peak_memory_gib"] = gpu_memory_gib(self.plan.server_gpus)

    def sum_up(self, failure: Failure | None) -> Result:
        """Write result.json. A disk without room for it makes the run a failed one."""
        result = self.result(failure)
        try:
            records.write(self.run.result, result)
        except DiskFull as error:
            failure = (result.failure or full_disk(error)).adding(f"\ncannot write {self.run.result}")
            result = dataclasses.replace(result, status="failed", failure=failure)
        return result

    @abstractmethod
    def result(self, failure: Failure | None) -> Result:
        """The content of result.json."""


def read_site(config: Config) -> Machine:
    """This machine, and the others that the run spans. Raises RequestError."""
    return dataclasses.replace(read_machine(config.gpus), hosts=read_hosts(config))


def point(kind: type[RunJob[PlanT]], composed: DictConfig) -> float | None:
    """Conduct one point of a sweep, or the only one; its objective. Ends the process where it does not finish."""
    with exit_codes():
        config = configuration.from_hydra(composed)
        return objective(kind, config, terminal.screen())


def objective(kind: type[RunJob[PlanT]], config: Config, console: Console) -> float | None:
    """Conduct a run; its objective, None after a dry run. Raises as :func:`conduct` does."""
    results.check_objective(config.objective)
    result = conduct(kind(config, read_site(config)), console)
    return None if result is None else results.objective(result, config.objective)


def settle_folder(run: Run, config: Config, console: Console) -> Result | None:
    """Make room for the run, or give the result of one that is finished already.

    Raises:
        RequestError: for an unfinished run with a checkpoint, or a folder of another config, until the user decides.
    """
    if not run.config.exists():
        return None
    if config.resume is False:
        console.print(f"  the earlier run is now {run.set_aside()}")
        return None
    if configuration.identity(configuration.load(run.config)) != configuration.identity(config):
        raise RequestError(
            f"{run.folder} holds a run of another config; choose another name=, or resume=false to start over"
        )
    result = records.read(run.result, Result)
    if result and results.is_whole(result, config):
        console.print("  finished before; resume=false runs it again")
        return result
    checkpoint = run.last_checkpoint()
    if checkpoint and (reason := unresumable(config.grpo)):
        cannot = f"{run.folder} cannot go on from step {checkpoint[1]}: {reason}"
        if config.sweep.name is None:
            raise RequestError(f"{cannot}; resume=false starts over")
        console.print(f"  {cannot}; it starts over, and the earlier run is now {run.set_aside()}", soft_wrap=True)
        return None
    if checkpoint and config.resume is None:
        raise RequestError(
            f"{run.folder} was left at step {checkpoint[1]}: resume=true goes on from there, resume=false starts over"
        )
    checkpoint = usable_checkpoint(run, console)
    step = checkpoint[1] if checkpoint else 0
    run.rewind(step)
    for leftover in (run.result, run.outcome, run.stop_request, run.progress):
        leftover.unlink(missing_ok=True)
    if checkpoint:
        console.print(f"  going on from step {step}")
    return None


def usable_checkpoint(run: Run, console: Console) -> tuple[Path, int] | None:
    """The newest checkpoint whose every byte is what was written; newer ones are set aside, and that is said.

    Raises:
        RequestError: where there are checkpoints and all of them are damaged.
    """
    sealed = run.sealed_checkpoints()
    damaged = {}
    for step in sorted(sealed, reverse=True):
        if (damage := checkpoints.damage(sealed[step], contents=True)) is None:
            break
        damaged[step] = damage
    if damaged and len(damaged) == len(sealed):
        listed = "; ".join(f"{sealed[step].name}: {damage}" for step, damage in damaged.items())
        raise RequestError(f"{run.folder} has no whole checkpoint ({listed}); resume=false starts over")
    for step, damage in damaged.items():
        aside = checkpoints.set_aside(sealed[step])
        console.print(f"  {sealed[step].name} is damaged ({damage}) and now {aside}", soft_wrap=True)
    return run.last_checkpoint()
