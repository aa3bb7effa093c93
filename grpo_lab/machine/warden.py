"""The small parent between the harness and a command: it sees to it that the command's tree ends when the harness does.

Run by file path and isolated (`python -IS warden.py GRACE_S SCRATCH COMMAND...`), so it must not import anything but
the standard library: starting it costs about 30 ms. Linux only.

It is a subreaper: whatever the command starts stays its descendant, also after `setsid`, double forks, or the death of
everything in between. It ends the tree when the command ends, when standard input closes (only the owner holds the
other end, so this happens however the owner dies, SIGKILL included), when the owner writes `stop GRACE_S`, or on
SIGTERM, SIGINT or SIGHUP. One SIGTERM is not enough for everything (vLLM 0.31 swallows it while it initialises), hence
SIGKILL to all that is left after the grace, again and again until nothing is.

Standard output is the owner's: one JSON object a line, `{"pid": n}` or `{"errno": n}`, then `{"exit": code}` as soon as
the command has ended; the end of the stream says that the tree is gone. Standard error is the command's log.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

PR_SET_CHILD_SUBREAPER = 36
ORPHAN_GRACE_S = 10.0  # the longest grace once there is nobody left who could want to wait
KILL_PATIENCE_S = 20.0  # a process that SIGKILL does not end is stuck in the kernel
SEGMENTS_EVERY_S = 10.0
SHARED_MEMORY = "/dev/shm/"


def parents() -> dict[int, tuple[int, str]]:
    """Every process: its parent and its state letter (`Z`: ended, not yet waited for)."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                state, parent = stat.read().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(entry)] = (int(parent), state)
    return found


def descendants(root: int) -> list[int]:
    """All living processes under `root`, at any depth, whatever their session or group."""
    table = parents()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        queue += below
        found += [pid for pid in below if table[pid][1] != "Z"]
    return found


def held_segments(pid: int) -> set[str]:
    """Files in /dev/shm that the process maps or has open; nothing for a process that we may not look into.

    Known by their inodes: a semaphore is made under another name, which is the one that maps go on to show, as deleted.
    """
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            inodes = {int(line.split(maxsplit=5)[4]) for line in maps if SHARED_MEMORY in line}
        inodes.update(_open_files(pid))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
    if not inodes:
        return set()
    with os.scandir(SHARED_MEMORY) as files:
        return {file.path for file in files if file.inode() in inodes}


def _open_files(pid: int) -> Iterator[int]:
    """Inodes of those in /dev/shm."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            if os.readlink(path).startswith(SHARED_MEMORY):
                yield os.stat(path).st_ino
        except FileNotFoundError:
            continue


class Segments:
    """Shared memory that the tree was seen to hold, so that what a SIGKILL leaves behind can be removed.

    A name alone is no proof: what is removed must still be the very file (device and inode) that the tree held, and no
    living process may hold it.
    """

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int]] = {}
        self.looked = 0.0

    def look(self, pids: list[int]) -> None:
        self.looked = time.monotonic()
        for pid in pids:
            for name in held_segments(pid):
                if (identity := _identity(name)) is not None:
                    self.seen[name] = identity

    def remove(self) -> None:
        left = {name for name, identity in self.seen.items() if _identity(name) == identity}
        if left:
            for pid in parents():
                left -= held_segments(pid)
        for name in left:
            os.unlink(name)


def _identity(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name)
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino)


class Owner:
    """Whoever started us, at the other end of standard input and output."""

    def __init__(self) -> None:
        self.pid = os.getppid()
        self.gone = False
        self.grace_s: float | None = None  # asked for by `stop`
        self.signalled = False
        self._wake, wakeup = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.signalled = True

    def listen(self, timeout_s: float) -> None:
        """Wait for a word of the owner, a signal or a child's end; returns after `timeout_s` at the latest."""
        sources = [self._wake] if self.gone else [self._wake, 0]
        ready, _, _ = select.select(sources, [], [], timeout_s)
        if self._wake in ready:
            os.read(self._wake, 4096)
        if 0 in ready:
            self._hear(os.read(0, 4096))
        # A fork of the owner that never exec'ed would hold the pipe open: its end shows here as well.
        self.gone = self.gone or os.getppid() != self.pid

    def _hear(self, words: bytes) -> None:
        self.gone = self.gone or not words
        for line in words.decode().splitlines():
            command, _, value = line.partition(" ")
            if command == "stop":
                self.grace_s = float(value)

    def tell(self, **report: int) -> None:
        try:
            os.write(1, json.dumps(report).encode() + b"\n")
        except BrokenPipeError:
            self.gone = True


class Tree:
    """The command and everything under us."""

    def __init__(self, argv: list[str], owner: Owner) -> None:
        self._popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=2, stderr=2, start_new_session=True)
        self.owner = owner
        self.segments = Segments()
        self.ended = False
        owner.tell(pid=self._popen.pid)

    def alive(self) -> list[int]:
        """Living descendants, after waiting for all that have ended."""
        self.reap()
        return descendants(os.getpid())

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._popen.pid:
                self.ended = True
                self.owner.tell(exit=os.waitstatus_to_exitcode(status))

    def watch(self) -> None:
        """Returns when there is a reason to end the tree."""
        owner = self.owner
        while not (self.ended or owner.gone or owner.signalled or owner.grace_s is not None):
            if time.monotonic() - self.segments.looked > SEGMENTS_EVERY_S:
                self.segments.look(self.alive())
            owner.listen(timeout_s=1.0)
            self.reap()

    def end(self, grace_s: float) -> list[int]:
        """SIGTERM, grace, SIGKILL; returns who is left, which is nobody unless the kernel does not let go."""
        self._signal_all(signal.SIGTERM)
        self._signal_all(signal.SIGCONT)  # a stopped process gets the first when it goes on
        started = time.monotonic()
        while self.alive() and time.monotonic() - started < self._grace(grace_s):
            self.owner.listen(timeout_s=0.1)
        started = time.monotonic()
        while self.alive() and time.monotonic() - started < KILL_PATIENCE_S:
            self._signal_all(signal.SIGKILL)
            self.owner.listen(timeout_s=0.05)
        return self.alive()

    def _grace(self, default_s: float) -> float:
        grace_s = default_s if self.owner.grace_s is None else self.owner.grace_s
        return min(grace_s, ORPHAN_GRACE_S) if self.owner.gone else grace_s

    def _signal_all(self, number: signal.Signals) -> None:
        pids = self.alive()
        self.segments.look(pids)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def main(argv: list[str]) -> int:
    grace_s, scratch, command = float(argv[0]), argv[1], argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    owner = Owner()
    try:
        tree = Tree(command, owner)
    except OSError as error:
        owner.tell(errno=error.errno or 0)
        shutil.rmtree(scratch, ignore_errors=True)
        return 1
    tree.watch()
    left = tree.end(grace_s)
    tree.segments.remove()
    shutil.rmtree(scratch, ignore_errors=True)
    if left:
        print(f"warden: processes {left} of {command[0]} do not end", file=sys.stderr, flush=True)
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
