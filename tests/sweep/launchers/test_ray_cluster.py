"""Points in a real Ray cluster of two nodes on this machine, each with two make-believe GPUs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.sweep.launchers.base import Need
from grpo_lab.sweep.launchers.ray_cluster import RayBackend
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

pytestmark = pytest.mark.usefixtures("mark")
TWO = Need(gpus=2)

LAUNCHER = """
import sys, time
from pathlib import Path
from grpo_lab.sweep.launchers.ray_cluster import RayBackend
from tests.sweep.launchers.points import work
RayBackend(address=sys.argv[1]).start(work(Path(sys.argv[2]), *sys.argv[3:]))
time.sleep(600)
"""


@pytest.fixture(scope="module")
def engine(ray_address: str) -> Iterator[RayBackend]:
    backend = RayBackend(address=ray_address)
    yield backend
    backend.close()


def raylet_of(process: psutil.Process) -> psutil.Process:
    """The node that a process runs on."""
    return next(parent for parent in process.parents() if parent.name() == "raylet")


def test_the_machine_is_a_node_of_the_cluster(engine: RayBackend) -> None:
    assert [gpu.id for gpu in engine.machine.gpus] == ["0", "1"]
    assert engine.machine.cores == 2
    assert engine.machine.memory_gib > 0.1


def test_points_on_both_nodes(tmp_path: Path, engine: RayBackend, mark: str) -> None:
    code = SHOW.format(names=("CUDA_VISIBLE_DEVICES", "POINT")) + "\nimport time; time.sleep(2)"
    tasks = [work(tmp_path, code, need=TWO, name=name) for name in "ab"]
    attempts = [engine.start(task) for task in tasks]
    until(lambda: len([one for one in marked(mark) if one.cmdline()[1:2] == ["-c"]]) == 2)
    nodes = {raylet_of(one).pid for one in marked(mark)}
    assert len(nodes) == 2
    assert [code_of(attempt) for attempt in attempts] == [0, 0]
    assert [said(task) for task in tasks] == [[f"0,1 {name} {Path.cwd()}"] for name in "ab"]


def test_points_on_one_node_have_gpus_of_their_own(tmp_path: Path, engine: RayBackend) -> None:
    code = SHOW.format(names=("CUDA_VISIBLE_DEVICES",)) + "; import time; print('up', flush=True); time.sleep(2)"
    tasks = [work(tmp_path, code, need=Need(gpus=1), name=str(number)) for number in range(4)]
    queued = [engine.start(task) for task in tasks]
    attempts = [begun(attempt, task) for attempt, task in zip(queued, tasks, strict=True)]
    assert sorted(attempt.where.split()[1:] for attempt in attempts) == [["GPU", "0"]] * 2 + [["GPU", "1"]] * 2
    assert [code_of(attempt) for attempt in attempts] == [0] * 4
    assert sorted(said(task)[0].split()[0] for task in tasks) == ["0", "0", "1", "1"]


def test_exit_codes(tmp_path: Path, engine: RayBackend) -> None:
    tasks = ending_works(tmp_path)
    attempts = [engine.start(task) for task in tasks]
    assert [code_of(attempt) for attempt in attempts] == ENDS
    assert "no-such-command" in said(tasks[2])[0]


def test_asked_to_end(tmp_path: Path, engine: RayBackend) -> None:
    task = work(tmp_path, WAIT)
    attempt = begun(engine.start(task), task)
    attempt.ask()
    assert code_of(attempt) == 5
    assert said(task)[:3] == ["up", "saving", "saved"]  # its child is told only when what is left is cleared away


def test_stop_leaves_nothing_and_frees_the_gpus(tmp_path: Path, engine: RayBackend, mark: str) -> None:
    tasks = [work(tmp_path, DEAF, need=TWO, name=name) for name in "abcd"]
    attempts = [engine.start(task) for task in tasks]
    assert all(attempts)
    until(
        lambda: (
            all(attempt.poll() is None for attempt in attempts) and sum(attempt.running for attempt in attempts) == 2
        )
    )
    until(lambda: ["up" in said(task) for task in tasks] == [True, True, False, False])
    asked, queued = attempts[2:]
    assert queued.where == "queued"
    asked.ask()
    assert code_of(asked) == -signal.SIGKILL
    queued.stop()
    for attempt in attempts[:2]:
        attempt.stop()
    assert [attempt.poll() for attempt in attempts] == [-signal.SIGKILL] * 4
    assert not marked(mark)
    assert code_of(engine.start(work(tmp_path, "", need=TWO, name="next"))) == 0
    assert not any("up" in said(task) for task in tasks[2:])


def test_a_launcher_that_dies_takes_its_points_along(tmp_path: Path, ray_address: str, mark: str) -> None:
    task = work(tmp_path, RESUME, tmp_path / "saved")
    with launcher(LAUNCHER, ray_address, tmp_path, RESUME, tmp_path / "saved"):
        until(lambda: said(task) == ["up"])
    until(lambda: not marked(mark))
    assert said(task) == ["up", "saved"]


def test_refused(tmp_path: Path, engine: RayBackend) -> None:
    with pytest.raises(RequestError, match=r"gpus=\[1\]"):
        engine.start(work(tmp_path, "", need=Need(gpus=1, pinned=("1",))))
    with pytest.raises(RequestError, match="nodes=2"):
        engine.start(work(tmp_path, "", need=Need(nodes=2)))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_no_cluster(address: str) -> None:
    refused = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from grpo_lab.sweep.launchers.ray_cluster import RayBackend; RayBackend(address={address!r})",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,  # Ray alone takes minutes
    ).stderr
    assert f"RequestError: no Ray cluster (address={address})" in refused
    assert "ray start --head" in refused


def test_a_lost_node_loses_its_point(tmp_path: Path, engine: RayBackend, mark: str) -> None:
    """The last test: one node is left after it."""
    tasks = [work(tmp_path, RESUME, tmp_path / f"{name}.saved", need=TWO, name=name) for name in "ab"]
    started = [engine.start(task) for task in tasks]
    attempts = {task.name: begun(attempt, task) for attempt, task in zip(started, tasks, strict=True)}
    points = {one.environ()["POINT"]: one for one in marked(mark) if one.cmdline()[1:2] == ["-c"]}
    other = next(name for name, one in points.items() if "raylet.1" in " ".join(raylet_of(one).cmdline()))
    raylet_of(points[other]).kill()
    assert code_of(attempts.pop(other)) == -signal.SIGKILL
    until(lambda: not points[other].is_running())
    assert "Ray: " in (tmp_path / f"{other}.log").read_text()
    (left,) = attempts.values()
    assert left.poll() is None
    left.stop()
    assert not marked(mark)
