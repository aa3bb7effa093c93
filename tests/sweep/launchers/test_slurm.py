"""Points on a real Slurm, with its queue, its GPUs (make-believe), preemption and requeueing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.sweep.launchers import slurm as module
from grpo_lab.sweep.launchers.base import Need
from grpo_lab.sweep.launchers.slurm import SlurmBackend
from tests.machine.test_processes import marked
from tests.sweep.launchers.points import (
    DEAF,
    ENDS,
    RESUME,
    SHOW,
    WAIT,
    begun,
    code_of,
    ending_works,
    launcher,
    said,
    until,
    work,
)

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm", "mark")]

LAUNCHER = """
import sys, time
from pathlib import Path
from grpo_lab.sweep.launchers.slurm import SlurmBackend
from tests.sweep.launchers.points import work
attempt = SlurmBackend(every_s=0.2).start(work(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
while not attempt.running:
    attempt.poll()
    time.sleep(0.1)
print(attempt.where, flush=True)
time.sleep(600)
"""


def backend(**parameters: Any) -> SlurmBackend:
    return SlurmBackend(parameters=parameters, every_s=0.2)


def slurm_says(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def job_of(where: str) -> str:
    return where.partition("(job ")[2].partition(")")[0].partition(":")[0]


def test_the_machine_is_a_node_of_the_partition() -> None:
    machine = backend(partition="high", constraint="new").machine
    assert [gpu.id for gpu in machine.gpus] == ["0", "1", "2", "3"]
    assert machine.gpus[0].peak_flops == 312e12
    assert (machine.cores, round(machine.memory_gib, 1)) == (4, 3.9)
    assert "torch" in machine.versions


@pytest.mark.parametrize("parameters", [{"partition": "hihg"}, {"constraint": "newer"}])
def test_no_such_node(parameters: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="=".join(*parameters.items())):
        backend(**parameters)


def test_points_side_by_side_with_gpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("CUDA_VISIBLE_DEVICES", "POINT", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE", "SLURM_JOB_NUM_NODES")
    code = SHOW.format(names=names) + "; import time; print('up', flush=True); time.sleep(2)"
    engine = backend(nodelist="n1")
    tasks = [work(tmp_path, code, need=Need(gpus=2, cores=2), name=f"p{i}") for i in range(2)]
    attempts = [engine.start(task) for task in tasks]
    attempts = [begun(attempt, task) for attempt, task in zip(attempts, tasks, strict=True)]
    assert [attempt.where.partition(" (job ")[0] for attempt in attempts] == ["n1", "n1"]
    assert [code_of(attempt) for attempt in attempts] == [0, 0]
    assert said(tasks[0]) == [f"0,1 p0 2 1900 1 {tmp_path}", "up"]
    assert said(tasks[1]) == [f"2,3 p1 2 1900 1 {tmp_path}", "up"]


def test_exit_codes(tmp_path: Path) -> None:
    engine = backend()
    tasks = ending_works(tmp_path)
    attempts = [engine.start(task) for task in tasks]
    assert [code_of(attempt) for attempt in attempts] == ENDS
    assert "no-such-command" in said(tasks[2])[0]


def test_a_point_over_two_nodes_starts_once_and_reaches_the_other(tmp_path: Path) -> None:
    other = "srun --nodes=1 --ntasks=1 --overlap --nodelist=n2 printenv SLURMD_NODENAME CUDA_VISIBLE_DEVICES"
    task = work(tmp_path, f"import os; print(os.environ['SLURMD_NODENAME'], flush=True); os.system({other!r})",
                need=Need(gpus=4, cores=4, nodes=2))  # fmt: skip
    assert code_of(backend().start(task)) == 0
    assert said(task) == ["n1", "n2", "0,1,2,3"]


def test_points_that_must_leave_their_nodes_come_again_and_go_on(tmp_path: Path) -> None:
    """Preempted with no notice but SIGTERM, preempted with a minute's, at the time limit, and when the node fails."""
    engines = {
        "preempted": backend(nodelist="n1", mem="1GB"),
        "warned": backend(nodelist="n2", mem="1GB", partition="grace"),
        "time": backend(nodelist="n1", mem="1GB", partition="high", time=5),
        "node": backend(nodelist="n3", partition="high"),
    }
    tasks = {
        name: work(tmp_path, RESUME, tmp_path / f"{name}.saved", need=Need(gpus=0 if name == "time" else 4), name=name)
        for name in engines
    }
    queued = {name: engine.start(tasks[name]) for name, engine in engines.items()}
    attempts = {name: begun(attempt, tasks[name]) for name, attempt in queued.items()}
    jobs = {name: job_of(attempt.where) for name, attempt in attempts.items()}

    def left(name: str) -> bool:
        assert attempts[name].poll() is None
        return not attempts[name].running

    slurm_says("scancel", "--signal=USR2", jobs["time"])  # what Slurm sends before the limit
    slurm_says("scontrol", "update", "nodename=n3", "state=down", "reason=test")
    with subprocess.Popen(
        ["srun", "--quiet", "-p", "high", "-w", "n1,n2", "--gpus-per-node=4", "--mem=500", "sleep", "1"]
    ):
        until(lambda: left("preempted") and left("warned") and left("time") and left("node"))
        # Refused where the node has reported back by itself.
        subprocess.run(["scontrol", "update", "nodename=n3", "state=resume"], capture_output=True, check=False)
    for name, attempt in attempts.items():
        assert attempt.where.startswith(f"queued (job {jobs[name]}: ")
    for name, attempt in attempts.items():
        assert code_of(attempt) == 0, name
        assert job_of(attempt.where) == jobs[name]
        assert said(tasks[name]) == ["up", "saved", "goes on"]


def test_a_point_that_reaches_its_time_limit_too_often(tmp_path: Path) -> None:
    task = work(tmp_path, RESUME, tmp_path / "checkpoint")
    attempt = begun(SlurmBackend(parameters={"time": 5}, requeues=0, every_s=0.2).start(task), task)
    slurm_says("scancel", "--signal=USR2", job_of(attempt.where))
    assert code_of(attempt) == -signal.SIGTERM
    assert said(task)[:2] == ["up", "saved"]
    assert "timed-out too many times" in task.log.read_text()


def test_cancelled_by_hand_is_lost_and_stays_so(tmp_path: Path) -> None:
    task = work(tmp_path, RESUME, tmp_path / "checkpoint")
    attempt = begun(backend().start(task), task)
    job = job_of(attempt.where)
    slurm_says("scancel", job)
    assert code_of(attempt) == -signal.SIGKILL
    assert slurm_says("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T") == "CANCELLED"
    assert "CANCELLED" in said(task)[-1]


def test_killed_on_its_node(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESULT_LAG_S", 1.0)
    task = work(tmp_path, RESUME, tmp_path / "saved")
    attempt = begun(backend().start(task), task)
    job = next(process for process in marked(mark) if process.cmdline()[2:4] == ["-m", "submitit.core._submit"])
    job.kill()
    assert code_of(attempt) == -signal.SIGKILL
    until(lambda: not marked(mark))


def test_asked_to_end(tmp_path: Path) -> None:
    task = work(tmp_path, WAIT)
    attempt = begun(backend().start(task), task)
    attempt.ask()
    assert code_of(attempt) == 5
    assert said(task)[:3] == ["up", "saving", "saved"]  # its child is told only when what is left is cleared away


def test_stop_leaves_nothing(tmp_path: Path, mark: str) -> None:
    engine = backend(nodelist="n1")
    tasks = [work(tmp_path, DEAF, need=Need(gpus=4, cores=4), name=name) for name in "abc"]
    running, asked, stopped = (engine.start(task) for task in tasks)
    begun(running, tasks[0])
    assert running is not None
    assert asked is not None
    assert stopped is not None
    until(lambda: asked.poll() is None and stopped.poll() is None and "Resources" in asked.where + stopped.where)
    assert not asked.running
    asked.ask()  # it has nothing to save
    assert code_of(asked) == -signal.SIGKILL
    stopped.stop()
    assert stopped.poll() is not None
    running.stop()
    assert running.poll() is not None
    assert not marked(mark)
    assert not slurm_says("squeue", "--noheader")
    assert "up" not in said(tasks[1]) + said(tasks[2])


def test_a_new_launcher_finds_the_job_of_one_that_died(tmp_path: Path) -> None:
    with launcher(LAUNCHER, tmp_path, RESUME, tmp_path / "checkpoint") as first:
        where = first.readline().strip()
    task = work(tmp_path, RESUME, tmp_path / "checkpoint")
    attempt = begun(backend().start(task), task)
    assert attempt.where == where
    assert len(slurm_says("squeue", "--noheader").splitlines()) == 1
    attempt.ask()
    assert code_of(attempt) == 143
    assert said(task) == ["up", "saved"]
    assert code_of(backend().start(task)) == 0  # an ended one is not taken for the point's
    assert said(task)[-1] == "goes on"


def test_no_more_than_asked_for_at_once(tmp_path: Path) -> None:
    engine = SlurmBackend(max_parallel=1, every_s=0.2)
    first = engine.start(work(tmp_path, WAIT, name="a"))
    assert first is not None
    assert engine.start(second := work(tmp_path, "", name="b")) is None
    first.stop()
    assert code_of(engine.start(second)) == 0


@pytest.mark.parametrize(("exclusive", "shares"), [(True, "NO"), (False, "OK")])
def test_exclusive_points_share_no_node(tmp_path: Path, exclusive: bool, shares: str) -> None:
    attempt = SlurmBackend(exclusive=exclusive, every_s=0.2).start(work(tmp_path, ""))
    assert attempt is not None
    assert slurm_says("squeue", "--noheader", "--format=%h") == shares
    assert code_of(attempt) == 0


def test_what_slurm_refuses(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"Slurm refuses lr=1,seed=2: .*[Mm]emory"):
        backend(mem="1TB").start(work(tmp_path, ""))


def stand_in(folder: Path, name: str, script: str, patch: pytest.MonkeyPatch) -> None:
    (program := folder / name).write_text(f"#!/bin/sh\n{script}\nexit 1\n")
    program.chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_cluster_s_limit_on_jobs_means_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm has such limits only with accounting."""
    stand_in(tmp_path, "sbatch", f"echo >>{tmp_path}/calls; echo 'error: QOSMaxSubmitJobPerUserLimit' >&2", monkeypatch)
    engine = backend()
    assert engine.start(work(tmp_path, "")) is None
    assert engine.start(work(tmp_path, "")) is None
    assert (tmp_path / "calls").read_text() == "\n"  # it is not asked for more at once


def test_while_slurm_does_not_answer(tmp_path: Path) -> None:
    task, engine = work(tmp_path, RESUME, tmp_path / "saved"), backend()
    attempt = begun(engine.start(task), task)
    with pytest.MonkeyPatch.context() as patch:
        stand_in(tmp_path, "squeue", f"echo >>{tmp_path}/calls", patch)
        fresh = backend()
        with pytest.raises(RequestError, match="does not answer"):
            fresh.start(task)  # it could have a job already
        until(lambda: len((tmp_path / "calls").read_text()) > 3 or attempt.poll() is not None)
        assert attempt.running
    attempt.ask()
    assert code_of(attempt) == 143
