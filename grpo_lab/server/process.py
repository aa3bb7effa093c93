"""The vLLM server of a run: started, seen to be ours and as planned, watched, and gone with everything it started."""

from __future__ import annotations

import getpass
import http.client
import json
import os
import shlex
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from grpo_lab.machine.logs import OUT_OF_MEMORY, Log
from grpo_lab.machine.processes import Child, make_scratch
from grpo_lab.server.command import ServerPlan, flags, recipe, vllm_metadata
from grpo_lab.server.key import KEY, OPEN, bearer, drawn

HEALTH_EVERY_S = 5.0
PROGRESS_EVERY_S = 1.0
ANSWER_S = 5.0  # for one request; while it loads, a server that does not answer is asked again
SERVER_INFO_S = 90.0  # vLLM collects facts about the host, by commands, before its first answer
BROKEN_S = 1.0  # a server whose connections break may be about to end
ANSWER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ServerInfo:
    """What a server says about itself; None where this vLLM does not say."""

    served_name: str
    model: str
    world_size: int
    tp: int | None
    dp: int | None
    backend: str | None
    logprobs_mode: str | None
    max_logprobs: int | None
    seed: int | None
    max_model_len: int | None
    version: str | None


class ServerError(RuntimeError):
    """The server cannot be used. `failure_class`: server_died, server_timeout, oom, or error (not what was planned)."""

    def __init__(self, failure_class: str, message: str) -> None:
        super().__init__(message)
        self.failure_class = failure_class


class Server:
    """A running server of ours."""

    def __init__(self, plan: ServerPlan, child: Child, log: Log, info: ServerInfo, patience_s: float) -> None:
        self.plan, self.info, self.url, self.pid = plan, info, plan.url, child.pid
        self._child, self._log, self._patience_s = child, log, patience_s
        self._answered = self._asked = time.monotonic()
        self._last = "200"

    def check(self) -> None:
        """Raises ServerError if the server has ended or has not answered for `patience_s`.

        To be called about once a second; takes no time unless it is time to ask /health, and at most two seconds then.
        """
        _raise_if_ended(self._child, self._log)
        now = time.monotonic()
        if now - self._asked < HEALTH_EVERY_S:
            return
        self._asked = now
        answer = _health(self.url, timeout_s=2.0)
        if answer in GONE and self._last in GONE:
            causes = "\n".join([*self._log.causes(), self._log.tail()])
            raise ServerError("server_died", f"the vLLM server at {self.url} {GONE[answer]}\n{causes}")
        self._last = answer
        if answer == "200":
            self._answered = now
        elif now - self._answered > self._patience_s:
            silent = f"{now - self._answered:.0f} s without a healthy answer (last: {answer})"
            raise ServerError("server_timeout", f"the vLLM server at {self.url} hangs: {silent}\n{self._log.tail()}")


@contextmanager
def vllm_server(
    plan: ServerPlan,
    *,
    log: Path,
    timeout_s: float,
    on_progress: Callable[[str], None],
    patience_s: float = 60.0,
) -> Iterator[Server]:
    """A healthy server as planned; after the block, whatever happened, nothing of it is left. Inside it the environment
    holds the server's key.

    Raises ServerError if it ends, is not ready within `timeout_s`, or is not the one that we started.
    """
    scratch = make_scratch()
    # vLLM leaves files behind in the temporary folder; what torch compiles is worth keeping, and has its default place.
    kept = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
    temporary = {"TMPDIR": str(scratch), "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", kept)}
    env = {**temporary, **plan.env, **vllm_metadata(scratch, plan.env)}
    output = Log(log)
    with drawn(), Child(plan.argv, env=env, log=log, scratch=scratch) as child:
        _await_ready(plan.url, child, output, timeout_s, on_progress)
        _refuse_foreign_listener(plan.url, child)
        info = inspect(plan.url, child=child, log=output)
        wrong = mismatches(
            info, tp=plan.tp, dp=plan.dp, backend=plan.backend, served_name=plan.served_name, seed=plan.seed
        )
        if wrong:
            raise ServerError("error", f"the server at {plan.url} is not as planned:\n" + "\n".join(wrong))
        yield Server(plan, child, output, info, patience_s)


def attach(url: str, *, tp: int, dp: int, backend: str, timeout_s: float) -> ServerInfo:
    """The same checks for a server that somebody else started. Raises ServerError."""
    deadline = time.monotonic() + timeout_s
    while (answer := _health(url, min(ANSWER_S, timeout_s))) != "200":
        if time.monotonic() > deadline:
            message = f"vllm.url={url}: not healthy within {timeout_s:g} s (last answer to /health: {answer})"
            raise ServerError("server_timeout", message)
        time.sleep(0.5)
    try:
        info = inspect(url)
    except ServerError as error:
        raise ServerError("error", f"vllm.url={url}: {error}\n{_advice('MODEL', tp, dp, backend)}") from error
    wrong = mismatches(info, tp=tp, dp=dp, backend=backend)
    if wrong:
        lines = [f"vllm.url={url}: the server does not fit", *wrong, _advice(info.model, tp, dp, backend)]
        raise ServerError("error", "\n".join(lines))
    return info


def _await_ready(url: str, child: Child, log: Log, timeout_s: float, on_progress: Callable[[str], None]) -> None:
    started = reported = time.monotonic()
    while (answer := _health(url, timeout_s=2.0)) != "200":
        _raise_if_ended(child, log)
        if answer != NOBODY:
            _refuse_foreign_listener(url, child)
        now = time.monotonic()
        if now - started > timeout_s:
            message = f"the vLLM server is not ready after {timeout_s:g} s (/health: {answer})\n{log.tail()}"
            raise ServerError("server_timeout", message)
        if now - reported > PROGRESS_EVERY_S:
            reported = now
            on_progress(f"{now - started:.0f} s: {log.last_line() or 'nothing in its log yet'}")
        time.sleep(0.25)
    _raise_if_ended(child, log)


def _raise_if_ended(child: Child, log: Log) -> None:
    code = child.poll()
    if code is None:
        return
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    if code == -9:
        how += " (SIGKILL: by hand, or by the kernel for want of memory)"
    causes = log.causes()
    failure_class = "oom" if any(OUT_OF_MEMORY.search(cause) for cause in causes) else "server_died"
    lines = [f"the vLLM server ended with {how}", *causes, log.tail()]
    raise ServerError(failure_class, "\n".join(lines))


def _refuse_foreign_listener(url: str, child: Child) -> None:
    """Raises ServerError if somebody else listens on the port, alone or, with SO_REUSEPORT, beside our server."""
    for _ in range(3):  # a socket that is just being handed on shows without its process for a moment
        foreign = _listeners(url) - _tree(child.pid)
        if not foreign:
            return
        time.sleep(0.2)
    who = ", ".join("one of another user" if pid is None else _name(pid) for pid in foreign)
    raise ServerError("error", f"the port of {url} is held by a process that is not ours: {who}")


def _listeners(url: str) -> set[int | None]:
    """Processes that listen on the port; None stands for those that we may not look into."""
    port = urlsplit(url).port
    return {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }


def _tree(pid: int) -> set[int]:
    try:
        command = psutil.Process(pid)
        return {pid, *(process.pid for process in command.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def _name(pid: int) -> str:
    try:
        return f"{pid} ({shlex.join(psutil.Process(pid).cmdline())[:200]})"
    except psutil.Error:
        return str(pid)


def inspect(url: str, *, child: Child | None = None, log: Log | None = None) -> ServerInfo:
    """Ask a healthy server what it is. Raises ServerError; of a `child` that ends meanwhile, why it did."""
    try:
        models = _json(f"{url}/v1/models")["data"]
        world_size = _json(f"{url}/get_world_size")["world_size"]
        config = _json(f"{url}/server_info?config_format=json", timeout_s=SERVER_INFO_S)["vllm_config"]
        return _info(models[0], world_size, config, _version(url))
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        if child is not None and log is not None:
            time.sleep(BROKEN_S)
            _raise_if_ended(child, log)
        message = f"{url} does not answer like vLLM with VLLM_SERVER_DEV_MODE=1: {type(error).__name__}: {error}"
        raise ServerError("error", message) from error


def _info(model: dict[str, Any], world_size: int, config: dict[str, Any], version: str | None) -> ServerInfo:
    parallel, of_model = config.get("parallel_config", {}), config.get("model_config", {})
    return ServerInfo(
        served_name=model["id"],
        model=model.get("root") or model["id"],
        world_size=world_size,
        tp=parallel.get("tensor_parallel_size"),
        dp=parallel.get("data_parallel_size"),
        backend=(config.get("weight_transfer_config") or {}).get("backend"),
        logprobs_mode=of_model.get("logprobs_mode"),
        max_logprobs=of_model.get("max_logprobs"),
        seed=of_model.get("seed"),
        max_model_len=of_model.get("max_model_len"),
        version=version,
    )


def _version(url: str) -> str | None:
    status, body = fetch(f"{url}/version", ANSWER_S, bearer())
    return json.loads(body).get("version") if status == 200 else None


def mismatches(
    info: ServerInfo, *, tp: int, dp: int, backend: str, served_name: str | None = None, seed: int | None = None
) -> list[str]:
    """One line for each thing that is not as expected; what the server does not tell is not held against it."""
    wanted: list[tuple[str, object, object]] = [
        ("model name", info.served_name, served_name),
        ("workers (tp x dp)", info.world_size, tp * dp),
        ("tensor-parallel size", info.tp, tp),
        ("data-parallel size", info.dp, dp),
        ("logprobs mode", info.logprobs_mode, "processed_logprobs"),
        ("max logprobs", info.max_logprobs, -1),
        ("seed", info.seed, seed),
    ]
    wrong = [
        f"{what} is {differences}, expected {expected}"
        for what, differences, expected in wanted
        if None not in (differences, expected) and differences != expected
    ]
    if info.backend != backend:
        wrong.append(f"weight-transfer backend is {info.backend or 'not configured'}, expected {backend}")
    return wrong


def _advice(model: str, tp: int, dp: int, backend: str) -> str:
    command = ["vllm", "serve", model, *flags(recipe(tp, dp, backend))]
    return f"start it with: VLLM_SERVER_DEV_MODE=1 {shlex.join(command)}"


NOBODY = "nobody listens"
GONE = {
    "503": "says that its engine is dead",
    NOBODY: "has closed its port",
}
"""Answers of /health, once it was healthy, that are final: the death of an engine process does not always end the API
server, which may wait for ever for connections that are still open."""


def _health(url: str, timeout_s: float) -> str:
    """Status of /health, or in words why there is none."""
    try:
        return str(fetch(f"{url}{OPEN}", timeout_s)[0])
    except ConnectionRefusedError:
        return NOBODY
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__} {error}".strip()


def _json(url: str, timeout_s: float = ANSWER_S) -> Any:
    status, body = fetch(url, timeout_s, bearer())
    if status == 401:
        raise ValueError(f"{urlsplit(url).path} asks for its key; set {KEY} to it in the environment")
    if status != 200:
        raise ValueError(f"{urlsplit(url).path} answers {status}")
    return json.loads(body)


def fetch(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """GET without proxies: status and body. Raises OSError or HTTPException, within `timeout_s` as a whole.

    A socket's own timeout starts anew with every byte, so a timer ends the connection.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.connect()
        alarm = threading.Timer(timeout_s, _hang_up, [connection.sock])
        alarm.start()
        try:
            query = f"?{parts.query}" if parts.query else ""
            connection.request("GET", parts.path + query, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read(ANSWER_BYTES)
        finally:
            alarm.cancel()
    finally:
        connection.close()


def _hang_up(connected: socket.socket) -> None:
    with suppress(OSError):  # closed meanwhile
        connected.shutdown(socket.SHUT_RDWR)
