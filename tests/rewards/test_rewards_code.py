"""The reward that runs programs: what passes, and what a hostile program can not do. Real processes, real attacks."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_lab.rewards import sandbox
from grpo_lab.rewards.programs import code, last_program
from grpo_lab.rewards.sandbox import Job, run
from tests.conftest import ROOT
from tests.rewards.test_rewards import NASTY, gone, log_to, run_python, wait_for_line


def can_confine() -> bool:
    """Whether this machine has Landlock and libseccomp, found out apart from the code under test."""
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return ctypes.CDLL(None).syscall(444, None, 0, 1) > 0


confined = pytest.mark.skipif(not can_confine(), reason="no Landlock or no libseccomp: programs are refused here")


def fenced(program: str) -> str:
    return f"My program:\n```python\n{program}\n```\n"


def score(program: str, **columns: Any) -> float | None:
    """Of one program; `expected`: what it must print, `tests`: statements."""
    if "expected" in columns:
        columns["test_cases"] = [{"input": "", "output": columns.pop("expected")}]
    (found,) = code([fenced(program)], **{key: [value] for key, value in columns.items()})
    return found


def test_programs_are_run_exactly_where_they_can_be_confined() -> None:
    assert (sandbox.missing() is None) == can_confine()


WITHOUT_LANDLOCK = """
import os, sys
from grpo_lab.rewards.cell import ALLOW, Filter
ENOSYS = 0x00050000 | 38
rules = Filter(ALLOW)
rules.add(ENOSYS, "landlock_create_ruleset")
rules.load()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
WITHOUT_LIBSECCOMP = """
import sys, ctypes
real = ctypes.CDLL
def CDLL(name, *more, **options):
    if name and "seccomp" in name: raise OSError("not there")
    return real(name, *more, **options)
ctypes.CDLL = CDLL
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TRAIN = ["-m", "grpo_lab.train", "rewards=[code]", "data=custom", "data._target_=tests.rows.empty"]


@pytest.mark.skipif(not can_confine(), reason="the next test has the real thing")
def test_a_run_is_refused_where_the_kernel_or_a_container_blocks_landlock(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK, *TRAIN, f"runs_dir={tmp_path}/runs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "rewards.code: programs cannot be confined here, so none is run: Landlock is not available" in ended.stderr
    assert "Function not implemented" in ended.stderr
    assert 1 <= len(ended.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(can_confine(), reason="programs can be confined here")
def test_a_run_is_refused_here(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, *TRAIN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "programs cannot be confined here" in ended.stderr


@confined
def test_without_libseccomp_nothing_is_run() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBSECCOMP, str(sandbox.CELL)],
        input='{"program": "print(1)", "checks": [], "inputs": [""], "seconds": 5, "memory_mb": 99, "output_bytes": 9}',
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == '{"refused": "libseccomp is not installed (Debian and Ubuntu: libseccomp2)"}'


@confined
def test_the_score_is_the_share_of_the_tests_passed() -> None:
    program = "def f(x):\n    return x + 1\nif __name__ == '__main__':\n    print(f(int(input())))"
    tests = ["assert f(1) == 2", "assert f(1) == 3", "f(", "raise SystemExit"]
    cases = [
        {"input": "1\n", "output": "2"},
        ["2", "3\n\n"],
        {"input": "3", "output": "3"},
        {"input": "x", "output": ""},
    ]
    assert score(program, tests=tests) == 0.25
    assert score(program, test_cases=cases) == 0.5
    assert score(program, tests=tests, test_cases=cases) == 0.375
    assert score(program, tests="assert f(1) == 2\nassert f(2) == 3") == 1.0


@confined
def test_rows_without_tests_are_left_out_and_counted() -> None:
    logged: Counter[str] = Counter()
    rows: list[Any] = [None, [], "", 5, [None], ["pass"]]
    found = code([fenced("")] * 5 + [fenced("while True: pass")], tests=rows, timeout_s=0.5, log_metric=log_to(logged))
    assert found == [None] * 5 + [0.0]
    assert logged == {"rewards/code/timeouts": 1, "rewards/code/untested": 5}
    cases: list[Any] = [[], [{"input": "1"}], [["1"]], ["12"], [{"input": None, "output": "a"}]]
    assert code([fenced("print('a')")] * 5, test_cases=cases) == [None] * 4 + [1.0]
    assert code(["no program"], tests=[["pass"]]) == [0.0]
    with pytest.raises(ValueError, match="neither a column tests nor test_cases"):
        code(["x"])


HARMLESS = {
    "the standard library": (
        "import re, json, math, heapq, itertools, collections, datetime, random, ssl, sqlite3, asyncio, typing\n"
        "print(math.gcd(12, 8))",
        "4",
    ),
    "an empty stdin": (
        "import sys\nprint(repr(sys.stdin.read()), repr(open(0).read()), sys.stdin.isatty())",
        "'' '' False",
    ),
    "modules of its own": (
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    a: int = 4\n"
        "print(A().a, __name__)",
        "4 __main__",
    ),
    "an end of its own": ("import sys, atexit\natexit.register(print, 'bye')\nprint('é')\nsys.exit()", "é\nbye"),
    "a deep recursion": (
        "import sys\nsys.setrecursionlimit(10**6)\nf = lambda n: n and 1 + f(n - 1)\nprint(f(50000))",
        "50000",
    ),
    "half the memory": ("print(len(bytearray(256 << 20)))", str(256 << 20)),
}


@confined
@pytest.mark.parametrize("read", ["open(0).read()", "sys.stdin.read()", "sys.stdin.buffer.read().decode()", "input()"])
def test_input_comes_on_stdin(read: str) -> None:
    assert run(Job(f"import sys\nprint({read}.strip()[::-1])", inputs=("é1\n", "23"))).outputs == ("1é\n", "32\n")


@confined
@pytest.mark.parametrize("name", HARMLESS)
def test_programs_may_use(name: str) -> None:
    program, expected = HARMLESS[name]
    assert score(program, expected=expected) == 1.0


FORBIDDEN = {
    "read a system file": "print(open('/etc/passwd').read())",
    "list the home folder": f"import os; os.listdir({str(Path.home())!r})",
    "list the temporary folder": "import os; os.listdir('/tmp')",
    "read its parent's environment": "import os; open(f'/proc/{os.getppid()}/environ')",
    "read its parent's memory": "import os; open(f'/proc/{os.getppid()}/mem')",
    "make a socket": "import socket; socket.socket()",
    "make a datagram socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "make a unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "fork": "import os; os.fork()",
    "start a program": "import subprocess; subprocess.run(['true'])",
    "become a program": "import os; os.execv('/bin/true', ['true'])",
    "start a thread": "import threading; threading.Thread(target=print).start()",
    "kill its parent": "import os; os.kill(os.getppid(), 9)",
    "signal its parent by a descriptor": "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "raise its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "outlive its parent": "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "trace its parent": "import ctypes, os; assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "share memory": "from multiprocessing import shared_memory; shared_memory.SharedMemory(create=True, size=9)",
    "open many files": "kept = [open(__import__('os').__file__) for _ in range(99)]",
    "allocate 10 GB": "bytearray(10 << 30)",
    "crash": "import ctypes; ctypes.string_at(0)",
}


@confined
@pytest.mark.parametrize("deed", FORBIDDEN)
def test_programs_may_not(deed: str) -> None:
    """The program reports what stopped it; a crash reports nothing. Either way it does not come to `done`."""
    outcome = run(Job(f"{FORBIDDEN[deed]}\nprint('done')", inputs=("",)))
    assert outcome.outputs == (None,)
    assert not outcome.timed_out
    assert run(Job(FORBIDDEN[deed], checks=("pass",))).passed == (False,)


@confined
def test_the_network_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = server.getsockname()
        program = f"import socket\nsocket.create_connection({address}).send(b'secret')\nprint('done')"
        assert score(program, expected="done") == 0.0
        with pytest.raises(TimeoutError):
            server.accept()
        with socket.create_connection(address):
            server.accept()  # it was there to be reached


CHANGES = {
    "write": "open(PATH, 'w').write('gone')",
    "append": "open(PATH, 'a').write('gone')",
    "truncate": "os.truncate(PATH, 0)",
    "truncate while reading": "os.open(PATH, os.O_RDONLY | os.O_TRUNC)",
    "delete": "os.unlink(PATH)",
    "rename": "os.rename(PATH, PATH + 'x')",
    "link": "os.link(PATH, PATH + 'x')",
    "permit": "os.chmod(PATH, 0)",
    "touch": "os.utime(PATH, (0, 0))",
    "create": "open(PATH + 'x', 'w')",
    "make a folder": "os.mkdir(PATH + 'x')",
}


@confined
@pytest.mark.parametrize("deed", CHANGES)
def test_files_outside_stay_as_they_are(deed: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("secret")
    before = file.stat()
    assert run(Job(f"import os\nPATH = {str(file)!r}\n{CHANGES[deed]}\nprint('done')", inputs=("",))).outputs == (None,)
    assert run(Job(f"print(open({str(file)!r}).read())", inputs=("",))).outputs == (None,)
    assert file.read_text() == "secret"
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["file"]


@confined
def test_our_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert score("import os\nprint(os.environ.get('WANDB_API_KEY'))", expected="None") == 1.0


ENDLESS = {
    "sleeps": "import time\ntime.sleep(1e6)",
    "spins": "while True:\n    pass",
    "ignores signals": "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1e6)",
    "closes its ends": "import os, time\nos.closerange(0, 64)\ntime.sleep(1e6)",
    "fills the channel of proofs": "import os\nwhile True: os.write(3, b'x' * 999)",
    "prints for ever": "while True: print('x' * 9999)",
    "prints slowly for ever": "import time\nwhile True: print('x', flush=True); time.sleep(0.01)",
    "forks and forks": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fills the memory": "k = []\nwhile True:\n    try: k.append(bytearray(1 << 20))\n    except MemoryError: pass",
}


@confined
@pytest.mark.parametrize("deed", ENDLESS)
def test_what_does_not_end_is_ended(deed: str) -> None:
    start = time.monotonic()
    outcome = run(Job(ENDLESS[deed], checks=("pass",) * 3, inputs=("",) * 3, seconds=0.5))
    assert outcome.passed == (False,) * 3
    assert outcome.outputs == (None,) * 3
    assert time.monotonic() - start < 10
    assert not cells(psutil.Process())


@confined
def test_what_prints_too_much_is_ended_before_its_time() -> None:
    outcome = run(Job(ENDLESS["prints for ever"], inputs=("",), seconds=60))
    assert (outcome.outputs, outcome.timed_out) == ((None,), False)


def cells(process: psutil.Process) -> list[psutil.Process]:
    """Descendants that run programs."""
    found = []
    for one in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [one] if str(sandbox.CELL) in one.cmdline() else []
    return found


@confined
def test_no_process_is_left_when_the_trainer_is_killed() -> None:
    sleeper = fenced("import time\ntime.sleep(1e6)")
    parent = run_python(
        "import threading; from grpo_lab.rewards.programs import code\n"
        "threading.Timer(1, print, ['ready'], dict(flush=True)).start()\n"
        f"code([{sleeper!r}], tests=[['pass']], timeout_s=99)"
    )
    assert wait_for_line(parent) == "ready"
    running = cells(psutil.Process(parent.pid))
    assert len(running) == 2  # the cell and the program
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    assert gone(running, within_s=10)


@confined
def test_limits_are_those_of_the_parameters() -> None:
    job = {"tests": [["pass"]]}
    assert code([fenced("bytearray(100 << 20)")], **job) == [1.0]
    assert code([fenced("bytearray(100 << 20)")], memory_mb=64, **job) == [0.0]
    with pytest.raises(ValueError, match="Python itself takes 64"):
        code([""], memory_mb=63, **job)
    assert code([fenced("print('x' * 5000)")], **job) == [1.0]
    assert code([fenced("print('x' * 5000)")], max_output_kb=4, **job) == [0.0]
    assert code([fenced("import time\ntime.sleep(1)")], **job) == [1.0]
    assert code([fenced("import time\ntime.sleep(1)")], timeout_s=0.5, **job) == [0.0]


CHEATS = ["import os\nos._exit(0)", "import sys\nsys.exit(0)", "import os\nos.write(3, b'confined')\nos._exit(0)"]


@confined
@pytest.mark.parametrize("program", CHEATS)
def test_leaving_early_passes_no_test(program: str) -> None:
    assert score(program, tests=["assert f(1) == 2"]) == 0.0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a"),
        ("x\n```python\na\n```\nand\n```python\nb\nc\n```\nend", "b\nc"),
        ("```python\na\n```\n```text\nb\n```", "a"),
        ("```python\na\n```\n```python\nb", "a"),
        ("```python3 title\na\n```", "a"),
        ("```\na\n```", ""),
        ("```python\na", ""),
        ("```python a```", ""),
        ("", ""),
    ],
)
def test_the_last_closed_python_block_is_the_program(text: str, program: str) -> None:
    assert last_program(text) == program


def test_looking_for_a_program_takes_linear_time() -> None:
    start = time.monotonic()
    for text in (*NASTY.values(), "```python" * 500_000, "```python\n" * 500_000, "\n```" * 500_000):
        last_program(text)
    assert time.monotonic() - start < 10


@confined
@settings(max_examples=20, deadline=None)
@given(st.text(max_size=30), st.text(max_size=20), st.text(max_size=10))
def test_no_program_and_no_test_breaks_it(program: str, test: str, printed: str) -> None:
    columns = {"tests": [[test]], "test_cases": [[(printed, printed)]]}
    (found,) = code([fenced(program)], timeout_s=2.0, **columns)
    assert found in (0.0, 0.5, 1.0)
