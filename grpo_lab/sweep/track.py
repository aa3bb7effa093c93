"""Where each point stands, and what its end means."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from grpo_lab.conductor.signals import STOPPING
from grpo_lab.config.errors import BadModel, BadReward
from grpo_lab.machine.logs import Log
from grpo_lab.store import folder as store
from grpo_lab.store import records
from grpo_lab.store import train as results
from grpo_lab.store.records import Failure, Result
from grpo_lab.sweep.launchers.base import Attempt
from grpo_lab.sweep.points import Point

TRANSIENT = ("server_died", "server_timeout", "killed")
"""Classes of failure that another try may not meet."""
REFUSED = 2
"""Exit code of a run that was refused before it started."""
CLASSED = (BadModel.failure_class, BadReward.failure_class)
"""Classes of failure by which a refusal begins."""
ENDED = ("finished", "failed", "infeasible", "interrupted")


@dataclass
class Track:
    """One point on its way. `state`: waiting, queued, running, or one of ENDED."""

    point: Point
    log: Path
    """What its process prints."""
    state: str = "waiting"
    attempt: Attempt | None = None
    tries: int = 0
    began: float | None = None
    """Monotonic seconds; of the try at hand, from when it runs."""
    failure: Failure | None = None
    before: bool = False
    """Ended in an earlier call; nothing was done now."""
    seconds: float = field(default=0.0)
    """Of the last try."""

    printed: Log | None = None
    """By the try at hand."""

    def begin(self, attempt: Attempt, printed: Log) -> None:
        self.attempt, self.printed, self.tries, self.began, self.failure = attempt, printed, self.tries + 1, None, None
        self.follow()

    def follow(self) -> None:
        """Take over what the engine says."""
        assert self.attempt is not None
        self.state = "running" if self.attempt.running else "queued"
        if self.attempt.running and self.began is None:
            self.began = time.monotonic()

    def end(self, state: str, failure: Failure | None = None) -> None:
        self.seconds = time.monotonic() - self.began if self.began is not None else 0.0
        self.state, self.failure, self.attempt = state, failure, None


def state_on_disk(point: Point) -> tuple[str, Failure | None]:
    """How an earlier call left a point: `finished` or `failed` with the reason, otherwise `waiting`."""
    result = records.read(point.run.result, Result) if point.config else None
    if result and point.config and (results.is_whole(result, point.config) or result.status == "failed"):
        return result.status, result.failure
    return "waiting", None


def judge(point: Point, code: int, printed: Log) -> Failure | None:
    """Why a try that ended with this exit code failed; None if it did not."""
    result = records.read(point.run.result, Result) if point.config else None
    if result:
        return result.failure
    if code == 0 and point.config is None:
        return None
    number = -code if code < 0 else code - 128
    if number in (signal.SIGKILL, *STOPPING):
        return Failure("killed", f"the point's process was ended by signal {number}", str(printed.path))
    if code == REFUSED:
        refusal = printed.refusal()
        kind = next((kind for kind in CLASSED if refusal.startswith(f"{kind}: ")), "error")
        return Failure(kind, refusal.removeprefix(f"{kind}: "), str(printed.path))
    causes = printed.causes() or [printed.tail()]
    message = "\n".join([f"the point's process ended with exit code {code} and left no result", *causes])
    return Failure("error", message, str(printed.path))


def write_result(point: Point, status: str, failure: Failure) -> None:
    """result.json of a point whose own process left none: it never started, or was ended from outside."""
    run = point.run
    if point.config is None:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.config.is_file():
        store.save_config(point.config, run.config)
    config = point.config
    result = Result(
        kind=config.kind,
        status=status,
        failure=failure,
        model=config.model.name,
        vllm_mode=config.vllm.mode,
        tp=config.vllm.tp,
        dp=config.vllm.dp,
        gpus=point.need.gpus,
        seed=config.seed,
        steps=len(run.rows()),
        warmup_steps=config.warmup_steps,
    )
    records.write(run.result, result)
