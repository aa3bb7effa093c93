"""`python -m grpo_lab.bench`: how fast a layout generates. Nothing is trained.

Starts the engines of `vllm=server|colocate|off` once, sends every load of `bench` (warm-up, then measured rounds) and
writes result.json. The other keys, `--multirun` and the launchers are those of `python -m grpo_lab.train`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor import display
from grpo_lab.conductor.train import Failed, Stop, ended_by_itself, of_server, prepare, server_of, stop_signals, train
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import exit_codes, run_app
from grpo_lab.config.compose import CONF
from grpo_lab.config.errors import RunFailed
from grpo_lab.config.schema import Config, LauncherConfig
from grpo_lab.machine import locks, processes
from grpo_lab.machine.gpus import read_machine
from grpo_lab.machine.ports import lease
from grpo_lab.planner.bench import BenchPlan, make_plan
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.planner.modes import mode
from grpo_lab.planner.parts import Ports
from grpo_lab.predictor.check import advice_bench, check_bench
from grpo_lab.server.exposure import check_url
from grpo_lab.server.process import ServerError
from grpo_lab.store import bench as summing
from grpo_lab.store import records, tracker
from grpo_lab.store import train as results
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Failure, Result
from grpo_lab.train import LEFTOVERS_S, create, settle_folder, show_commands

DEFAULTS = Config(
    kind="bench",
    objective="generated_tokens_per_s_per_gpu",
    launcher=LauncherConfig(exclusive=True),
)
ALONE: AbstractContextManager[object] = nullcontext()
LAST_WORDS_S = 15.0
"""How long a server that has broken its connections may take to be seen dead, with its reason."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> float | None:
    """Hydra's entry: one point of a sweep, or the only one. Returns the objective."""
    with exit_codes():
        return conduct(configuration.from_hydra(composed), Console())


def conduct(config: Config, console: Console, turn: AbstractContextManager[object] = ALONE) -> float | None:
    """Plan, check, measure. Raises RequestError before anything is started, RunFailed after.

    `turn`: entered when the server is ready, left after the last load, for who has several on the same GPUs.
    """
    results.check_objective(config.objective)
    machine = read_machine(config.gpus)
    folder = Path(config.runs_dir) / (config.name or default_name(config))
    with lease(len(dataclasses.fields(Ports))) as free:
        plan = make_plan(config, machine, folder=folder, ports=Ports(*free))
        plan = dataclasses.replace(plan, notes=(*plan.notes, *check_bench(config, plan, machine)))
        check_url(config)
        tracker.check(config.tracker)
        display.banner(console, config, plan, machine, folder)
        if config.dry_run:
            show_commands(console, plan)
            return None
        run = Run(folder)
        with locks.held(run.lock, patience_s=LEFTOVERS_S):
            processes.await_end(RUN_VARIABLE, str(folder.resolve()), LEFTOVERS_S)
            finished = settle_folder(run, config, console, show=display.summary)
            if finished is None:
                create(run, config, plan, machine)
                finished = execute(run, config, plan, console, turn)
    return results.objective(finished, config.objective)


def default_name(config: Config) -> str:
    layout = mode(config.vllm.mode).suffix(config.vllm.tp, config.vllm.dp)
    return f"bench-{config.model.name}-{layout}-{configuration.identity(config)}"


def execute(
    run: Run, config: Config, plan: BenchPlan, console: Console, turn: AbstractContextManager[object]
) -> Result:
    """Start the children, wait for the end, write result.json. Raises RunFailed if the bench did not finish."""
    failure: Failure | None = None
    seen: Row = {}
    with stop_signals(run) as stop, terminal.Progress(console, run) as progress:
        try:
            prepare(run, config, plan, progress, stop)
            measure(run, config, plan, progress, stop, turn, seen)
        except Failed as failed:
            failure = failed.failure
        except ServerError as error:
            failure = of_server(run, error)
        except KeyboardInterrupt:
            stop.hard = True
    if stop.asked and not ended_by_itself(run):
        console.print("stopped; the same command measures again", highlight=False)
        raise RunFailed("stopped", exit_code=128 + stop.number)
    if failure and failure.class_ == "oom" and (way_out := advice_bench(config, plan, read_machine(config.gpus))):
        failure = failure.adding(f"\n{way_out}")
    result = summing.build(run, config, plan, failure=failure, server=seen)
    records.write(run.result, result)
    if failure:
        terminal.failure(console, failure)
        raise RunFailed(failure.message)
    display.summary(console, run, result, run.read_outcome().look)
    return result


def measure(
    run: Run,
    config: Config,
    plan: BenchPlan,
    progress: terminal.Progress,
    stop: Stop,
    turn: AbstractContextManager[object],
    seen: Row,
) -> None:
    """The server if there is one, and the processes that measure, to their end. Raises what `conductor.train` does."""
    started = time.monotonic()
    with server_of(run, config, plan, stop, progress) as check_server:
        if check_server is not None:
            seen["startup_s"] = time.monotonic() - started
        try:
            with turn:
                train(run, config, plan, progress, stop, check_server)
        except Failed as failed:
            deadline = time.monotonic() + LAST_WORDS_S
            # The client only saw a broken connection; the server's end says why.
            while failed.failure.class_ == "server_died" and check_server and time.monotonic() < deadline:
                check_server()
                time.sleep(0.5)
            raise


def main() -> None:
    """Exit code 0: finished. 1: failed. 2: refused. 128 + signal: stopped."""
    configuration.register(DEFAULTS)
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
