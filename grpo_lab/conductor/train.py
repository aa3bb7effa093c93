"""One run from its first process to its result: start what the plan says, watch it, stop it, sum it up."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor.watchdog import Watchdog
from grpo_lab.config.errors import RunFailed
from grpo_lab.config.schema import Config
from grpo_lab.machine.disk import DiskFull, is_full, nearly_full
from grpo_lab.machine.gpus import gpu_memory_gib, read_machine
from grpo_lab.machine.logs import Log
from grpo_lab.machine.processes import Child
from grpo_lab.planner.parts import Command
from grpo_lab.planner.train import Plan
from grpo_lab.predictor.check import advice
from grpo_lab.server.command import ServerPlan
from grpo_lab.server.process import ServerError, attach, vllm_server
from grpo_lab.store import completions
from grpo_lab.store import folder as store
from grpo_lab.store import picture as curve
from grpo_lab.store import train as results
from grpo_lab.store.folder import Row, Run

POLL_S = 0.2
SERVER_ENDS_S = 12.0
"""Two of the server's health checks, and a little."""
BLAMELESS = ("worker_crash", "server_died", "error")
"""How a trainer fails whose server fails."""
KILLING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from outside; others are crashes."""


class Failure(RuntimeError):
    """Why a run failed, with its class (docs/results.md)."""

    def __init__(self, failure_class: str, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.row: Row = {"class": failure_class, "message": message, "log": str(log) if log else None}


class Processes(Protocol):
    """Of a plan, what is started."""

    @property
    def tp(self) -> int: ...
    @property
    def dp(self) -> int: ...
    @property
    def server(self) -> ServerPlan | None: ...
    @property
    def engines(self) -> tuple[Command, ...]: ...
    @property
    def trainer(self) -> tuple[Command, ...]: ...
    @property
    def prepare(self) -> Command | None: ...
    @property
    def weight_transfer(self) -> str | None: ...


def execute(run: Run, config: Config, plan: Plan, console: Console) -> Row:
    """Start the children, wait for the end, write result.json. Raises RunFailed if the run did not finish."""
    failed: Row | None = None
    seen: Row = {}
    with stop_signals(run) as stop, terminal.Progress(console, run) as progress:
        try:
            prepare(run, config, plan, progress, stop)
            started = time.monotonic()
            with server_of(run, config, plan, stop, progress) as check_server:
                if check_server is not None:
                    seen["startup_s"] = time.monotonic() - started
                progress.show("starting the trainer")
                train(run, config, plan, progress, stop, check_server)
                seen["peak_memory_gib"] = gpu_memory_gib(plan.server_gpus)
        except Failure as failure:
            failed = failure.row
        except ServerError as error:
            log = str(run.server_log) if run.server_log.is_file() else None
            failed = {"class": error.failure_class, "message": str(error), "log": log}
        except OSError as error:
            if not is_full(error, run.folder):
                raise
            failed = Failure("disk_full", str(error)).row
        except KeyboardInterrupt:
            stop.hard = True
    if stop.asked and not ended_by_itself(run):
        raise interrupted(run, stop, console)
    if failed and failed["class"] == "oom" and (said := advice(config, plan, read_machine(config.gpus))):
        failed["message"] += f"\n{said}"
    result = sum_up(run, config, plan, failed, seen)
    terminal.summary(console, run, result, (store.read_json(run.outcome) or {}).get("look"))
    if failed := result["failure"]:
        terminal.failure(console, failed)
        if not run.result.is_file():
            console.print(f"  cannot write {run.result}: no room on the disk", highlight=False, soft_wrap=True)
        raise RunFailed(failed["message"])
    return result


def sum_up(run: Run, config: Config, plan: Plan, failed: Row | None, server: Row) -> Row:
    """Write what a run leaves; the result. A disk without room for it makes the run a failed one."""
    run.ballast.unlink(missing_ok=True)
    try:
        completions.gather(run)
    except DiskFull as error:
        failed = failed or Failure("disk_full", str(error)).row
    result = results.build(run, config, plan, status="failed" if failed else "finished", failure=failed, server=server)
    with contextlib.suppress(DiskFull):  # a run is none the worse for a missing picture
        curve.draw(run, result)
    try:
        store.write_json(run.result, result)
    except DiskFull as error:
        result |= {"status": "failed", "failure": failed or Failure("disk_full", str(error)).row}
    return result


def ended_by_itself(run: Run) -> bool:
    """Whether the worker finished or failed for a reason of its own. A signal to us may have gone to it as well."""
    said = store.read_json(run.outcome) or {}
    return bool(said.get("finished") or said.get("failure"))


def interrupted(run: Run, stop: Stop, console: Console) -> RunFailed:
    checkpoint = run.last_checkpoint()
    where = f"at step {checkpoint[1]}; resume=true goes on from there" if checkpoint else "before the first checkpoint"
    console.print(f"stopped {where}", highlight=False)
    return RunFailed("stopped", exit_code=128 + stop.number)


@dataclasses.dataclass
class Stop:
    """What the user's signals ask for: to end after the step at hand, or at once."""

    asked: bool = False
    hard: bool = False
    number: int = signal.SIGINT


@contextlib.contextmanager
def stop_signals(run: Run) -> Iterator[Stop]:
    """Ctrl-C and SIGTERM: the first lets a training step end and saves it, the second ends all at once."""
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        training = (store.read_json(run.progress) or {}).get("phase") in store.STEPPING
        stop.hard = stop.asked or not training
        stop.asked, stop.number = True, number
        if training:
            run.stop_request.touch()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def server_of(
    run: Run, config: Config, plan: Processes, stop: Stop, progress: terminal.Progress
) -> Iterator[Callable[[], None] | None]:
    """The vLLM server of the run for its length, None where it has none or uses somebody else's. What it gives is to
    be called about once a second and raises ServerError when the server is dead."""
    if config.vllm.url is not None:
        attach(config.vllm.url, tp=plan.tp, dp=plan.dp, backend=str(plan.weight_transfer), timeout_s=30.0)
    if plan.server is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        log = Log(run.server_log)
        engines = [stack.enter_context(Child(one.argv, env=one.env, log=run.server_log)) for one in plan.engines]

        def on_progress(line: str) -> None:
            if stop.hard:
                raise KeyboardInterrupt
            check_engines(plan.engines, engines, log)
            progress.show(f"vLLM server | {line}")

        server = stack.enter_context(
            vllm_server(plan.server, log=run.server_log, timeout_s=config.timeouts.startup, on_progress=on_progress)
        )

        def check() -> None:
            check_engines(plan.engines, engines, log)
            server.check()

        yield check


def check_engines(commands: Sequence[Command], engines: Sequence[Child], log: Log) -> None:
    """Raises ServerError if one has ended: the server stays healthy, and waits, without its engines elsewhere."""
    for command, child in zip(commands, engines, strict=True):
        if (code := child.poll()) is not None:
            said = [f"the vLLM engines on {command.host} ended with exit code {code}", *log.causes(), log.tail()]
            raise ServerError("server_died", "\n".join(said))


def prepare(run: Run, config: Config, plan: Processes, progress: terminal.Progress, stop: Stop) -> None:
    """Make the checkpoint with random weights where the run needs one that is not there yet."""
    if plan.prepare is None:
        return
    progress.show("drawing random weights")
    with Child(plan.prepare.argv, env=plan.prepare.env, log=run.worker_log) as child:
        while (code := child.poll()) is None:
            time.sleep(POLL_S)
            if stop.hard:
                raise KeyboardInterrupt
    if code != 0:
        raise Failure("error", f"drawing random weights ended with exit code {code}", run.worker_log)


def train(
    run: Run,
    config: Config,
    plan: Processes,
    progress: terminal.Progress,
    stop: Stop,
    check_server: Callable[[], None] | None,
) -> None:
    """Start the trainer and wait for its end. Raises Failure, ServerError, KeyboardInterrupt on a second signal."""
    told, log = False, Log(run.worker_log)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(one.argv, env=one.env, log=run.worker_log)) for one in plan.trainer]
        watchdog = Watchdog(run, config.timeouts)
        while (code := ended(children)) is None:
            time.sleep(POLL_S)
            if stop.hard:
                raise KeyboardInterrupt
            if stop.asked and not told:
                progress.say("stopping after this step (once more: at once)")
                told = True
            progress.update()
            if check_server is not None:
                check_server()
            if overdue := watchdog.overdue():
                raise Failure("timeout", with_server_log(overdue + past_nccl(plan, overdue), run), run.worker_log)
        if code != 0:
            failure = failure_of(run, code, log)
            failure.row["message"] += past_nccl(plan, failure.row["message"])
            if check_server is not None and failure.row["class"] in BLAMELESS:
                await_server_s_end(check_server)
            raise failure


def ended(children: Sequence[Child]) -> int | None:
    """0 when all have ended well, the exit code of the first that did not, None while there is neither."""
    codes = [child.poll() for child in children]
    return next((code for code in codes if code), None if None in codes else 0)


def await_server_s_end(check_server: Callable[[], None]) -> None:
    """Raises ServerError if the server ends shortly after the trainer: the trainer then failed because of it, and
    noticed first. vLLM takes some five seconds to notice the death of an engine."""
    deadline = time.monotonic() + SERVER_ENDS_S
    while time.monotonic() < deadline:
        check_server()
        time.sleep(POLL_S)


def past_nccl(plan: Processes, message: str) -> str:
    """The way out where it may be NCCL that does not reach from the trainer to the server."""
    signs = ("NCCL", "sending the weights to vLLM", "while the trainer starts")
    if plan.weight_transfer != "nccl" or not any(sign in message for sign in signs):
        return ""
    return "\nif NCCL cannot reach from trainer to server: vllm.weight_transfer=gloo sends the weights through the CPU"


def with_server_log(message: str, run: Run) -> str:
    """The message and what the run's server said last, if it has one."""
    return f"{message}\n{Log(run.server_log, whole=True).tail()}" if run.server_log.is_file() else message


def failure_of(run: Run, code: int, log: Log) -> Failure:
    """What the worker said itself, otherwise what its exit code and the end of its log say."""
    said = (store.read_json(run.outcome) or {}).get("failure")
    number = -code if code < 0 else code - 128  # the second is srun's, of a command on another machine
    if number not in KILLING:
        number = next((number for number in log.signals() if number in KILLING), 0)
    if number and (not said or said["class"] == "worker_crash"):  # one rank was, the others failed because of it
        memory = "; out of host memory?" if number == signal.SIGKILL else ""
        return Failure("killed", f"the worker was killed (signal {number}){memory}", run.worker_log)
    if said:
        return Failure(said["class"], with_server_log(said["message"], run), run.worker_log)
    if nearly_full(run.folder):
        return Failure("disk_full", str(DiskFull(run.folder)), run.worker_log)
    said = [f"the worker ended with exit code {code}", *log.causes(), log.tail()]
    return Failure("worker_crash", "\n".join(said), run.worker_log)
