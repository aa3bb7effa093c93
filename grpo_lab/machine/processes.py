"""Commands whose whole process tree ends when we do, however we end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from grpo_lab.config.errors import RequestError

WARDEN = Path(__file__).with_name("warden.py")
TREE = "GRPO_LAB_TREE"  # in the environment of every process of a tree: the tree's id
LOG_ENCODING = {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # of what is read back, whatever the terminal's
SHORT_PATH = 60  # vLLM appends 37 characters to VLLM_RPC_BASE_PATH; a socket's path may have 107
KILL_PATIENCE_S = 30.0


class Child:
    """A command with its whole process tree, which ends when we do, however we end.

    `env` is laid over our own environment; hosts in its NO_PROXY are added to ours. The output is appended to `log`;
    the terminal's Ctrl-C does not reach the tree. When the command ends, what it left running is ended too: SIGTERM,
    `grace_s`, SIGKILL. If we die, the tree is gone within `min(grace_s, 10)` seconds and a few. `scratch`, a folder
    made here unless given, belongs to the tree (vLLM's sockets go there) and is removed with it.

    Not for use from several threads at once. Raises OSError if the command cannot be started.
    """

    pid: int  # of the command itself

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        grace_s: float = 10.0,
        cwd: Path | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.log = log
        self.grace_s = grace_s
        self.tree = uuid.uuid4().hex
        self.scratch = make_scratch() if scratch is None else scratch
        self._exit: int | None = None
        self._heard = b""
        try:
            own = {"VLLM_RPC_BASE_PATH": str(self.scratch), **LOG_ENCODING, **env, **no_proxy(env), TREE: self.tree}
            self._start({**os.environ, **own}, cwd)
        except OSError:
            shutil.rmtree(self.scratch, ignore_errors=True)
            raise

    def _start(self, env: Mapping[str, str], cwd: Path | None) -> None:
        # Isolated and without site: the warden must start in no time and not be ours to break by PYTHONPATH.
        warden = [sys.executable, "-I", "-S", str(WARDEN), str(self.grace_s), str(self.scratch)]
        with self.log.open("ab") as output:
            self._warden = subprocess.Popen(
                [*warden, *self.argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=env,
                cwd=cwd,
                start_new_session=True,
                bufsize=0,
            )
        assert self._warden.stdin is not None
        assert self._warden.stdout is not None
        self._orders, self._reports = self._warden.stdin, self._warden.stdout
        first = self._report()
        if first is None or "pid" not in first:
            self._close()
            number = errno.EIO if first is None else first["errno"]
            raise OSError(number, os.strerror(number), self.argv[0])
        self.pid = first["pid"]

    def poll(self) -> int | None:
        """Exit code of the command (negative: the signal that ended it), None while it runs.

        The code is there at once; what the command left may need until `wait` returns to be gone.
        """
        while self._exit is None and self._listen(0.0):
            continue
        return self._exit

    def wait(self, timeout_s: float | None = None) -> int:
        """Exit code of the command, once the whole tree is gone. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._reports.closed:
            if not self._listen(None if deadline is None else max(deadline - time.monotonic(), 0.0)):
                raise TimeoutError(f"{self.argv[0]} (pid {self.pid}) still runs after {timeout_s:g} s")
        assert self._exit is not None
        return self._exit

    def stop(self, grace_s: float | None = None) -> int:
        """End the tree: SIGTERM, then SIGKILL to every descendant; returns the exit code when none is left."""
        grace_s = self.grace_s if grace_s is None else grace_s
        if not self._orders.closed:
            with contextlib.suppress(BrokenPipeError):  # it has ended by itself
                self._orders.write(f"stop {grace_s}\n".encode())
        return self.wait(grace_s + KILL_PATIENCE_S)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listen(self, timeout_s: float | None) -> bool:
        """Take in one report or the end of all reports; False if there is neither within `timeout_s`."""
        if self._reports.closed or not self._readable(timeout_s):
            return False
        report = self._report()
        if report is None:
            self._close()
        else:
            self._exit = report.get("exit", self._exit)
        return True

    def _readable(self, timeout_s: float | None) -> bool:
        return b"\n" in self._heard or bool(select.select([self._reports], [], [], timeout_s)[0])

    def _report(self) -> dict[str, int] | None:
        """The warden's next report; None if there are no more."""
        while b"\n" not in self._heard:
            words = self._reports.read(4096)
            if not words:
                return None
            self._heard += words
        line, _, self._heard = self._heard.partition(b"\n")
        report: dict[str, int] = json.loads(line)
        return report

    def _close(self) -> None:
        """The warden has ended, so nothing is left of the tree, unless somebody killed the warden itself."""
        self._orders.close()
        self._reports.close()
        self._warden.wait()
        if self._warden.returncode < 0:
            kill_tree(self.tree)
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self._exit is None:
            self._exit = self._warden.returncode


def no_proxy(env: Mapping[str, str]) -> dict[str, str]:
    """Both spellings of the variable, with the hosts of both environments; nothing if `env` has none."""
    names = ("NO_PROXY", "no_proxy")
    if not any(name in env for name in names):
        return {}
    hosts = [host.strip() for part in (os.environ, env) for name in names for host in part.get(name, "").split(",")]
    return dict.fromkeys(names, ",".join(dict.fromkeys(host for host in hosts if host)))


def make_scratch() -> Path:
    """A new folder for one tree, with a path short enough for sockets in it."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="grpo-lab-", dir=usual if len(usual) < SHORT_PATH - 20 else "/tmp"))


def tree_members(tree: str) -> list[psutil.Process]:
    """Living processes that carry the tree's id in their environment."""
    return carriers(TREE, tree)


def carriers(variable: str, value: str) -> list[psutil.Process]:
    """Living processes with this value of an environment variable."""
    living = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return living


def await_end(variable: str, value: str, timeout_s: float) -> None:
    """Wait until no such process is left. Raises RequestError if some do not end."""
    deadline = time.monotonic() + timeout_s
    while left := carriers(variable, value):
        if time.monotonic() > deadline:
            raise RequestError(f"{value} is in use by processes {', '.join(str(process.pid) for process in left)}")
        time.sleep(0.2)


def kill_tree(tree: str, timeout_s: float = KILL_PATIENCE_S) -> None:
    """SIGKILL all members of a tree that has lost its warden. Raises TimeoutError if some do not end."""
    deadline = time.monotonic() + timeout_s
    while members := tree_members(tree):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[member.pid for member in members]} do not end")
        for member in members:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
