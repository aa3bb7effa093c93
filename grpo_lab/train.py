"""`python -m grpo_lab.train`: the conductor. It holds no GPU, starts what the plan says, watches, and sums up."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor import publishing
from grpo_lab.conductor.preflight import check_data, check_targets
from grpo_lab.conductor.train import execute
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import exit_codes, run_app
from grpo_lab.config.compose import CONF
from grpo_lab.config.errors import RequestError, RunFailed
from grpo_lab.config.redaction import redact, redact_command
from grpo_lab.config.schema import Config
from grpo_lab.machine import locks, processes
from grpo_lab.machine.disk import hold_back
from grpo_lab.machine.gpus import Machine, read_machine
from grpo_lab.machine.nodes import read_hosts
from grpo_lab.machine.ports import lease
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.planner.modes import mode
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import Plan, make_plan, shell
from grpo_lab.predictor.check import check as check_fit
from grpo_lab.predictor.choice import settled
from grpo_lab.server.exposure import check_url
from grpo_lab.store import checkpoints, records, tracker
from grpo_lab.store import folder as store
from grpo_lab.store import train as results
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Env, Result

configuration.register()

LEFTOVERS_S = 30.0
"""How long the processes of a killed run of the same folder may take to end; their wardens need about ten seconds."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> float | None:
    """Hydra's entry: one point of a sweep, or the only one. Returns accuracy after training."""
    with exit_codes():
        return conduct(configuration.from_hydra(composed), Console())


def conduct(config: Config, console: Console) -> float | None:
    """Plan, check, run; returns the objective. Raises RequestError before anything is started, RunFailed after."""
    results.check_objective(config.objective)

    def note(text: str) -> None:
        console.print(f"  {'note':<10}{text}", highlight=False, markup=False, soft_wrap=True)

    machine = dataclasses.replace(read_machine(config.gpus), hosts=read_hosts(config))
    config = settled(config, machine, say=note, trial=None if config.dry_run else lambda one: attempt(one, console))
    folder = Path(config.runs_dir) / (config.name or default_name(config))
    with lease(len(dataclasses.fields(Ports))) as free:
        plan = make_plan(config, machine, folder=folder, ports=Ports(*free))
        warnings = check_fit(config, plan, machine)
        check_targets(config)
        check_url(config)
        tracker.check(config.tracker)
        publishing.check(config.publish)
        terminal.banner(console, config, plan, machine, folder)
        for text in (*plan.notes, *warnings):
            note(text)
        if config.dry_run:
            show_commands(console, plan)
            return None
        check_data(config)
        run = Run(folder)
        with locks.held(run.lock, patience_s=LEFTOVERS_S):
            processes.await_end(RUN_VARIABLE, str(folder.resolve()), LEFTOVERS_S)
            finished = settle_folder(run, config, console)
            if finished is None:
                create(run, config, plan, machine)
                finished = execute(run, config, plan, console)
            publishing.once(run, config.publish, console)
    return results.objective(finished, config.objective)


def attempt(config: Config, console: Console) -> float | None:
    """Run a trial of a layout; None where it failed. Raises RunFailed if it was stopped."""
    try:
        return conduct(config, console)
    except RunFailed as failure:
        if failure.exit_code > 128:
            raise
        return None


def default_name(config: Config) -> str:
    """Readable, and different for every different config."""
    data = str(config.data.get("_target_", "")).rpartition(".")[2]
    layout = mode(config.vllm.mode).suffix(config.vllm.tp, config.vllm.dp)
    return f"{config.model.name}-{data}-{layout}-{configuration.identity(config)}"


def show_commands(console: Console, plan: Plan | BenchPlan) -> None:
    for role, command in plan.commands():
        line = shell(redact(command.env), command.argv)
        console.print(f"\n# {role}\n{line}", highlight=False, markup=False, soft_wrap=True)


def settle_folder(
    run: Run, config: Config, console: Console, *, show: Callable[[Console, Run, Result, None], None] = terminal.summary
) -> Result | None:
    """Make room for the run, or show and return the result of one that is finished already.

    Raises:
        RequestError: for an unfinished run with a checkpoint, or a folder of another config, until the user decides.
    """
    if not run.config.exists():
        return None
    if config.resume is False:
        console.print(f"  the earlier run is now {run.set_aside()}", highlight=False)
        return None
    if configuration.identity(configuration.load(run.config)) != configuration.identity(config):
        raise RequestError(
            f"{run.folder} holds a run of another config; choose another name=, or resume=false to start over"
        )
    result = records.read(run.result, Result)
    if result and results.is_whole(result, config):
        console.print("  finished before; resume=false runs it again", highlight=False)
        show(console, run, result, None)
        return result
    checkpoint = run.last_checkpoint()
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
        console.print(f"  going on from step {step}", highlight=False)
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
        console.print(f"  {sealed[step].name} is damaged ({damage}) and now {aside}", highlight=False, soft_wrap=True)
    return run.last_checkpoint()


def create(run: Run, config: Config, plan: Plan | BenchPlan, machine: Machine) -> None:
    """The folder with what was asked, what was decided, and where it runs. Secrets stay out."""
    (run.checkpoints if config.kind == "train" else run.folder).mkdir(parents=True, exist_ok=True)
    hold_back(run.ballast)
    store.save_config(config, run.config)
    store.save_plan(run.plan, plan, devices=plan.devices, generating_devices=plan.generating_devices)
    before, identity = records.read(run.env, Env), configuration.identity(config)
    env = records.env(
        machine,
        run_id=(before and before.run_id) or f"{identity}-{os.urandom(3).hex()}",
        identity=identity,
        command=redact_command(["python", "-m", f"grpo_lab.{config.kind}", *_overrides()]),
        git_commit=git_commit(),
    )
    records.write(run.env, env)


def _overrides() -> list[str]:
    """What Hydra was told; a point of a sweep has other arguments."""
    told = HydraConfig.get().overrides if HydraConfig.initialized() else None
    if told is None:
        return sys.argv[1:]
    return [text for text in (*told.hydra, *told.task) if not text.startswith("hydra.mode=")]


def git_commit() -> str | None:
    """Commit of the harness where it runs from a clone, with `+changes` if the tree is not clean."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    answers = [
        subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    if any(answer.returncode for answer in answers):
        return None
    return answers[0].stdout.strip() + ("+changes" if answers[1].stdout.strip() else "")


def main() -> None:
    """Exit code 0: finished. 1: failed. 2: refused. 128 + signal: stopped."""
    try:
        sys.exit(run_app(app))
    except KeyboardInterrupt:  # while nothing runs yet, or not any more: else the conductor has its own way
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
