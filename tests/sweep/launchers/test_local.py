"""Work on this machine's slots, as real processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from grpo_lab.machine.gpus import Gpu, Machine
from grpo_lab.sweep.launchers.base import Need, Work
from grpo_lab.sweep.launchers.local import CORES, LocalAttempt, LocalBackend

FOUR = Machine(gpus=tuple(Gpu(str(i), "pretended", 1.0) for i in range(4)), cores=4)


def work(folder: Path, name: str, gpus: int, code: str) -> Work:
    return Work(name, (sys.executable, "-c", code), folder / f"{name}.log", Need(gpus=gpus))


def end_of(attempt: LocalAttempt) -> int:
    deadline = time.monotonic() + 30
    while (code := attempt.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return code


def test_each_has_gpus_of_its_own(tmp_path: Path) -> None:
    backend = LocalBackend(exclusive=False, max_parallel=None, machine=FOUR)
    code = "import os; print('GPUs', os.environ['CUDA_VISIBLE_DEVICES'])"
    first, second = (backend.start(work(tmp_path, name, 2, code)) for name in ("a", "b"))
    assert backend.start(work(tmp_path, "c", 1, code)) is None
    assert first is not None
    assert second is not None
    assert (first.where, second.where) == ("GPU 0,1", "GPU 2,3")
    assert [end_of(first), end_of(second)] == [0, 0]
    assert [(tmp_path / f"{name}.log").read_text() for name in "ab"] == ["GPUs 0,1\n", "GPUs 2,3\n"]
    backend.close()


@pytest.mark.parametrize(("exclusive", "max_parallel"), [(True, None), (False, 1)])
def test_one_at_a_time(tmp_path: Path, exclusive: bool, max_parallel: int | None) -> None:
    backend = LocalBackend(exclusive=exclusive, max_parallel=max_parallel, machine=FOUR)
    code = f"import os; print(os.environ['{CORES}'])"
    attempt = backend.start(work(tmp_path, "a", 1, code))
    assert attempt is not None
    assert backend.start(work(tmp_path, "b", 1, code)) is None
    end_of(attempt)
    every = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert ((tmp_path / "a.log").read_text().strip() == every) == (exclusive or len(os.sched_getaffinity(0)) == 1)
    assert backend.start(work(tmp_path, "b", 1, "")) is not None


def test_slots_are_free_only_when_the_whole_tree_is_gone(tmp_path: Path) -> None:
    """The command ends at once and leaves a process that ignores SIGTERM: it still holds the GPU."""
    backend = LocalBackend(exclusive=False, max_parallel=None, machine=FOUR)
    stays = "import signal, time; signal.signal(15, signal.SIG_IGN); print('stays', flush=True); time.sleep(60)"
    leaves = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {stays!r}]); time.sleep(0.5)"
    attempt = backend.start(work(tmp_path, "a", 4, leaves))
    assert attempt is not None
    started = time.monotonic()
    assert end_of(attempt) == 0
    left = [one for one in psutil.process_iter() if stays in " ".join(_command(one))]
    assert left == []
    assert time.monotonic() - started > 1.0, "the tree had no time to be ended"
    backend.close()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_asked_then_stopped(tmp_path: Path) -> None:
    backend = LocalBackend(exclusive=False, max_parallel=None, machine=FOUR)
    deaf = "import signal, time; signal.signal(15, lambda *_: print('heard', flush=True)); print('up', flush=True)"
    deaf += "\nwhile True: time.sleep(0.1)"
    attempt = backend.start(work(tmp_path, "a", 1, deaf))
    assert attempt is not None
    log = tmp_path / "a.log"
    while "up" not in log.read_text():
        time.sleep(0.05)
    attempt.ask()
    while "heard" not in log.read_text():
        time.sleep(0.05)
    assert attempt.poll() is None
    attempt.stop()
    assert attempt.poll() == -9
    backend.close()
