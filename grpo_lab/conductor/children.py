"""The processes of a job: started, watched, ended; and why they failed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from grpo_lab.conductor.console import Progress
from grpo_lab.conductor.signals import Stop
from grpo_lab.conductor.watchdog import Watchdog
from grpo_lab.config.schema import Config
from grpo_lab.machine.disk import SAID, DiskFull, nearly_full
from grpo_lab.machine.logs import Log
from grpo_lab.machine.processes import Child
from grpo_lab.planner.parts import Command
from grpo_lab.server.command import ServerPlan
from grpo_lab.server.process import ServerError, attach, vllm_server
from grpo_lab.store import records
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Failure

POLL_S = 0.2
SERVER_ENDS_S = 15.0
"""From a broken connection to the end of the server that broke it: two of its health checks, and a little."""
BLAMELESS = ("worker_crash", "server_died", "error")
"""Failure classes a trainer may report when the real cause is its server."""
KILLING = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from outside; others are crashes."""

CheckServer = Callable[[], None]
"""To be called about once a second; raises ServerError when the server is dead."""


class Failed(RuntimeError):
    """A process of the job failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Processes(Protocol):
    """The part of a plan that is started."""

    @property
    def tp(self) -> int: ...
    @property
    def dp(self) -> int: ...
    @property
    def server(self) -> ServerPlan | None: ...
    @property
    def server_gpus(self) -> tuple[str, ...]: ...
    @property
    def engines(self) -> tuple[Command, ...]: ...
    @property
    def trainer(self) -> tuple[Command, ...]: ...
    @property
    def prepare(self) -> Command | None: ...
    @property
    def weight_transfer(self) -> str | None: ...


class Children:
    """Starts what a job needs and waits for it. Every method raises KeyboardInterrupt once all is to end at once."""

    def __init__(self, run: Run, config: Config, stop: Stop, progress: Progress) -> None:
        self.run, self.config, self.stop, self.progress = run, config, stop, progress

    def prepare(self, command: Command | None) -> None:
        """Make the checkpoint with random weights where the job needs one that is not there yet. Raises Failed."""
        if command is None:
            return
        self.progress.show("drawing random weights")
        if code := self.finish([command], self.run.worker_log, lambda: None):
            message = f"drawing random weights ended with exit code {code}"
            raise Failed(Failure("error", message, str(self.run.worker_log)))

    def finish(self, commands: Sequence[Command], log: Path, on_poll: Callable[[], None]) -> int:
        """Start the commands and wait for their end: 0, or the exit code of the first that did not end well."""
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(Child(command.argv, env=command.env, log=log)) for command in commands]
            while (code := ended(children)) is None:
                time.sleep(POLL_S)
                if self.stop.hard:
                    raise KeyboardInterrupt
                on_poll()
            return code

    def train(self, plan: Processes, check_server: CheckServer | None) -> None:
        """Start the plan's trainer and wait for its end. Raises Failed, ServerError."""
        log, asked = Log(self.run.worker_log), False
        watchdog = Watchdog(self.run, self.config.timeouts)

        def look() -> None:
            nonlocal asked
            if self.stop.asked and not asked:
                self.progress.say("stopping after this step (once more: at once)")
                asked = True
            self.progress.update()
            if check_server is not None:
                check_server()
            if overdue := watchdog.overdue():
                message = with_server_log(overdue + past_nccl(plan, overdue), self.run)
                raise Failed(Failure("timeout", message, str(self.run.worker_log)))

        if code := self.finish(plan.trainer, self.run.worker_log, look):
            failure = failure_of(self.run, code, log)
            if check_server is not None and failure.class_ in BLAMELESS:
                await_server_end(check_server)
            raise Failed(failure.adding(past_nccl(plan, failure.message)))
        if not self.stop.asked and not ended_by_itself(self.run):
            at = records.read(self.run.progress, records.Progress) or records.Progress("loading")
            message = f"the worker ended early, without saying why ({at.phase} {at.done}/{at.total})"
            raise Failed(Failure("error", message, str(self.run.worker_log)))

    @contextlib.contextmanager
    def server(self, plan: Processes) -> Iterator[CheckServer | None]:
        """Run the job's vLLM server for the block; None where it has none or uses somebody else's."""
        if self.config.vllm.url is not None:
            backend = str(plan.weight_transfer)
            attach(self.config.vllm.url, tp=plan.tp, dp=plan.dp, backend=backend, timeout_s=30.0)
        if plan.server is None:
            yield None
            return
        with contextlib.ExitStack() as stack:
            file, log = self.run.server_log, Log(self.run.server_log)
            engines = [stack.enter_context(Child(engine.argv, env=engine.env, log=file)) for engine in plan.engines]

            def on_progress(line: str) -> None:
                if self.stop.hard:
                    raise KeyboardInterrupt
                check_engines(plan.engines, engines, log)
                self.progress.show(f"vLLM server | {line}")

            timeout_s = self.config.timeouts.startup
            server = stack.enter_context(
                vllm_server(plan.server, log=file, timeout_s=timeout_s, on_progress=on_progress)
            )

            def check() -> None:
                check_engines(plan.engines, engines, log)
                server.check()

            yield check


def ended(children: Sequence[Child]) -> int | None:
    """0 when all have ended well, the exit code of the first that did not, None while there is neither."""
    codes = [child.poll() for child in children]
    return next((code for code in codes if code), None if None in codes else 0)


def ended_by_itself(run: Run) -> bool:
    """Whether the worker finished or failed for a reason of its own. A signal to us may have gone to it as well."""
    outcome = run.read_outcome()
    return bool(outcome.finished or outcome.failure)


def check_engines(commands: Sequence[Command], engines: Sequence[Child], log: Log) -> None:
    """Raises ServerError if one has ended: the server stays healthy, and waits, without its engines elsewhere."""
    for command, child in zip(commands, engines, strict=True):
        if (code := child.poll()) is not None:
            lines = [f"the vLLM engines on {command.host} ended with exit code {code}", *log.causes(), log.tail()]
            raise ServerError("server_died", "\n".join(lines))


def await_server_end(check_server: CheckServer) -> None:
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
    """The message and the last lines of the run's server, if it has one."""
    return f"{message}\n{Log(run.server_log, whole=True).tail()}" if run.server_log.is_file() else message


def of_server(run: Run, error: ServerError) -> Failure:
    return Failure(error.failure_class, str(error), str(run.server_log) if run.server_log.is_file() else None)


def failure_of(run: Run, code: int, log: Log) -> Failure:
    """The failure that the worker left, otherwise what its exit code, the disk and the end of its log say."""
    failure, file = run.read_outcome().failure, str(log.path)
    number = -code if code < 0 else code - 128  # the second is srun's, of a command on another machine
    if number not in KILLING:
        number = next((number for number in log.signals() if number in KILLING), 0)
    if number and (not failure or failure.class_ == "worker_crash"):  # one rank was, the others failed because of it
        memory = "; out of host memory?" if number == signal.SIGKILL else ""
        return Failure("killed", f"the worker was killed (signal {number}){memory}", file)
    if failure:
        return Failure(failure.class_, with_server_log(failure.message, run), file)
    causes = log.causes()
    # DiskFull names the file; the library's error that it came from stands before it.
    full = max((cause[cause.index(SAID) :] for cause in causes if SAID in cause), key=len, default=None)
    if full or nearly_full(run.folder):
        return Failure("disk_full", full or str(DiskFull(run.folder)), file)
    return Failure("worker_crash", "\n".join([f"the worker ended with exit code {code}", *causes, log.tail()]), file)
