"""`python -m grpo_lab.evaluate runs/<run> data=gsm8k evaluate.k=1,4,16`: pass@1 and pass@k of a policy.

A folder is a run (its last checkpoint, or evaluate.checkpoint=before or =STEP), one of its checkpoints, or a model;
without one, model= says which. All else are overrides of the run's config. Each further folder is compared with the
first one over the same problems. The same command again goes on where a killed one was, and shows a finished one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor.preflight import check_targets
from grpo_lab.conductor.request import Request, read_request
from grpo_lab.config import compose as configuration
from grpo_lab.config.cli import explain, quoted, refuse
from grpo_lab.config.errors import RequestError
from grpo_lab.config.redaction import redact_command
from grpo_lab.machine import locks, processes
from grpo_lab.machine.gpus import Machine, read_machine
from grpo_lab.machine.logs import Log
from grpo_lab.machine.processes import Child
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.planner.evaluate import EvaluationPlan, commands_of, make_plan, name_of
from grpo_lab.planner.parts import Command
from grpo_lab.rewards.held_out import accuracy_rule
from grpo_lab.store import evaluate as summing
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store.folder import Evaluation, Run
from grpo_lab.store.records import EvaluationResult, Progress
from grpo_lab.store.stats import Proportion
from grpo_lab.train import git_commit

POLL_S = 0.2
LEFTOVERS_S = 30.0
"""How long the processes of a killed evaluation of the same folder may take to end."""
REFUSED = 2
_K = re.compile(r"evaluate\.k=(\d+(?:,\d+)*)")

configuration.register()


class EvaluationFailed(RuntimeError):
    """The answering process failed; the message says how, with the end of its log."""


class Stopped(KeyboardInterrupt):
    """By a signal; nothing that was saved is lost."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.exit_code = 128 + number


def evaluate(folders: Sequence[Path], overrides: Sequence[str], console: Console) -> None:
    """Evaluate each folder and compare the later ones with the first. Raises RequestError before anything starts."""
    wanted: Sequence[Path | None] = folders or [None]
    requests = [read_request(folder, overrides) for folder in wanted]
    machine = read_machine("auto" if any(request.config.gpus != 0 for request in requests) else 0)
    plans = [make_plan(request, machine) for request in requests]
    for request in requests:
        check_targets(dataclasses.replace(request.config, rewards=dict([accuracy_rule(request.config.rewards)])))
        if request.config.data != requests[0].config.data:
            raise RequestError(f"{requests[0].run.folder} and {request.run.folder} have other data; data= sets one")
    done = []
    for request, plan in zip(requests, plans, strict=True):
        work = Evaluation.of(request.run, name_of(request, plan))
        banner(console, request, plan, work)
        show(console, settle(request, plan, machine, work, console), work)
        done.append(work)
    for work in done[1:]:
        differences = summing.compare(done[0], work, plans[0].k)
        store.write_json(work.comparison, {"against": str(done[0].folder), "difference": differences})
        show_difference(console, done[0], work, differences)


def banner(console: Console, request: Request, plan: EvaluationPlan, work: Evaluation) -> None:
    console.print(f"[bold]{work.folder}[/bold]", highlight=False, soft_wrap=True)
    lines = {
        "policy": f"{request.config.model.name}, {plan.policy} ({plan.adapter or plan.model_path})",
        "data": str(request.config.data["_target_"]),
        "generate": plan.generator,
        "sampling": f"{plan.samples} a problem, temperature {plan.sampling['temperature']:g}, at most"
        f" {plan.sampling['max_tokens']} tokens",
    }
    for name, value in lines.items():
        console.print(f"  {name:<9}{value}", highlight=False, markup=False, soft_wrap=True)


def settle(
    request: Request, plan: EvaluationPlan, machine: Machine, work: Evaluation, console: Console
) -> EvaluationResult:
    """The result, once all that is missing of it is there."""
    with locks.held(work.lock, patience_s=LEFTOVERS_S):
        processes.await_end(RUN_VARIABLE, str(work.folder.resolve()), LEFTOVERS_S)
        if work.records.is_file():
            console.print("  answered before", highlight=False)
        else:
            create(request, plan, machine, work)
            for command in commands_of(request, plan, machine, work):
                carry_out(command, work, console)
            summing.gather(work)
        result = summing.build(work, plan)
        records.write(work.result, result)
    return result


def create(request: Request, plan: EvaluationPlan, machine: Machine, work: Evaluation) -> None:
    work.progress.unlink(missing_ok=True)
    store.save_config(request.config, work.config)
    store.save_plan(work.plan, plan)
    command = redact_command(["python", "-m", "grpo_lab.evaluate", *sys.argv[1:]])
    records.write(work.env, records.env(machine, command=command, git_commit=git_commit()))


def carry_out(command: Command, work: Evaluation, console: Console) -> None:
    """Run it to its end. Raises RequestError, with nothing left behind, where it refuses, and EvaluationFailed."""
    log = Log(work.log)
    with (
        terminal.Progress(console, Run(work.folder)) as progress,
        stopping(work, progress),
        Child(command.argv, env=command.env, log=work.log) as child,
    ):
        while (code := child.poll()) is None:
            time.sleep(POLL_S)
            progress.update()
    if code == REFUSED:
        refusal = log.refusal()
        discard(work)
        raise RequestError(refusal)
    if code == -signal.SIGKILL:
        raise EvaluationFailed(f"the answering process was killed (signal 9); out of host memory?\n  log: {work.log}")
    if code != 0:
        raise EvaluationFailed("\n".join([f"exit code {code}", *log.causes(), log.tail()]))


@contextlib.contextmanager
def stopping(work: Evaluation, progress: terminal.Progress) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Stopped in this block, after the processes in it have ended."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Stopped:
        place = records.read(work.progress, Progress)
        where = f"{place.done} of {place.total}" if place else "0 of ?"
        progress.say(f"stopped at {where} problems; the same command goes on from there")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def discard(work: Evaluation) -> None:
    """Remove a folder in which nothing was answered, and those above it that were made for it."""
    if work.parts.exists():
        return
    shutil.rmtree(work.folder)
    with contextlib.suppress(OSError):  # not empty
        work.folder.parent.rmdir()
        work.folder.parent.parent.rmdir()


def show(console: Console, result: EvaluationResult, work: Evaluation) -> None:
    left_out = f", {result.unreadable} more with an unreadable solution" if result.unreadable else ""
    for name, found in result.metrics.items():
        console.print(f"  {name:<9}{told(found, '.3f')}{left_out}", highlight=False, soft_wrap=True)
    tokens, seconds = result.tokens, result.seconds
    speed = f"{tokens:,} tokens in {terminal.clock(seconds)}, {tokens / seconds:,.0f} a second"
    console.print(f"  {'speed':<9}{speed}\n  {'files':<9}{work.folder}", highlight=False, soft_wrap=True)


def show_difference(console: Console, first: Evaluation, second: Evaluation, differences: Mapping[str, Any]) -> None:
    console.print(f"[bold]{second.folder}[/bold] less {first.folder}, paired", highlight=False, soft_wrap=True)
    for name, found in differences.items():
        console.print(f"  {name:<9}{told(found, '+.3f')}", highlight=False, soft_wrap=True)


def told(found: Proportion | None, style: str) -> str:
    if found is None:
        return "no readable solution"
    low, high = found["ci95"]
    return f"{found['value']:{style}} (95% {low:{style}} to {high:{style}})   n={found['n']} problems"


def read_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders and overrides. A folder that exists may have a `=` in its name, as those of sweeps have."""
    folders = [word for word in words if Path(word).is_dir() or ("=" not in word and not word.startswith(("~", "+")))]
    overrides = [_K.sub(r"evaluate.k=[\1]", word) for word in quoted([word for word in words if word not in folders])]
    return [Path(folder) for folder in folders], overrides


def main() -> None:
    """Exit code 0: finished. 1: failed. 2: refused. 128 + signal: stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m grpo_lab.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="FOLDER|KEY=VALUE")
    folders, overrides = read_words(parser.parse_args().words)
    try:
        evaluate(folders, overrides, Console())
    except (HydraException, OmegaConfBaseException, MissingConfigException, RequestError) as error:
        sys.exit(refuse(explain(error)))
    except EvaluationFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
