"""What Slurm says of its nodes and of our jobs, and what we tell it. No accounting (`sacct`) is needed."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from grpo_lab.config.errors import RequestError
from grpo_lab.machine.gpus import Gpu, Machine, read_machine

ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
BY_ITSELF = ("COMPLETED", "FAILED")
QUEUED = ("CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
PATIENCE_S = 60.0
SOON_S = 2.0
LONGEST_MINUTES = 365 * 24 * 60
"""For a partition without a limit: submitit counts in minutes and has no word for none."""


@dataclass(frozen=True)
class Job:
    """A line of Slurm's queue, where ended jobs stay for some minutes."""

    id: str
    state: str
    place: str
    """Its nodes, or `(why it waits)`."""
    name: str

    @property
    def living(self) -> bool:
        return self.state not in ENDED

    @property
    def running(self) -> bool:
        return self.living and self.state not in QUEUED

    @property
    def where(self) -> str:
        return f"{self.place} (job {self.id})" if self.running else f"queued (job {self.id}: {self.place.strip('()')})"


class SlurmQueue:
    """This user's jobs, asked for at most every `every_s` seconds. May be used from several threads."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._asked_at = self._read_at = -math.inf

    def jobs(self, *, since: float = 0.0, soon: bool = False) -> dict[str, Job] | None:
        """By id. None while the newest answer is older than `since` (monotonic seconds), or Slurm does not answer.

        `soon`: somebody waits, so ask more often.
        """
        with self._lock:
            if time.monotonic() - self._asked_at > (min(SOON_S, self._every_s) if soon else self._every_s):
                begun, told = time.monotonic(), self._ask()
                self._asked_at = time.monotonic()
                if told is not None:
                    self._jobs, self._read_at = told, begun
            return self._jobs if self._read_at >= since else None

    def _ask(self) -> dict[str, Job] | None:
        answer = call("squeue", "--noheader", "--all", "--me", "--states=all", "--format=%i|%T|%R|%j")
        if answer.returncode != 0:
            return None
        lines = [line.split("|", 3) for line in answer.stdout.splitlines()]
        return {line[0]: Job(*line) for line in lines}

    def signal(self, id: str, number: int) -> None:
        """To the job's steps. For a job that waits again, scancel would try for a minute."""
        call("scancel", f"--signal={number}", id, patience_s=SOON_S)

    def cancel(self, id: str) -> None:
        call("scancel", id)


class LocalQueue(SlurmQueue):
    """The same of submitit's jobs on this machine, each of which has a process that watches over it."""

    def _ask(self) -> dict[str, Job]:
        jobs = {}
        for process in psutil.process_iter(["cmdline"]):
            arguments = process.info["cmdline"] or []
            if "submitit.local._local" in arguments:
                jobs[str(process.pid)] = Job(str(process.pid), "RUNNING", "here", job_name(Path(arguments[-1])))
        return jobs

    def signal(self, id: str, number: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(int(id)).children():
                process.send_signal(number)

    def cancel(self, id: str) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(int(id)).terminate()


def job_name(folder: Path) -> str:
    """Of the job that keeps its files in this folder; the same for every try of a point, and no other point's."""
    return f"{folder.stem}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def call(*argv: str, patience_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Raises RequestError where Slurm is not installed; an unanswered call has the exit code 1."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=patience_s, check=False)
    except FileNotFoundError:
        way_out = "start this where Slurm's commands are, or use hydra/launcher=local"
        raise RequestError(f"{argv[0]}: not found; {way_out}") from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", f"{argv[0]} did not answer within {patience_s:g} s")


@dataclass(frozen=True)
class Partition:
    """The largest node of a partition, and how long a job may last."""

    machine: Machine
    memory_mib: int
    minutes: int


def read_partition(parameters: Mapping[str, object]) -> Partition:
    """Of the partition that jobs go to, among nodes with the one feature asked for by `constraint`.

    Raises RequestError if Slurm does not answer or has no such node.
    """
    name, feature = parameters.get("partition"), parameters.get("constraint")
    chosen = [f"--partition={name}"] if name else []
    answer = call("sinfo", "--noheader", "--exact", *chosen, "--format=%P|%c|%m|%l|%f|%G")
    if answer.returncode != 0:
        raise RequestError(f"Slurm does not answer: {answer.stderr.strip() or 'sinfo failed'}")
    rows = [line.split("|", 5) for line in answer.stdout.splitlines()]
    rows = [row for row in rows if name or row[0].endswith("*")]
    if isinstance(feature, str) and feature.isidentifier():
        rows = [row for row in rows if feature in row[4].split(",")]
    if not rows:
        asked = ", ".join(f"{key}={value}" for key, value in (("partition", name), ("constraint", feature)) if value)
        raise RequestError(f"Slurm has no node for {asked or 'jobs without a partition'}; sinfo lists what there is")
    nodes = [(read_gpus(row[5]), int(row[1]), int(row[2]), read_minutes(row[3])) for row in rows]
    gpus, cores, mebibytes, minutes = max(nodes, key=lambda node: (len(node[0]), *node[1:]))
    return Partition(Machine(gpus, cores, mebibytes / 1024, read_machine(0).versions), mebibytes, minutes)


def read_gpus(gres: str) -> tuple[Gpu, ...]:
    """GPUs of a node from its generic resources: `gpu:4`, `gpu:h100:4(S:0-1),gpu:a100:2`, `(null)`.

    A type becomes a name as NVIDIA writes it (`nvidia_a100-sxm4` -> `NVIDIA A100 SXM4`); memory is not known.
    """
    found = re.findall(r"(?:^|,)gpu(?::([^:,(]*[^\d:,(][^:,(]*))?:(\d+)", gres)
    names = [re.sub(r"[_-]", " ", kind or "gpu").upper() for kind, count in found for _ in range(int(count))]
    return tuple(Gpu(str(number), name, 0.0) for number, name in enumerate(names))


def read_minutes(limit: str) -> int:
    """`1-12:00:00`, `04:00:00`, `30:00` (minutes and seconds), `infinite`."""
    days, _, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return LONGEST_MINUTES
    hours, minutes = int(parts[-3]) if len(parts) > 2 else 0, int(parts[-2]) if len(parts) > 1 else 0
    return min((int(days or 0) * 24 + hours) * 60 + minutes, LONGEST_MINUTES)
