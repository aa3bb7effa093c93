"""Whole trees end, shown with real processes: who is left is asked of the kernel, by a mark in their environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from grpo_lab.machine.processes import Child

MARK = "GRPO_LAB_TEST_MARK"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SLEEP = "time.sleep(300)\n"

DEAF_TREE = f"""
import subprocess, sys, os
{DEAF}
deaf = [sys.executable, "-c", {DEAF + SLEEP!r}]
subprocess.Popen(deaf)
subprocess.Popen(deaf, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(300)
    os._exit(0)
open(sys.argv[1], "w").close()
"""
"""A child, a child in a session of its own and a daemon by double fork; all of them ignore SIGTERM."""

CONDUCTOR = """
import signal, sys, time
from pathlib import Path
from grpo_lab.machine.processes import Child
log, ready, *argv = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
child = Child(argv, env={}, log=Path(log), grace_s=2.0)
Path(ready).write_text(str(child.scratch))
time.sleep(300)
"""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    yield value
    for process in marked(value):
        process.kill()


def marked(value: str) -> list[psutil.Process]:
    """Living processes with the mark, this one left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def until(condition: object, timeout_s: float = 10.0) -> float:
    """Seconds until the callable is true; fails after the timeout."""
    assert callable(condition)
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - started


def python(code: str, *args: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


@pytest.mark.parametrize(("code", "expected"), [("", 0), ("raise SystemExit(7)", 7), ("1/0", 1)])
def test_exit_code(tmp_path: Path, code: str, expected: int) -> None:
    assert Child(python(code), env={}, log=tmp_path / "log").wait(20) == expected


def test_exit_code_of_a_killed_command(tmp_path: Path) -> None:
    child = Child(python("import time; time.sleep(300)"), env={}, log=tmp_path / "log")
    assert child.poll() is None
    os.kill(child.pid, signal.SIGSEGV)
    until(lambda: child.poll() is not None)
    assert child.poll() == child.wait(20) == -signal.SIGSEGV


def test_starting_is_cheap(tmp_path: Path) -> None:
    started = time.monotonic()
    Child(["true"], env={}, log=tmp_path / "log").wait(20)
    assert time.monotonic() - started < 1.0  # about 0.05 s on an idle machine


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        Child(["no-such-command"], env={}, log=tmp_path / "log")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    with pytest.raises(FileNotFoundError):
        Child(["true"], env={}, log=tmp_path / "log", cwd=tmp_path / "nowhere", scratch=scratch)
    assert not scratch.exists()


def test_output_goes_to_the_log_and_env_over_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text("earlier\n")
    code = "import os, sys; print(os.environ['A'], 'PATH' in os.environ, os.getcwd()); sys.exit('err')"
    Child(python(code), env={"A": "x"}, log=log, cwd=tmp_path).wait(20)
    assert log.read_text().splitlines() == ["earlier", f"x True {tmp_path}", "err"]
    assert capfd.readouterr() == ("", "")


def test_wait_times_out_and_stop_ends(tmp_path: Path, mark: str) -> None:
    child = Child(python("import time; time.sleep(300)"), env={}, log=tmp_path / "log")
    with pytest.raises(TimeoutError, match=str(child.pid)):
        child.wait(0.2)
    assert child.stop() == -signal.SIGTERM
    assert child.stop() == child.poll() == -signal.SIGTERM
    assert not marked(mark)


def test_stop_of_a_stopped_process_needs_no_grace(tmp_path: Path) -> None:
    child = Child(python("import time; time.sleep(300)"), env={}, log=tmp_path / "log")
    os.kill(child.pid, signal.SIGSTOP)
    assert child.stop(grace_s=10) == -signal.SIGTERM  # SIGKILL after the grace otherwise


def test_stop_of_a_deaf_tree(tmp_path: Path, mark: str) -> None:
    ready = tmp_path / "ready"
    with Child(python(DEAF_TREE + SLEEP, ready), env={}, log=tmp_path / "log") as child:
        until(ready.exists)
        until(lambda: len(marked(mark)) == 5)  # the warden, the command and its three
        started = time.monotonic()
        assert child.stop(grace_s=0.5) == -signal.SIGKILL
        assert 0.5 <= time.monotonic() - started < 5
        assert not marked(mark)
    assert not child.scratch.exists()


def test_background_processes_end_with_the_command(tmp_path: Path, mark: str) -> None:
    ready = tmp_path / "ready"
    child = Child(python(DEAF_TREE + "sys.exit(3)", ready), env={}, log=tmp_path / "log", grace_s=0.5)
    until(lambda: child.poll() is not None)
    assert child.poll() == 3
    assert child.wait(20) == 3
    assert not marked(mark)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_tree_ends_with_the_conductor(tmp_path: Path, mark: str, number: signal.Signals) -> None:
    ready, started = tmp_path / "ready", tmp_path / "started"
    command = python(DEAF_TREE + SLEEP, ready)
    conductor = subprocess.Popen(python(CONDUCTOR, tmp_path / "log", started, *command), stderr=subprocess.DEVNULL)
    until(lambda: ready.exists() and started.exists() and started.read_text())
    conductor.send_signal(number)
    conductor.wait(20)
    assert until(lambda: not marked(mark), timeout_s=15) < 8
    assert not Path(started.read_text()).exists()


def test_a_fork_of_the_conductor_does_not_keep_the_tree(tmp_path: Path, mark: str) -> None:
    started = tmp_path / "started"
    forking = CONDUCTOR.replace("time.sleep", "import os; os.fork(); time.sleep")
    conductor = subprocess.Popen(python(forking, tmp_path / "log", started, "sleep", "300"))
    until(started.exists)
    until(lambda: len(marked(mark)) == 4)
    conductor.kill()
    conductor.wait(20)
    until(lambda: len(marked(mark)) == 1)  # the fork, which is not of the tree


def test_the_terminal_s_interrupt_does_not_reach_the_tree(tmp_path: Path) -> None:
    with Child(["sleep", "300"], env={}, log=tmp_path / "log") as child:
        assert os.getsid(child.pid) != os.getsid(0)
        assert os.getpgid(child.pid) not in (os.getpgid(0), os.getpgid(psutil.Process(child.pid).ppid()))


def test_a_killed_warden_is_noticed(tmp_path: Path, mark: str) -> None:
    ready = tmp_path / "ready"
    child = Child(python(DEAF_TREE + SLEEP, ready), env={}, log=tmp_path / "log")
    until(ready.exists)
    psutil.Process(child.pid).parent().kill()  # type: ignore[union-attr]
    until(lambda: child.poll() is not None)
    assert child.wait(20) == -signal.SIGKILL
    assert not marked(mark)
    assert not child.scratch.exists()


HOLD = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(fd, 4096)
held = mmap.mmap(fd, 4096)
os.close(fd)
open(sys.argv[2], "w").close()
time.sleep(300)
"""


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path("/dev/shm") / f"grpo-lab-test-{uuid.uuid4().hex}"
    yield path
    path.unlink(missing_ok=True)


def test_shared_memory_of_a_killed_tree_is_removed(tmp_path: Path, segment: Path) -> None:
    child = Child(python(HOLD, segment, tmp_path / "ready"), env={}, log=tmp_path / "log")
    until((tmp_path / "ready").exists)
    child.stop(grace_s=0.0)
    assert not segment.exists()


def test_shared_memory_that_others_hold_stays(tmp_path: Path, segment: Path) -> None:
    other = Child(python(HOLD, segment, tmp_path / "other"), env={}, log=tmp_path / "log")
    until((tmp_path / "other").exists)
    child = Child(python(HOLD, segment, tmp_path / "ready"), env={}, log=tmp_path / "log")
    until((tmp_path / "ready").exists)
    child.stop(grace_s=0.0)
    assert segment.exists()
    other.stop(grace_s=0.0)
    assert not segment.exists()


SEMAPHORE = """
import multiprocessing, sys, time
held = multiprocessing.get_context("spawn").Semaphore()
open(sys.argv[1], "w").write(held._semlock.name)
time.sleep(300)
"""


def test_semaphores_of_a_killed_tree_are_removed(tmp_path: Path) -> None:
    """The kernel shows a held semaphore under the name of its draft, which is gone."""
    ready = tmp_path / "ready"
    child = Child(python(SEMAPHORE, ready), env={}, log=tmp_path / "log")
    until(lambda: ready.exists() and ready.read_text())
    name = Path("/dev/shm") / f"sem.{ready.read_text().removeprefix('/')}"
    assert name.exists()
    child.stop(grace_s=0.0)
    assert not name.exists()
