"""What can be said of points on Slurm where there is none: submitit's local executor, and the reading of its words."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.sweep.launchers.base import Need
from grpo_lab.sweep.launchers.slurm import SlurmBackend, checked
from grpo_lab.sweep.launchers.slurm_queue import LONGEST_MINUTES, LocalQueue, read_gpus, read_minutes
from tests.machine.test_processes import marked
from tests.sweep.launchers.points import DEAF, RESUME, SHOW, WAIT, begun, code_of, launcher, said, until, work

pytestmark = pytest.mark.usefixtures("mark")

LAUNCHER = """
import sys, time
from pathlib import Path
from grpo_lab.sweep.launchers.slurm import SlurmBackend
from tests.sweep.launchers.points import work
attempt = SlurmBackend(executor="local").start(work(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
time.sleep(600)
"""


@pytest.fixture
def engine() -> SlurmBackend:
    return SlurmBackend(executor="local")


def test_output_environment_and_exit_code(
    tmp_path: Path, engine: SlurmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = SHOW.format(names=("CUDA_VISIBLE_DEVICES", "POINT")) + "; raise SystemExit(7)"
    task = work(tmp_path, code, need=Need(gpus=2))
    assert code_of(engine.start(task)) == 7
    assert said(task) == [f"0,1 lr=1,seed=2 {tmp_path}"]


def test_one_at_a_time(tmp_path: Path, engine: SlurmBackend) -> None:
    first, second = work(tmp_path, RESUME, tmp_path / "saved", name="a"), work(tmp_path, "", name="b")
    attempt = begun(engine.start(first), first)
    assert engine.start(second) is None
    attempt.ask()
    assert code_of(attempt) == 143
    assert said(first) == ["up", "saved"]
    assert code_of(engine.start(second)) == 0


def test_asked_to_end(tmp_path: Path, engine: SlurmBackend) -> None:
    task = work(tmp_path, WAIT)
    attempt = begun(engine.start(task), task)
    attempt.ask()
    assert code_of(attempt) == 5
    assert said(task)[:3] == ["up", "saving", "saved"]  # its child is told only when what is left is cleared away


def test_stop_leaves_nothing(tmp_path: Path, engine: SlurmBackend, mark: str) -> None:
    task = work(tmp_path, DEAF)
    attempt = begun(engine.start(task), task)
    attempt.stop()
    assert attempt.poll() == -signal.SIGKILL
    assert not marked(mark)


def test_at_its_time_limit_it_comes_again(tmp_path: Path, engine: SlurmBackend, mark: str) -> None:
    task = work(tmp_path, RESUME, tmp_path / "saved")
    attempt = begun(engine.start(task), task)
    next(process for process in marked(mark) if process.cmdline()[2:4] == ["-m", "submitit.core._submit"]).send_signal(
        signal.SIGUSR2
    )
    assert code_of(attempt) == 0
    assert said(task) == ["up", "saved", "goes on"]


def test_a_new_launcher_finds_the_job_of_one_that_died(tmp_path: Path, engine: SlurmBackend) -> None:
    task = work(tmp_path, RESUME, tmp_path / "saved")
    with launcher(LAUNCHER, tmp_path, RESUME, tmp_path / "saved"):
        until(lambda: "up" in said(task))
    attempt = begun(engine.start(task), task)
    assert len([job for job in (LocalQueue(0.0).jobs() or {}).values() if job.where == attempt.where]) == 1
    attempt.ask()
    assert code_of(attempt) == 143
    assert said(task) == ["up", "saved"]


def test_a_job_that_is_lost(tmp_path: Path, engine: SlurmBackend, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_lab.sweep.launchers.slurm.RESULT_LAG_S", 0.5)
    task = work(tmp_path, RESUME, tmp_path / "saved")
    attempt = begun(engine.start(task), task)
    for process in marked(mark):
        with contextlib.suppress(psutil.NoSuchProcess):  # one goes when its parent was killed before it
            if "submitit" in " ".join(process.cmdline()):
                process.kill()
    assert code_of(attempt) == -signal.SIGKILL
    until(lambda: not marked(mark))
    assert "without a result" in task.log.read_text()


@pytest.mark.parametrize(
    ("gres", "names"),
    [
        ("(null)", []),
        ("gpu:2", ["GPU", "GPU"]),
        ("gpu:h100:2(S:0-1)", ["H100", "H100"]),
        ("gpu:nvidia_a100-sxm4-80gb:1,mps:200,gpu:l40s:1(S:0,2)", ["NVIDIA A100 SXM4 80GB", "L40S"]),
        ("gpu:1g.10gb:7", ["1G.10GB"] * 7),
        ("shard:8,craynetwork:4", []),
    ],
)
def test_gpus_of_a_node(gres: str, names: list[str]) -> None:
    assert [gpu.name for gpu in read_gpus(gres)] == names


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("30:00", 30), ("4:00:00", 240), ("1-12:00:00", 36 * 60), ("infinite", LONGEST_MINUTES), ("n/a", LONGEST_MINUTES)],
)
def test_time_limit_of_a_partition(limit: str, minutes: int) -> None:
    assert read_minutes(limit) == minutes


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"partitoin": "a"}, "did you mean 'partition'"),
        ({"gpus_per_node": 2}, "the plan counts the GPUs"),
        ({"nodes": 2}, "nodes= sets them"),
        ({"time": "4:00:00"}, "a whole number of minutes"),
        ({"reservation": "mine"}, "additional_parameters.<option>"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError) as refused:
        checked(parameters)
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"hydra.launcher.parameters.{next(iter(parameters))}")


def test_parameters_that_pass() -> None:
    given = {"partition": "a", "account": "b", "qos": "c", "constraint": "d", "exclude": None, "time": 60}
    assert checked(given) == {key: value for key, value in given.items() if value is not None}


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="sinfo: not found"):
        SlurmBackend()


def test_slurm_does_not_choose_between_gpus(tmp_path: Path, engine: SlurmBackend) -> None:
    with pytest.raises(RequestError, match=r"gpus=\[2,3\]"):
        engine.start(work(tmp_path, "", need=Need(gpus=2, pinned=("2", "3"))))


def test_what_a_job_runs_needs_no_torch() -> None:
    loaded = (
        "import sys, grpo_lab.sweep.launchers.slurm_job; print({'torch', 'transformers', 'trl'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "set()\n"
