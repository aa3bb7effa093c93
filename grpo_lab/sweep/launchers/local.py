"""Points on this machine, side by side, each with GPUs and cores of its own."""

from __future__ import annotations

import contextlib
import os
import signal

from grpo_lab.machine.cores import usable
from grpo_lab.machine.gpus import Machine, read_machine
from grpo_lab.machine.processes import Child
from grpo_lab.machine.visible import environment
from grpo_lab.sweep.job import CORES
from grpo_lab.sweep.launchers.base import Work
from grpo_lab.sweep.launchers.packing import Pool, Slots

STOP_GRACE_S = 2.0


class LocalBackend:
    """`exclusive`: one point at a time, with all cores. `machine`: this one, unless a test knows better."""

    spans = False

    def __init__(self, *, exclusive: bool, max_parallel: int | None, machine: Machine | None = None) -> None:
        self.machine = read_machine() if machine is None else machine
        self._cores = usable()
        self._pool = Pool([gpu.id for gpu in self.machine.gpus], self._cores)
        self._exclusive = exclusive
        self._most = 1 if exclusive else max_parallel
        self._active: set[LocalAttempt] = set()

    def start(self, work: Work) -> LocalAttempt | None:
        if self._most is not None and len(self._active) >= self._most:
            return None
        slots = self._pool.take(work.need)
        if slots is None:
            return None
        attempt = LocalAttempt(Child(work.argv, env=self._env(work, slots), log=work.log), slots, self)
        self._active.add(attempt)
        return attempt

    def _env(self, work: Work, slots: Slots) -> dict[str, str]:
        cores = self._cores if self._exclusive else slots.cores
        gpus = environment(slots.gpus) if self.machine.gpus else {}
        return {**work.env, **gpus, CORES: ",".join(map(str, sorted(cores)))}

    def ended(self, attempt: LocalAttempt) -> None:
        """Its GPUs and cores are free again."""
        if attempt in self._active:
            self._active.remove(attempt)
            self._pool.give(attempt.slots)

    def close(self) -> None:
        assert not self._active, "a point still runs"


class LocalAttempt:
    """A process tree of this machine; see `Attempt`."""

    running = True

    def __init__(self, child: Child, slots: Slots, backend: LocalBackend) -> None:
        self._child, self.slots, self._backend = child, slots, backend
        self.where = f"GPU {','.join(slots.gpus)}" if slots.gpus else f"core {','.join(map(str, slots.cores))}"

    def poll(self) -> int | None:
        """None also while the command has ended but not yet all that it started: its GPUs are not free."""
        if self._child.poll() is None:
            return None
        try:
            code = self._child.wait(timeout_s=0.0)
        except TimeoutError:
            return None
        self._backend.ended(self)
        return code

    def ask(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._child.pid, signal.SIGTERM)

    def stop(self) -> None:
        self._child.stop(STOP_GRACE_S)
        self._backend.ended(self)
