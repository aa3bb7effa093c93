"""Servers that do everything wrong, as real processes: the right class of failure, in bounded time, nothing left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.machine.logs import Log
from grpo_lab.machine.ports import is_free, lease
from grpo_lab.machine.processes import TREE, tree_members
from grpo_lab.server.command import ServerPlan, server_argv, server_env, vllm_metadata
from grpo_lab.server.process import ServerError, attach, fetch, vllm_server

FAKE = r"""
import json, os, socket, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
port, kind, answers = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
print("INFO 11-21 08:20:46 [model.py:1] Loading the fake model", flush=True)
started = time.monotonic()

if kind == "never":
    time.sleep(300)
if kind == "dies":
    time.sleep(0.5)
    print("(EngineCore pid=7) ERROR 11-21 08:20:47 [core.py:9] ValueError: the root of it")
    print("(EngineCore pid=7) Traceback (most recent call last):")
    print("(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.")
    sys.exit(3)
if kind == "oom":
    sys.exit("(Worker pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
if kind == "killed":
    os.kill(os.getpid(), 9)
if kind in ("garbage", "mute", "drip"):
    server = socket.create_server(("127.0.0.1", port))
    kept = []
    while True:
        peer, _ = server.accept()
        kept.append(peer)
        if kind == "garbage":
            peer.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            peer.close()
        while kind == "drip":
            try:
                peer.sendall(b"x")
            except OSError:
                break
            time.sleep(0.2)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        age = time.monotonic() - started
        if kind == "hangs" and age > 1.5:
            time.sleep(300)
        if kind == "ends" and age > 1.5:
            os._exit(5)
        if kind == "slow":
            time.sleep(0.5)
        answer = answers.get(path)
        if kind == "engine dies" and age > 1.5 and path == "/health":
            answer = 503
        if kind == "closes" and age > 1.5:
            server.socket.close()
        status = answer if isinstance(answer, int) else 200 if answer is not None else 404
        body = b"" if isinstance(answer, int) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
try:
    server.serve_forever()
except (OSError, ValueError):
    time.sleep(300)
"""

NAME = "run-1234"


def answers(name: str = NAME, tp: int = 1, dp: int = 1, backend: str | None = "gloo") -> dict[str, Any]:
    config = {
        "parallel_config": {"tensor_parallel_size": tp, "data_parallel_size": dp},
        "weight_transfer_config": backend and {"backend": backend},
        "model_config": {"logprobs_mode": "processed_logprobs", "max_logprobs": -1, "seed": 3},
    }
    return {
        "/health": {},
        "/v1/models": {"data": [{"id": name, "root": "some/model"}]},
        "/get_world_size": {"world_size": tp * dp},
        "/server_info": {"vllm_config": config},
        "/version": {"version": "0.31.0"},
    }


@pytest.fixture
def port() -> Iterator[int]:
    with lease(1) as (port,):
        yield port
        with pytest.raises(ConnectionRefusedError):  # nobody listens any more
            socket.create_connection(("127.0.0.1", port), 1)


def fake(port: int, kind: str = "good", spoken: dict[str, Any] | None = None) -> list[str]:
    return [sys.executable, "-c", FAKE, str(port), kind, json.dumps(answers() if spoken is None else spoken)]


def plan(port: int, kind: str = "good", spoken: dict[str, Any] | None = None) -> ServerPlan:
    argv = tuple(fake(port, kind, spoken))
    return ServerPlan(argv, {}, f"http://127.0.0.1:{port}", NAME, tp=1, dp=1, backend="gloo", seed=3)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def start(plan: ServerPlan, log: Path, timeout_s: float = 20.0) -> None:
    with vllm_server(plan, log=log, timeout_s=timeout_s, on_progress=lambda _: None):
        pass


def failure(plan: ServerPlan, log: Path, timeout_s: float = 20.0) -> tuple[str, str, float]:
    """Class, message and how long it took."""
    started = time.monotonic()
    with pytest.raises(ServerError) as caught:
        start(plan, log, timeout_s)
    return caught.value.failure_class, str(caught.value), time.monotonic() - started


def test_a_good_server(port: int, log: Path) -> None:
    with vllm_server(plan(port, "slow"), log=log, timeout_s=20, on_progress=lambda _: None) as server:
        server.check()
        assert (server.info.served_name, server.info.seed, server.info.version) == (NAME, 3, "0.31.0")
        assert fetch(f"{server.url}/health", 5)[0] == 200
        tree = Path(f"/proc/{server.pid}/environ").read_bytes().split(f"{TREE}=".encode())[1].split(b"\0")[0]
    assert not tree_members(tree.decode())


def test_the_server_ends_with_an_exception_in_the_block(port: int, log: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        vllm_server(plan(port), log=log, timeout_s=20, on_progress=lambda _: None),
    ):
        raise KeyboardInterrupt


def test_never_ready(port: int, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_lab.server.process.PROGRESS_EVERY_S", 0.5)
    said: list[str] = []
    with (
        pytest.raises(ServerError, match="not ready after 2 s") as caught,
        vllm_server(plan(port, "never"), log=log, timeout_s=2, on_progress=said.append),
    ):
        pass
    assert caught.value.failure_class == "server_timeout"
    assert said[-1].endswith("s: Loading the fake model")


def test_dies_while_loading(port: int, log: Path) -> None:
    log.write_text("ValueError: of the run before\n")
    kind, message, seconds = failure(plan(port, "dies"), log)
    assert (kind, message.splitlines()[:2]) == (
        "server_died",
        ["the vLLM server ended with exit code 3", "ValueError: the root of it"],
    )
    assert "Engine core initialization failed" in message  # in the tail, not before it
    assert "of the run before" not in message
    assert seconds < 10


def test_out_of_memory_and_killed(port: int, log: Path) -> None:
    assert failure(plan(port, "oom"), log)[0] == "oom"
    kind, message, _ = failure(plan(port, "killed"), log)
    assert kind == "server_died"
    assert "SIGKILL" in message


@pytest.mark.parametrize(("kind", "health"), [("good", 404), ("good", 500), ("garbage", 0), ("mute", 0), ("drip", 0)])
def test_not_healthy(port: int, log: Path, kind: str, health: int) -> None:
    spoken = {"/health": health} if health else {}
    found, message, seconds = failure(plan(port, kind, spoken), log, timeout_s=3)
    assert found == "server_timeout"
    assert str(health or "/health") in message
    assert seconds < 12


@pytest.mark.parametrize(
    ("spoken", "expected"),
    [
        (answers(name="another"), "model name is another, expected run-1234"),
        (answers(tp=2), "tensor-parallel size is 2, expected 1"),
        (answers(backend="nccl"), "weight-transfer backend is nccl, expected gloo"),
        (answers(backend=None), "weight-transfer backend is not configured"),
        ({"/health": {}}, "VLLM_SERVER_DEV_MODE=1"),
        ({**answers(), "/v1/models": ["odd"]}, "does not answer like vLLM"),
        ({**answers(), "/server_info": 500}, "/server_info answers 500"),
    ],
)
def test_not_as_planned(port: int, log: Path, spoken: dict[str, Any], expected: str) -> None:
    kind, message, _ = failure(plan(port, "good", spoken), log)
    assert kind == "error"
    assert expected in message


@pytest.mark.parametrize("kind", ["good", "garbage"])
def test_a_stranger_on_the_port(port: int, log: Path, kind: str) -> None:
    with outsider(port, kind) as stranger:
        found, message, seconds = failure(plan(port, "never"), log)
    assert (found, seconds < 10) == ("error", True)
    assert f"not ours: {stranger} (" in message


def test_check_notices_an_end(port: int, log: Path) -> None:
    with (
        vllm_server(plan(port, "ends"), log=log, timeout_s=20, on_progress=lambda _: None) as server,
        pytest.raises(ServerError, match="exit code 5") as caught,
    ):
        _watch(server, port)
    assert caught.value.failure_class == "server_died"


def test_check_notices_silence(port: int, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_lab.server.process.HEALTH_EVERY_S", 0.2)
    hanging = plan(port, "hangs")
    with (
        pytest.raises(ServerError, match="without a healthy answer") as caught,
        vllm_server(hanging, log=log, timeout_s=20, on_progress=lambda _: None, patience_s=1.0) as server,
    ):
        _watch(server, port)
    assert caught.value.failure_class == "server_timeout"


@pytest.mark.parametrize(("kind", "said"), [("engine dies", "its engine is dead"), ("closes", "closed its port")])
def test_check_notices_a_dead_engine_behind_a_living_api_server(
    kind: str, said: str, port: int, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpo_lab.server.process.HEALTH_EVERY_S", 0.2)
    with (
        pytest.raises(ServerError, match=said) as caught,
        vllm_server(plan(port, kind), log=log, timeout_s=20, on_progress=lambda _: None) as server,
    ):
        _watch(server, port)
    assert caught.value.failure_class == "server_died"


def _watch(server: Any, port: int) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with suppress(OSError, HTTPException):
            fetch(f"http://127.0.0.1:{port}/health", 0.1)
        server.check()
        time.sleep(0.1)


@contextmanager
def outsider(port: int, kind: str = "good") -> Iterator[int]:
    """A server that is not ours, listening; its process id."""
    server = subprocess.Popen(fake(port, kind), stdout=subprocess.DEVNULL)
    try:
        while is_free(port):
            time.sleep(0.05)
        time.sleep(0.1)  # bound, now it listens
        yield server.pid
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def running(port: int) -> Iterator[str]:
    with outsider(port):
        yield f"http://127.0.0.1:{port}"


def test_attach(running: str) -> None:
    info = attach(running, tp=1, dp=1, backend="gloo", timeout_s=10)
    assert (info.served_name, info.model, info.backend) == (NAME, "some/model", "gloo")


def test_attach_to_one_that_does_not_fit(running: str) -> None:
    with pytest.raises(ServerError) as caught:
        attach(running, tp=2, dp=2, backend="nccl", timeout_s=10)
    text = str(caught.value)
    assert "workers (tp x dp) is 1, expected 4" in text
    assert "vllm serve some/model --tensor-parallel-size 2 --data-parallel-size 2" in text
    assert """--weight-transfer-config '{"backend":"nccl"}'""" in text


def test_attach_to_nobody(port: int) -> None:
    with pytest.raises(ServerError, match="nobody listens") as caught:
        attach(f"http://127.0.0.1:{port}", tp=1, dp=1, backend="nccl", timeout_s=1)
    assert caught.value.failure_class == "server_timeout"


def test_a_request_is_bounded_as_a_whole(port: int) -> None:
    with outsider(port, "drip"):
        started = time.monotonic()
        with pytest.raises((OSError, HTTPException)):
            fetch(f"http://127.0.0.1:{port}/health", 1.0)
        assert time.monotonic() - started < 3


def test_proxies_are_not_asked(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch(f"{running}/health", 5)[0] == 200


WANTED: dict[str, Any] = {
    "served_name": NAME,
    "host": "127.0.0.1",
    "port": 20001,
    "tp": 2,
    "dp": 4,
    "backend": "nccl",
    "seed": 7,
    "max_model_len": 4096,
    "gpu_memory_utilization": 0.9,
    "engine": {},
}


def test_server_argv() -> None:
    argv = server_argv("some/model", **WANTED)
    assert argv[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "some/model"]
    assert " ".join(argv[5:]) == (
        "--host 127.0.0.1 --port 20001 --served-model-name run-1234 --tensor-parallel-size 2 --data-parallel-size 4"
        ' --weight-transfer-config {"backend":"nccl"} --logprobs-mode processed_logprobs --max-logprobs -1 --seed 7'
        " --max-model-len 4096 --gpu-memory-utilization 0.9 --middleware grpo_lab.server.key.Gate"
    )


@pytest.mark.parametrize(
    ("version", "given"), [(None, False), ("0.29.1", False), ("0.30.0", True), ("0.31.0+cpu", True)]
)
def test_scale_out_where_vllm_has_it(version: str | None, given: bool) -> None:
    assert ("--enable-scale-out" in server_argv("m", **WANTED, version=version)) is given


def test_engine_arguments() -> None:
    engine = {"enforce_eager": True, "enable_prefix_caching": False, "dtype": "float32", "block_size": None}
    argv = server_argv(
        "m", **{**WANTED, "engine": {**engine, "hf_overrides": {"a": 1}}, "max_model_len": None}, guarded=False
    )
    assert argv[-7:] == [
        "0.9",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--dtype",
        "float32",
        "--hf-overrides",
        '{"a":1}',
    ]


def test_server_env() -> None:
    gpu = server_env(on_cpu=False, tp=2, dp=2, cores=64, gpus=("4", "5", "6", "7"))
    assert gpu["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
    assert gpu["VLLM_SERVER_DEV_MODE"] == "1"
    cpu = server_env(on_cpu=True, tp=2, dp=2, cores=2)
    assert (cpu["OMP_NUM_THREADS"], cpu["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", "nobind")
    compiled = server_env(on_cpu=True, tp=1, dp=1, cores=2, engine={"enforce_eager": False})
    assert set(cpu) - set(compiled) == {"TORCHDYNAMO_DISABLE"}  # without it vLLM's compilation fails
    roomy = server_env(on_cpu=True, tp=1, dp=1, cores=2, engine={"kv_cache_memory_bytes": 2**27})
    assert set(cpu) - set(roomy) == {"VLLM_CPU_KVCACHE_SPACE"}  # with it vLLM would not heed the argument


def test_vllm_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_lab.config.upstream.version", lambda _: "9.8.7+cpu")
    env = vllm_metadata(tmp_path, {"PYTHONPATH": "/somewhere"})
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import importlib.metadata as m, sys; print(m.version('vllm'), sys.path.index('/somewhere'))",
        ],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["9.8.7+cpu", "2"]
    monkeypatch.setattr("grpo_lab.config.upstream.version", lambda _: "0.26.0")
    assert vllm_metadata(tmp_path, {}) == {}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "(APIServer pid=9) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "(APIServer pid=9)   Value error, Sleep mode is not supported on current platform. [type=value_error]\n",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"
            " Value error, Sleep mode is not supported on current platform. [type=value_error]",
        ),
        ("usage: vllm\nvllm: error: unrecognized arguments: --nope\n", "vllm: error: unrecognized arguments: --nope"),
        (
            "(EngineCore_DP0 pid=1) ERROR 01-02 03:04:05 [core.py:1] EngineCore failed to start.\n"
            "(Worker_TP0 pid=2) ERROR 01-02 03:04:05 [multiproc.py:2] AssertionError: Not enough NUMA nodes\n"
            "(EngineCore_DP0 pid=1) Exception: WorkerProc initialization failed due to an exception\n",
            "AssertionError: Not enough NUMA nodes",
        ),
        ("OSError: [Errno 98] Address already in use\n", "OSError: [Errno 98] Address already in use"),
        ("RuntimeError: Engine core initialization failed.\n", "RuntimeError: Engine core initialization failed."),
    ],
)
def test_the_cause_in_a_log(tmp_path: Path, text: str, cause: str) -> None:
    log = Log(tmp_path / "log")
    (tmp_path / "log").write_text(text)
    assert log.causes() == [cause]


def test_a_port_that_is_shared(port: int, log: Path) -> None:
    """vLLM's API servers set SO_REUSEPORT: a second server on the port starts, and requests are split between both."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        line = "server = ThreadingHTTPServer("
        sharing = FAKE.replace(line, f"ThreadingHTTPServer.allow_reuse_port = True\n{line}")
        argv = (sys.executable, "-c", sharing, str(port), "good", json.dumps(answers()))
        kind, message, _ = failure(replace(plan(port), argv=argv), log)
    assert kind == "error"
    assert f"not ours: {os.getpid()} (" in message
