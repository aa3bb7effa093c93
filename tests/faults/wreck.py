"""A run that is struck at a chosen moment, what must be left of it, and what it must be after `resume=true`."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

from grpo_lab.machine.ports import port_range
from grpo_lab.machine.processes import carriers
from grpo_lab.machine.warden import held_segments
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.offline_wandb import history, wandb_records

STEPS, SAVE = 6, 3


@dataclass(frozen=True)
class Blow:
    """`number`: which of the moments; its randomness follows from all four, so that it can be repeated."""

    victim: str
    signals: tuple[signal.Signals, ...]
    moment: str
    number: int

    def __str__(self) -> str:
        return f"{self.victim}-{'-then-'.join(one.name[3:] for one in self.signals)}-{self.number}-{self.moment}"


VICTIMS: dict[str, Callable[[list[str], dict[str, str]], bool]] = {
    "rank0": lambda argv, env: "grpo_lab.worker" in argv and env.get("RANK", "0") == "0" and "-m" in argv[:3],
    "rank1": lambda argv, env: "grpo_lab.worker" in argv and env.get("RANK") == "1",
    "server": lambda argv, env: "vllm.entrypoints.cli.main" in argv,
    "engine": lambda argv, env: argv[0].startswith("VLLM::EngineCore"),
    "fake_vllm": lambda argv, env: argv[1:2] != [] and argv[1].endswith("fake_vllm.py"),
}
"""Of the processes that carry the run's mark."""


def find(run: Run, victim: str, conductor: Popen[str]) -> psutil.Process | None:
    if victim == "conductor":
        return psutil.Process(conductor.pid)
    for process in carriers(RUN_VARIABLE, str(run.folder)):
        try:
            argv, env = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        launcher = "warden.py" in " ".join(argv[:5]) or "torch.distributed.run" in argv
        if argv and not launcher and VICTIMS[victim](argv, env):
            return process
    return None


def strike(run: Run, blow: Blow, conductor: Popen[str], patience_s: float) -> set[str]:
    """Wait for the moment, and a random while longer; then send the signals. The shared memory of that moment."""
    chance = random.Random(str(blow))
    until(lambda: find(run, blow.victim, conductor), conductor, blow, patience_s, every_s=0.05)
    step = chance.randint(1, STEPS - 1)
    saved = chance.choice((SAVE, STEPS))
    told = {
        "startup": lambda: True,
        "before": lambda: progress(run).get("phase") == "evaluating before",
        "sync": lambda: progress(run).get("doing") == "sync",
        "generate": lambda: progress(run).get("phase") == "training" and progress(run).get("doing") == "generate",
        "step": lambda: any(row["step"] >= step for row in run.rows()),
        "checkpoint": lambda: (run.checkpoints / f"checkpoint-{saved}").exists(),
        "after": lambda: progress(run).get("phase") == "evaluating after",
    }
    spread_s = {"startup": 5.0, "checkpoint": 0.2, "sync": 0.1}.get(blow.moment, 0.5)
    until(told[blow.moment], conductor, blow, patience_s, every_s=0.002)
    time.sleep(chance.uniform(0, spread_s))
    victim = find(run, blow.victim, conductor)
    assert victim is not None, f"{blow}: the victim is gone"
    held = segments(run)
    for number in blow.signals:
        victim.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(chance.uniform(0.5, 2))
    return held


def until(true: Callable[[], object], conductor: Popen[str], blow: Blow, patience_s: float, *, every_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert conductor.poll() is None, f"{blow}: the run ended before the moment came"
        assert time.monotonic() < deadline, f"{blow}: the moment did not come"
        time.sleep(every_s)


def progress(run: Run) -> store.Row:
    return store.read_json(run.progress) or {}


def expect_nothing_left(run: Run, held: set[str], patience_s: float = 30.0) -> None:
    """No process, nobody who listens on its ports, and nothing of the shared memory that it held."""
    deadline = time.monotonic() + patience_s
    while processes := carriers(RUN_VARIABLE, str(run.folder)):
        assert time.monotonic() < deadline, [process.cmdline() for process in processes]
        time.sleep(0.1)
    connections = [one for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port in ports(run)]
    assert not [one for one in connections if one.status in (psutil.CONN_LISTEN, psutil.CONN_ESTABLISHED)]
    assert not [name for name in held if Path(name).exists()]


def ports(run: Run) -> set[int]:
    first, last = port_range()
    plan = run.plan.read_text() if run.plan.exists() else ""
    found = re.findall(r'(?:127\.0\.0\.1:|port=|--port",\s*"|vllm_group_port": )(\d+)', plan)
    return {int(port) for port in found if first <= int(port) <= last}


def segments(run: Run) -> set[str]:
    """Shared memory and semaphores that the run's processes hold now."""
    return set().union(*(held_segments(process.pid) for process in carriers(RUN_VARIABLE, str(run.folder))))


def expect_whole(run: Run) -> None:
    """Every step once, in the record and in W&B, and the tracker's run is one."""
    assert store.read_json(run.result)["status"] == "finished"
    assert [row["step"] for row in run.rows()] == list(range(1, STEPS + 1))
    assert store.read_json(run.evaluation("after")) is not None
    identity = store.read_json(run.env)["run_id"]
    folders = [folder.name for folder in (run.folder / "wandb").glob("offline-run-*")]
    assert folders
    assert all(folder.endswith(f"-{identity}") for folder in folders)
    newest = history(wandb_records(run.folder, identity)[-1])
    assert [step for step in newest if "loss" in newest[step]] == list(range(1, STEPS + 1))
    assert [newest[row["step"]]["loss"] for row in run.rows()] == [row["loss"] for row in run.rows()]
