"""One run from its first process to its result: start what the plan says, watch it, stop it, sum it up."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Protocol

from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor.adornment import adorn
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
from grpo_lab.store import completions, records
from grpo_lab.store import folder as store
from grpo_lab.store import picture as curve
from grpo_lab.store import train as results
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Failure, Progress, Result

POLL_S = 0.2
SERVER_ENDS_S = 12.0
"""Two of the server's health checks, and a little."""
BLAMELESS = ("worker_crash", "server_died", "error")
"""How a trainer fails whose server fails."""
KILLING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from outside; others are crashes."""


class Failed(RuntimeError):
    """A process of the run failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


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


def execute(run: Run, config: Config, plan: Plan, console: Console) -> Result:
    """Start the children, wait for the end, write result.json. Raises RunFailed if the run did not finish."""
    failure: Failure | None = None
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
        except Failed as failed:
            failure = failed.failure
        except ServerError as error:
            failure = of_server(run, error)
        except OSError as error:
            if not is_full(error, run.folder):
                raise
            failure = Failure("disk_full", str(error))
        except KeyboardInterrupt:
            stop.hard = True
    if stop.asked and not ended_by_itself(run):
        raise interrupted(run, stop, console)
    if failure and failure.class_ == "oom" and (way_out := advice(config, plan, read_machine(config.gpus))):
        failure = failure.adding(f"\n{way_out}")
    result = sum_up(run, config, plan, failure, seen, console)
    terminal.summary(console, run, result, run.read_outcome().look)
    if result.failure:
        terminal.failure(console, result.failure)
        if not run.result.is_file():
            console.print(f"  cannot write {run.result}: no room on the disk", highlight=False, soft_wrap=True)
        raise RunFailed(result.failure.message)
    return result


def of_server(run: Run, error: ServerError) -> Failure:
    return Failure(error.failure_class, str(error), str(run.server_log) if run.server_log.is_file() else None)


def sum_up(run: Run, config: Config, plan: Plan, failure: Failure | None, server: Row, console: Console) -> Result:
    """Write what a run leaves; the result. A disk without room for it makes the run a failed one."""
    run.ballast.unlink(missing_ok=True)
    try:
        completions.gather(run)
    except DiskFull as error:
        failure = failure or Failure("disk_full", str(error))
    result = results.build(run, config, plan, failure=failure, server=server)
    try:
        records.write(run.result, result)
    except DiskFull as error:
        failure = failure or Failure("disk_full", str(error))
        result = dataclasses.replace(result, status="failed", failure=failure)
    adorn(console, "no picture", lambda: curve.draw(run, result))
    return result


def ended_by_itself(run: Run) -> bool:
    """Whether the worker finished or failed for a reason of its own. A signal to us may have gone to it as well."""
    outcome = run.read_outcome()
    return bool(outcome.finished or outcome.failure)


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
        progress = records.read(run.progress, Progress)
        training = progress is not None and progress.phase in store.STEPPING
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
            lines = [f"the vLLM engines on {command.host} ended with exit code {code}", *log.causes(), log.tail()]
            raise ServerError("server_died", "\n".join(lines))


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
        raise Failed(Failure("error", f"drawing random weights ended with exit code {code}", str(run.worker_log)))


def train(
    run: Run,
    config: Config,
    plan: Processes,
    progress: terminal.Progress,
    stop: Stop,
    check_server: Callable[[], None] | None,
) -> None:
    """Start the trainer and wait for its end. Raises Failed, ServerError, KeyboardInterrupt on a second signal."""
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
                message = with_server_log(overdue + past_nccl(plan, overdue), run)
                raise Failed(Failure("timeout", message, str(run.worker_log)))
        if code != 0:
            failure = failure_of(run, code, log)
            if check_server is not None and failure.class_ in BLAMELESS:
                await_server_s_end(check_server)
            raise Failed(failure.adding(past_nccl(plan, failure.message)))
    if not stop.asked and not ended_by_itself(run):
        at = records.read(run.progress, Progress) or Progress("loading")
        where = f"{at.phase} {at.done}/{at.total}"
        raise Failed(Failure("error", f"the worker ended early, without saying why ({where})", str(run.worker_log)))


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
    failure, file = run.read_outcome().failure, str(run.worker_log)
    number = -code if code < 0 else code - 128  # the second is srun's, of a command on another machine
    if number not in KILLING:
        number = next((number for number in log.signals() if number in KILLING), 0)
    if number and (not failure or failure.class_ == "worker_crash"):  # one rank was, the others failed because of it
        memory = "; out of host memory?" if number == signal.SIGKILL else ""
        return Failure("killed", f"the worker was killed (signal {number}){memory}", file)
    if failure:
        return Failure(failure.class_, with_server_log(failure.message, run), file)
    if nearly_full(run.folder):
        return Failure("disk_full", str(DiskFull(run.folder)), file)
    lines = [f"the worker ended with exit code {code}", *log.causes(), log.tail()]
    return Failure("worker_crash", "\n".join(lines), file)
