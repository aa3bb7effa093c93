"""Points as actors of a Ray cluster, which chooses their nodes and GPUs. They end with the launcher."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.machine.gpus import Gpu, Machine, read_machine
from grpo_lab.sweep.launchers.base import Need, Work
from grpo_lab.sweep.launchers.remote import Command, note

try:
    import ray
    from ray.exceptions import RayError
except ModuleNotFoundError as error:
    raise RequestError("hydra/launcher=ray needs Ray: pip install 'grpo-lab[ray]'") from error

STOP_PATIENCE_S = 60.0
KNOCK_S = 10.0


class RayBackend:
    """`address`: of the cluster, `HOST:6379`; None: RAY_ADDRESS, or the cluster that this machine belongs to; `local`
    starts one here for the length of the sweep. `exclusive`: one point a node.

    Raises RequestError if there is no such cluster.
    """

    spans = False

    def __init__(self, *, address: str | None = None, exclusive: bool = False, max_parallel: int | None = None) -> None:
        self._most, self._exclusive = max_parallel or math.inf, exclusive
        self._ours = not ray.is_initialized()
        if self._ours:
            connect(address)
        nodes: Any = ray.nodes  # Ray leaves it untyped
        self.machine = largest(nodes())
        self._active: list[RayAttempt] = []

    def start(self, work: Work) -> RayAttempt | None:
        self._active = [attempt for attempt in self._active if not attempt.ended]
        if len(self._active) >= self._most:
            return None
        need = checked(work.need)
        env = {**travelling(os.environ), **work.env}
        command = Command(tuple(work.argv), env, work.log.absolute(), Path.cwd())
        # Two threads: one waits for the command's end while the other takes orders.
        cores = self.machine.cores if self._exclusive else need.cores
        runner = ray.remote(Runner).options(num_gpus=need.gpus, num_cpus=cores, max_concurrency=2)
        attempt = RayAttempt(runner.remote(), command)
        self._active.append(attempt)
        return attempt

    def close(self) -> None:
        if self._ours:
            ray.shutdown()


class Runner:
    """The actor: on the node that Ray chose, with CUDA_VISIBLE_DEVICES as Ray sets it.

    The command is a grandchild. When Ray ends an actor it kills the children of its process, and only these: that would
    hit the warden of the command's tree and leave the tree. The child that it hits instead ends the tree by dying. It
    also watches the node's raylet, our parent: where somebody adopts orphans, as Slurm does, Ray does not see it die.
    """

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "grpo_lab.sweep.launchers.remote", str(os.getppid())]
        self._agent = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def where(self) -> str:
        gpus = ",".join(str(gpu) for gpu in ray.get_gpu_ids())
        return f"{socket.gethostname()} GPU {gpus}" if gpus else socket.gethostname()

    def run(self, command: Command) -> int:
        self.tell(json.dumps([command.argv, command.env, str(command.log), str(command.cwd)]))
        assert self._agent.stdout is not None
        code = self._agent.stdout.read()
        if not code:
            raise RuntimeError("no exit code: its node lost the raylet, or cannot run grpo_lab (see Ray's worker log)")
        return int(code)

    def tell(self, line: str) -> None:
        assert self._agent.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just ended
            self._agent.stdin.write(f"{line}\n")
            self._agent.stdin.flush()


class RayAttempt:
    """An actor with one command; see `Attempt`."""

    def __init__(self, runner: Any, command: Command) -> None:
        self._runner, self._log = runner, command.log
        self._placed, self._end = runner.where.remote(), runner.run.remote(command)
        self._code: int | None = None
        self.where, self.running = "queued", False

    @property
    def ended(self) -> bool:
        return self._code is not None

    def poll(self) -> int | None:
        if self._code is None:
            self._look(timeout_s=0.0)
        return self._code

    def _look(self, timeout_s: float) -> None:
        try:
            if not self.running and ray.wait([self._placed], timeout=0.0)[0]:
                self.where, self.running = ray.get(self._placed), True
            if ray.wait([self._end], timeout=timeout_s)[0]:
                self._code = ray.get(self._end)
        except RayError as error:  # its node is gone, or has no grpo_lab
            note(self._log, f"Ray: {error}")
            self._code = -signal.SIGKILL
        if self._code is not None:
            ray.kill(self._runner)  # frees its GPUs

    def ask(self) -> None:
        if self.poll() is None and self.running:
            self._runner.tell.remote("ask")
        elif self._code is None:
            ray.kill(self._runner)

    def stop(self) -> None:
        """Also of a point whose node does not answer: there its tree ends with the actor, soon after."""
        if self.poll() is None and self.running:
            self._runner.tell.remote("stop")
            self._look(STOP_PATIENCE_S)
        if self._code is None:
            ray.kill(self._runner)
            self._code = -signal.SIGKILL


def connect(address: str | None) -> None:
    """Raises RequestError if there is no cluster, or one of another version of Ray or Python."""
    place = address or os.environ.get("RAY_ADDRESS") or "auto"
    dashboard: dict[str, Any] = {"include_dashboard": False} if place == "local" else {}
    try:
        knock(place)
        ray.init(place, log_to_driver=False, logging_level=logging.WARNING, **dashboard)
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"no Ray cluster (address={place}): {str(error).splitlines()[0]}\n"
            "start one with `ray start --head`, and `ray start --address=HOST:6379` on every further machine,\n"
            "or say where there is one: RAY_ADDRESS=HOST:6379"
        ) from error


def knock(place: str) -> None:
    """Raises OSError if nobody is at HOST:PORT, which Ray itself takes over five minutes to say."""
    host, colon, port = place.rpartition(":")
    if colon and port.isdigit() and "://" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def largest(nodes: list[dict[str, Any]]) -> Machine:
    """The node with the most GPUs, then cores. Ray knows the memory of no GPU."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    most = max(alive, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0), node.get("memory", 0)))
    kinds = [key.partition(":")[2] for key in most if key.startswith("accelerator_type:")]
    gpus = tuple(Gpu(str(number), kinds[0] if kinds else "GPU", 0.0) for number in range(int(most.get("GPU", 0))))
    return Machine(gpus, int(most.get("CPU", 1)), most.get("memory", 0.0) / 2**30, read_machine(0).versions)


def checked(need: Need) -> Need:
    """Raises RequestError for what Ray cannot give."""
    if need.pinned:
        raise RequestError(f"gpus=[{','.join(need.pinned)}]: Ray chooses which; say how many: gpus={need.gpus}")
    if need.nodes > 1:
        raise RequestError(f"nodes={need.nodes}: a point has one machine under hydra/launcher=ray; use slurm")
    return need


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the launcher's environment is not about the launcher's own machine."""
    return {key: value for key, value in environment.items() if key != "CUDA_VISIBLE_DEVICES" and key[:4] != "RAY_"}
