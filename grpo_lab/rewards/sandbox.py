"""Running a policy's programs where they can do no harm: each job in a process of `cell`, several at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from grpo_lab.rewards.cores import cores
from grpo_lab.rewards.remote import frame

CELL = Path(__file__).with_name("cell.py")
START_S = 60.0  # for Python to start on a busy machine, beyond a job's own time
PASSED_ON = ("PATH", "LD_LIBRARY_PATH")  # nothing else of our environment: it may hold keys


class Unconfined(RuntimeError):
    """Programs cannot be confined on this machine, so none is run. The message says what is missing."""


@dataclass(frozen=True)
class Job:
    """A program, `checks` (statements run after it) and `inputs` (each given to a run of it on stdin)."""

    program: str
    checks: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    seconds: float = 5.0
    """For all checks and inputs together."""
    memory_mb: int = 512
    output_bytes: int = 1_000_000


@dataclass(frozen=True)
class Outcome:
    passed: tuple[bool, ...]
    """One per check: it came to its end."""
    outputs: tuple[str | None, ...]
    """One per input: what was printed, None where the program did not end with exit code 0."""
    timed_out: bool


def run_all(jobs: Sequence[Job]) -> list[Outcome]:
    """One outcome a job, in order. Equal jobs run once. Raises Unconfined."""
    distinct = list(dict.fromkeys(jobs))
    if not distinct:
        return []
    with ThreadPoolExecutor(min(cores(), len(distinct))) as threads:
        known = dict(zip(distinct, threads.map(run, distinct), strict=True))
    return [known[job] for job in jobs]


def run(job: Job) -> Outcome:
    """Raises Unconfined."""
    header = {**asdict(job), "checks": len(job.checks)}
    frames = [frame(json.dumps(content).encode()) for content in (header, *job.checks)]
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", str(CELL)],
        input=b"".join(frames),
        capture_output=True,
        timeout=job.seconds + START_S,
        check=False,
        env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
        cwd="/",
    )
    if ended.returncode != 0:
        raise RuntimeError(
            f"{CELL.name} ended with {ended.returncode}: {ended.stderr.decode(errors='replace')[-1000:]}"
        )
    reply = json.loads(ended.stdout)
    if "refused" in reply:
        raise Unconfined(reply["refused"])
    return Outcome(tuple(reply["passed"]), tuple(reply["outputs"]), reply["timed_out"])


_FORBIDDEN = {
    "read a file": "open('/proc/self/environ')",
    "write a file": "open('/tmp/grpo-lab-probe', 'w')",
    "reach the network": "__import__('socket').socket()",
    "start a process": "__import__('os').fork()",
}


@cache
def missing() -> str | None:
    """Why programs cannot be confined here, by trying what they must not do; None where they can be."""
    probe = "try:\n    {}\nexcept PermissionError:\n    pass\nelse:\n    raise AssertionError"
    checks = tuple(probe.format(statement) for statement in _FORBIDDEN.values())
    try:
        outcome = run(Job("", checks=checks, seconds=START_S))
    except Unconfined as refusal:
        return str(refusal)
    able = [deed for deed, refused in zip(_FORBIDDEN, outcome.passed, strict=True) if not refused]
    return f"a program could still {able[0]}" if able else None
