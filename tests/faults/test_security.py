"""Who is let in, what is run, and where a secret could be read: nothing, nothing of others, nowhere."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import pickle
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.config.redaction import redact, redact_command
from grpo_lab.config.schema import Config, ModelConfig, VllmConfig
from grpo_lab.machine.nodes import Host
from grpo_lab.planner.checks.secrets import check_secrets
from grpo_lab.planner.parts import Ports
from grpo_lab.planner.train import make_plan, shell
from grpo_lab.rewards import sandbox
from grpo_lab.rewards.programs import code
from grpo_lab.server import key as server_key
from grpo_lab.server.command import ServerPlan
from grpo_lab.server.exposure import check_url, is_public
from grpo_lab.store.folder import Run
from grpo_lab.sweep import job
from tests.conftest import ROOT, SHORT, cli
from tests.faults.fuzz import command
from tests.planner.test_plan import ON_CPU, asked, with_gpus
from tests.worker.test_algorithms import WITH_KERNELS

PORTS = Ports(20001, 20002, 20003, 20004)
SOURCES = [file for part in ("grpo_lab", "hydra_plugins") for file in (ROOT / part).rglob("*.py")]

# Who can reach a server


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("127.0.0.1", False), ("::1", False), ("10.0.0.9", False), ("192.168.1.2", False), ("172.16.5.4", False)),
        *(("169.254.1.1", False), ("fd00::1", False), ("fe80::1%eth0", False), ("localhost", False), ("node0", False)),
        *(("8.8.8.8", True), ("0.0.0.0", True), ("::", True), ("2001:4860:4860::8888", True), ("[::]", True)),
    ],
)
def test_what_a_public_address_is(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_a_server_on_one_machine_listens_on_the_loopback() -> None:
    plan = make_plan(asked("vllm=server"), with_gpus(2), folder=Path("runs/x"), ports=PORTS)
    assert plan.server is not None
    assert plan.server.argv[plan.server.argv.index("--host") + 1] == "127.0.0.1"
    assert plan.server.url.startswith("http://127.0.0.1:")


def test_a_server_over_several_machines_takes_a_public_address_only_where_it_was_asked_to() -> None:
    def plan(address: str, *overrides: str) -> str:
        hosts = (Host("a", address, here=True), Host("b", "10.0.0.2"))
        machine = replace(with_gpus(2), hosts=hosts)
        server = make_plan(
            asked("nodes=2", "vllm=server", *overrides), machine, folder=Path("runs/x"), ports=PORTS
        ).server
        assert server is not None
        return server.url

    assert plan("10.0.0.1") == "http://10.0.0.1:20001"
    with pytest.raises(RequestError, match=r"(?s)a's public address 8\.8\.8\.8.*vllm\.expose=true"):
        plan("8.8.8.8")
    assert plan("8.8.8.8", "vllm.expose=true") == "http://8.8.8.8:20001"


@pytest.mark.parametrize("url", ["http://8.8.8.8:8000", "http://[2001:4860:4860::8888]:8000", "http://0.0.0.0:8000"])
def test_a_running_server_on_a_public_address_is_not_used_unasked(url: str) -> None:
    def config(expose: bool) -> Config:
        return Config(model=ModelConfig(name="x", path="x"), vllm=VllmConfig(mode="server", url=url, expose=expose))

    with pytest.raises(RequestError, match=r"vllm\.expose=true"):
        check_url(config(expose=False))
    check_url(config(expose=True))


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://10.0.0.1", "http://[::1", "http://10.0.0.1:x", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match=r"vllm\.url="):
        check_url(Config(vllm=VllmConfig(mode="server", url=url)))
    check_url(Config(vllm=VllmConfig(mode="server", url="http://127.0.0.1:8000")))


def test_a_key_belongs_into_the_environment_of_the_command() -> None:
    with pytest.raises(RequestError, match=r"vllm\.env\.VLLM_API_KEY: set it before the command") as refused:
        make_plan(asked("vllm=server", "vllm.env.VLLM_API_KEY=abc"), with_gpus(2), folder=Path("runs/x"), ports=PORTS)
    assert "abc" not in str(refused.value)


def test_every_server_is_guarded_but_that_of_async_grpo() -> None:
    def planned(*overrides: str) -> tuple[ServerPlan, str]:
        hosts = (Host("a", "10.0.0.1", here=True), Host("b", "10.0.0.2"))
        machine = replace(WITH_KERNELS, hosts=hosts)
        request = asked("model=qwen2.5-0.5b", "vllm=server", "nodes=2", *overrides)
        plan = make_plan(request, machine, folder=Path("runs/x"), ports=PORTS)
        assert plan.server is not None
        return plan.server, "\n".join(plan.notes)

    guarded, said = planned()
    assert guarded.argv[guarded.argv.index("--middleware") + 1] == server_key.GATE
    assert server_key.KEY not in guarded.env
    assert "its administrative endpoints behind a key that is sent unencrypted" in said
    keyless, said = planned("algorithm=async_grpo")
    assert server_key.GATE not in keyless.argv
    assert keyless.env[server_key.KEY] == ""
    assert "its administrative endpoints open to the whole network" in said


def test_a_run_draws_a_key_of_its_own_or_takes_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server_key.KEY, raising=False)
    assert server_key.bearer() == {}
    drawn = []
    for _ in range(2):
        with server_key.drawn():
            drawn.append(server_key.bearer()["Authorization"].removeprefix("Bearer "))
    assert drawn[0] != drawn[1]
    assert min(map(len, drawn)) >= 32
    assert server_key.KEY not in os.environ
    monkeypatch.setenv(server_key.KEY, "mine")
    with server_key.drawn():
        assert server_key.bearer() == {"Authorization": "Bearer mine"}
    assert os.environ[server_key.KEY] == "mine"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ((), 401),
        ((b"authorization", b"Bearer right"), 200),
        ((b"authorization", b"bearer right"), 401),
        ((b"authorization", b"Bearer wrong"), 401),
        ((b"authorization", b"Bearer "), 401),
        ((b"authorization", b"Bearer right and more"), 401),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/update_weights", "/metrics", "/healthy", "/health/", "//health", "/"])
def test_the_gate_lets_in_who_knows_the_key(
    said: tuple[bytes, ...], answer: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(server_key.KEY, "right")
    assert answer_of(path, *([said] if said else [])) == answer
    assert answer_of("/health") == 200


def test_a_server_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server_key.KEY, "")
    with pytest.raises(RuntimeError, match=f"set {server_key.KEY}"):
        answer_of("/health")


def answer_of(path: str, *headers: tuple[bytes, ...]) -> int:
    """Status that a server behind the gate gives, which answers 200 to everything."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(server_key.Gate(app)({"type": "http", "path": path, "headers": list(headers)}, receive, send))
    return int(sent[0]["status"])


def test_trl_s_client_still_takes_no_key() -> None:
    """When it does, the header of `client_of_a_run` can go."""
    from trl.generation.vllm_client import VLLMClient

    assert not [name for name in inspect.signature(VLLMClient.__init__).parameters if "key" in name or "header" in name]


# What is run


def test_nothing_is_unpickled_evaluated_or_loaded_as_code_but_where_it_is_known_to_be_ours() -> None:
    """Each call that could run what is in a file or a text, and why it may stay."""
    allowed = {
        ("sweep/job.py", "loads"),  # the launcher's own file, seen to be this user's and closed to others
        ("rewards/verifier.py", "load"),  # what the process that started it writes to its standard input
        ("conductor/rehearsal.py", "loads"),  # likewise: the conductor's own call, on standard input
        ("rewards/cell.py", "exec"),  # the policy's program, confined
        ("reporter/folder.py", "load"),  # PyYAML's safe loader
    }
    dangerous = {"eval", "exec", "loads", "load", "unsafe_load", "full_load"}
    found = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                module, _, last = name.rpartition(".")
                builtin = not module and last in ("eval", "exec", "__import__")
                if builtin or (
                    last in dangerous and module.rpartition(".")[2] in ("pickle", "cloudpickle", "torch", "yaml")
                ):
                    found.add((str(file.relative_to(ROOT / "grpo_lab")), last))
    assert found == allowed


def test_code_of_a_model_is_not_trusted_by_default() -> None:
    assert Config().model.trust_remote_code is False
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert not re.search(r"trust_remote_code:\s*true", file.read_text(encoding="utf-8")), file
    for file in SOURCES:
        assert "trust_remote_code=True" not in file.read_text(encoding="utf-8"), file
    plan = make_plan(asked(), ON_CPU, folder=Path("runs/x"), ports=PORTS)
    assert plan.trl["trust_remote_code"] is False


class Touch:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_file_of_a_point_is_closed_to_others_and_not_read_once_they_could_have_changed_it(tmp_path: Path) -> None:
    file, mark = tmp_path / "x.return", tmp_path / "ran"
    job.write(file, pickle.dumps(Touch(mark)))
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o622)
    with pytest.raises(RequestError, match="can be changed by others"):
        job.unpack_return(file)
    assert not mark.exists()
    file.chmod(0o600)
    job.unpack_return(file)
    assert mark.exists()


# Where a secret could be read

SECRET = {
    name: f"zq{name.lower().replace('_', '')}7731" for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "DB_URL")
}


@pytest.mark.parametrize(
    "override",
    [
        "rewards.mine.api_key=zqreward7731",
        "data.password=zqreward7731",
        "vllm.engine.hf_token=zqreward7731",
        "vllm.url=http://me:zqreward7731@10.0.0.1:8000",
        "data.path=https://me:zqreward7731@example.org/rows",
        "tracker.entity=hf_zqreward7731zqreward7731",
    ],
)
def test_a_secret_that_no_file_may_hold_is_refused_without_being_said(override: str, tmp_path: Path) -> None:
    extra = ["vllm=server"] if "vllm." in override else []
    extra += ["rewards.mine._target_=tests.rows.nothing"] if "mine" in override else []
    ended = command(*extra, override, cwd=tmp_path)
    assert ended.code == 2, ended.err
    assert override.partition("=")[0] in ended.err
    assert "zqreward7731" not in ended.out + ended.err
    assert not list(tmp_path.iterdir())


def test_secrets_of_the_environment_may_pass() -> None:
    check_secrets(Config(vllm=VllmConfig(env={"HF_TOKEN": "x" * 20})))


def test_commands_for_the_record_and_the_terminal_hold_no_secret() -> None:
    told = redact_command(["a.b", "vllm.env.MY_TOKEN=zq two words", "vllm.env={HF_TOKEN: zq}", "--api-key=zq", "x=1"])
    assert "zq" not in told
    assert "two" not in told
    assert "x=1" in told
    assert "zq" not in shell(redact({"HF_TOKEN": "zq"}), ["run"])


def test_a_run_leaves_no_secret_in_its_files_its_output_or_the_process_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted in the environment and in vllm.env; looked for in every file, as bytes, and in every command line."""
    monkeypatch.setenv("HF_TOKEN", SECRET["HF_TOKEN"])
    monkeypatch.setenv("WANDB_API_KEY", SECRET["WANDB_API_KEY"])
    settings = tmp_path / "conf" / "experiment"
    settings.mkdir(parents=True)
    env = {"MY_PASSWORD": SECRET["MY_PASSWORD"], "DB_URL": f"postgres://me:{SECRET['DB_URL']}@db/x"}
    lines = ["# @package _global_", "vllm:", "  env:", *(f"    {key}: {value}" for key, value in env.items())]
    (settings / "secret.yaml").write_text("\n".join(lines))
    seen: list[str] = []
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(seen, over))
    watcher.start()
    try:
        fast = ["grpo.max_steps=1", "grpo.save_steps=1", "eval.problems=8", "tracker=wandb"]
        ended = cli(
            "-cd", str(tmp_path / "conf"), "experiment=secret", *SHORT, *fast, "name=one", f"runs_dir={tmp_path}/runs"
        )
    finally:
        over.set()
        watcher.join()
    run = Run(tmp_path / "runs" / "one")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    files = [file for file in run.folder.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert any(file.name == "README.md" for file in files) or run.whole_checkpoints()
    for secret in SECRET.values():
        assert not [file for file in files if secret.encode() in file.read_bytes()]
        assert secret not in ended.stdout + ended.stderr
        assert not [line for line in seen if secret in line]
    assert any("grpo_lab.worker" in line for line in seen)
    (checkpoint, _) = run.last_checkpoint() or (None, 0)
    assert checkpoint is not None
    assert (checkpoint / "model.safetensors").is_file()
    assert not list(run.folder.rglob("pytorch_model*"))


def _watch(seen: list[str], over: threading.Event) -> None:
    known: set[str] = set()
    while not over.wait(0.3):
        for process in psutil.process_iter():
            try:
                known.add(" ".join(process.cmdline()))
            except psutil.Error:
                continue
    seen.extend(known)


# The code reward's cage, beyond tests/rewards/test_rewards_code.py

ATTACKS = {
    "a symlink to a file of ours": "import os\nos.symlink('/etc/passwd', '/tmp/grpo-lab-link')",
    "the environment of the parent": "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
    "the memory of the parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "its own memory map": "open('/proc/self/maps').read()",
    "a trace of the parent": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.ptrace(16, os.getppid(), 0, 0) == 0, ctypes.get_errno()"
    ),
    "the memory of the parent, by system call": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.syscall(310, os.getppid(), None, 0, None, 0, 0) >= 0"
    ),
    "shared memory of System V": "import ctypes\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1666) >= 0",
    "a semaphore of System V": "import ctypes\nassert ctypes.CDLL(None).semget(0, 1, 0o1666) >= 0",
    "a queue of System V": "import ctypes\nassert ctypes.CDLL(None).msgget(0, 0o1666) >= 0",
    "shared memory of POSIX": "import _posixshmem\n_posixshmem.shm_open('/grpo-lab-probe', 0o102, 0o600)",
    "a signal to the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "a signal to all": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "a process": "import os\nos.fork()",
    "a process by clone": "import ctypes\nassert ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0",
    "another program": "import os\nos.execv('/bin/true', ['true'])",
    "a thread": "import threading\nthreading.Thread(target=print).start()",
    "a namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "a mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "a key of the kernel's": "import ctypes\nassert ctypes.CDLL(None).syscall(250, 0, -3, 0) >= 0",
    "an io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(200)) >= 0",
    "eBPF": "import ctypes\nassert ctypes.CDLL(None).syscall(321, 0, ctypes.create_string_buffer(128), 128) >= 0",
    "a socket to the loopback": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
    "a socket of the machine": "import socket\nsocket.socketpair()",
}


@pytest.fixture(scope="module", autouse=True)
def quiet_machine() -> Iterator[None]:
    before = _kernel_objects()
    yield
    assert _kernel_objects() <= before
    assert not os.path.lexists("/tmp/grpo-lab-link")
    assert not os.path.exists("/dev/shm/grpo-lab-probe")


def _kernel_objects() -> set[str]:
    """Keys of System V's shared memory, semaphores and queues that anybody made with these tests' marks."""
    found = set()
    for kind in ("shm", "sem", "msg"):
        lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        found |= {f"{kind} {line.split()[1]}" for line in lines if line.split()[2].endswith("666")}
    return found


@pytest.mark.skipif(sandbox.missing() is not None, reason="programs cannot be confined here")
def test_no_program_gets_hold_of_what_is_outside() -> None:
    """Each attack is a program whose last line is reached only when it has succeeded."""
    programs = [f"```python\n{attack}\n```" for attack in ATTACKS.values()]
    scores = code(programs, tests=[["assert True"]] * len(programs), timeout_s=20.0)
    assert dict(zip(ATTACKS, scores, strict=True)) == dict.fromkeys(ATTACKS, 0.0)
    assert code(["```python\nx = 1\n```"], tests=[["assert x == 1"]], timeout_s=20.0) == [1.0]


@pytest.mark.skipif(sandbox.missing() is not None, reason="programs cannot be confined here")
def test_a_link_that_is_there_leads_nowhere(tmp_path: Path) -> None:
    """Landlock judges where a path ends, not how it is written."""
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_text("zq")
    link.symlink_to(secret)
    paths = (secret, link, Path("/proc/self/root") / str(secret)[1:], Path("/usr/lib/..") / ".." / str(secret)[1:])
    programs = [f"```python\nprint(open({str(path)!r}).read())\n```" for path in paths]
    assert code(programs, tests=[["assert True"]] * len(paths), timeout_s=20.0) == [0.0] * len(paths)


@pytest.mark.skipif(sandbox.missing() is not None, reason="programs cannot be confined here")
@pytest.mark.parametrize(
    "bomb",
    [
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 'a' * (1 << 40)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.alarm(0)\nwhile True: pass",
        "while True: print('x' * 10_000)",
    ],
    ids=["memory", "one object", "forks", "time", "output"],
)
def test_a_bomb_takes_no_more_than_its_limits(bomb: str) -> None:
    started = time.monotonic()
    assert code([f"```python\n{bomb}\n```"], tests=[["assert True"]], timeout_s=1.0, memory_mb=128) == [0.0]
    assert time.monotonic() - started < 60


def test_no_torch_file_of_a_checkpoint_is_read_as_code() -> None:
    """transformers, which reads the optimizer's, the scheduler's and the generators' states, does so weights_only."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "trainer.py").read_text(encoding="utf-8")
    loads = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads
    assert all(keywords.get("weights_only") == "True" for keywords in loads), loads
