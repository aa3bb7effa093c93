"""A point's command on a machine of a cluster: run with its whole tree, told from afar to save or to end.

`python -m grpo_lab.sweep.launchers.remote PID` runs one for a parent that cannot be its parent: see `main`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_lab.machine.processes import Child

POLL_S = 0.2
STOP_GRACE_S = 2.0
NOT_STARTED = 127
"""Exit code, as a shell's, of a command that cannot be started."""


@dataclass
class Orders:
    """What the command is to do. A signal handler or another thread changes them while it runs."""

    ask: bool = False
    """It shall end soon: it is sent one SIGTERM, what it has started none."""
    stop_at: float = math.inf
    """Monotonic seconds at which it is ended with all that it has started."""


@dataclass(frozen=True)
class Command:
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path

    def run(self, orders: Orders) -> int:
        """Its exit code, -N for signal N, once nothing of it is left."""
        asked = False
        try:
            with Child(self.argv, env=self.env, log=self.log, cwd=self.cwd) as child:
                while child.poll() is None and time.monotonic() < orders.stop_at:
                    if orders.ask and not asked:
                        asked = True
                        with contextlib.suppress(ProcessLookupError):  # it has just ended
                            os.kill(child.pid, signal.SIGTERM)
                    time.sleep(POLL_S)
                return child.stop(STOP_GRACE_S)
        except OSError as error:
            note(self.log, f"{type(error).__name__}: {error}")
            return NOT_STARTED


def note(log: Path, text: str) -> None:
    """Say what the command can no longer say itself."""
    with log.open("a", encoding="utf-8") as lines:
        lines.write(f"{text}\n")


def main(guardian: int) -> None:
    """Standard input: `[argv, env, log, cwd]` as a line of JSON, then `ask` and `stop`; its end means `stop`, and so
    does the end of the process `guardian`. Standard output: the exit code, nothing after the guardian's end.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a parent may have blocked some, and children inherit that
    argv, env, log, cwd = json.loads(sys.stdin.readline())
    orders, lost = Orders(), threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            orders.ask = True
            if line == "stop\n":
                break
        orders.stop_at = 0.0

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(guardian)], [], [])
        lost.set()
        orders.stop_at = 0.0

    for work in (listen, watch):
        threading.Thread(target=work, daemon=True).start()
    code = Command(argv, env, Path(log), Path(cwd)).run(orders)
    if not lost.is_set():
        print(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
