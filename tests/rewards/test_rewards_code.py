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
from grpo_lab.rewards.remote import frame
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
        input=frame(
            b'{"program": "print(1)", "checks": 0, "inputs": [""], "seconds": 5, "memory_mb": 99, "output_bytes": 9}'
        ).decode(),
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
    assert len(running) == 3  # the cell, the program and its referee
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


CHEATS = {
    "leave at once": "import os\nos._exit(0)",
    "exit at once": "import sys\nsys.exit(0)",
    "claim to be confined": "import os\nos.write(3, b'confined')\nos._exit(0)",
    "claim to have passed": "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed')\n    except OSError: 0",
    "equal everything": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __lt__ = __le__ = __gt__ = __contains__ = lambda self, other: 0
    def __abs__(self): return 0
    def __hash__(self): return hash(4)
def f(x): return Equal()
""",
    "an int that equals everything": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return Equal(5)
""",
    "replace compile": """
import builtins
real = builtins.compile
builtins.compile = lambda source, *more, **named: real('pass', *more, **named)
def f(x): return 5
""",
    "replace exec": "import builtins\nbuiltins.exec = lambda *more: None\ndef f(x): return 5",
    "replace helpers": "def abs(x): return 0\ndef set(x): return 1\nclass math:\n    isclose = lambda *a, **k: True\n"
    "def f(x): return 5",
    "read the check in the frames": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if isinstance(value, str) and ''.join(reversed('DETCEPXE')) in value: return 4
        frame = frame.f_back
    return 5
""",
    "read the check in the memory": """
import gc
def strings(thing):
    values = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple, set)) else ()
    return [value.decode('latin1') if isinstance(value, bytes) else value for value in list(values)]
def f(x):
    texts = (s for thing in gc.get_objects() for s in strings(thing) if isinstance(s, str))
    held = any(''.join(reversed('DETCEPXE')) in s for s in texts)
    return 4 if held else 5
""",
    "the secret of the frames": """
import sys, os
def secrets():
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            for kept in [value, *getattr(value, '__dict__', {}).values()]:
                if isinstance(kept, bytes): yield kept
        frame = frame.f_back
for secret in secrets():
    for fd in range(3, 9):
        try: os.write(fd, secret)
        except OSError: pass
os._exit(0)
""",
    "rewrite small integers": """
import ctypes
def f(x): return 5
ctypes.memmove(id(4) + 24, id(5) + 24, 4)
""",
    "replace the words of the other end": """
import sys
for module in list(sys.modules.values()):
    if hasattr(module, 'Peer'):
        module.Peer._encode = lambda self, value, depth=0: ['builtin', 'NotImplemented']
def f(x): return 5
""",
    "run code in the referee": """
import sys
Peer = next((m.Peer for m in list(sys.modules.values()) if hasattr(m, 'Peer')), None)
import gc
for kind in gc.get_objects():
    if isinstance(kind, type) and kind.__name__ == 'Peer': Peer = kind
def answer(self, frame):
    self._send({'do': 'call', 'with': [['builtin', 'exec'], ['str', 'import os; os.write(3, b"passed"); os._exit(0)']],
                'named': {}})
    self._receive()
Peer._answer = answer
def f(x): return 5
""",
}


@confined
@pytest.mark.parametrize("deed", CHEATS)
@pytest.mark.parametrize(
    "check",
    [
        "assert f(1) == 4",
        "EXPECTED = 4\nassert EXPECTED == f(1)",
        "assert abs(f(1) - 4) < 1e-6",
        "import math\nassert math.isclose(f(1), 4)",
        "assert f(1) in (4,)",
        "assert set([f(1)]) == {4}",
        "def check(candidate):\n    assert candidate(1) == 4\ncheck(f)",
    ],
)
def test_cheats_pass_no_test(deed: str, check: str) -> None:
    check += "  # EXPECTED"
    assert run(Job(CHEATS[deed], checks=(check,))).passed == (False,)
    assert run(Job("def f(x): return 4", checks=(check,))).passed == (True,)


HONEST = """
from collections import Counter, namedtuple
from dataclasses import dataclass
import math as m
import math

Pair = namedtuple('Pair', 'a b')
LIMIT = 10

class Empty(LookupError): pass

class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self):
        if not self.items: raise Empty('nothing')
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)

@dataclass
class Point:
    x: int
    y: int = 0
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)

def twice(f, x): return f(f(x))
def sort(values): values.sort()
def pair(a, b): return Pair(a, b)
def count(text): return Counter(text)
def up_to(n):
    for i in range(n): yield i
def fail(kind): raise kind('no')
def echo(value): return value
def total(node): return node.value + total(node.next) if node else 0
"""
CHECKS = [
    "assert twice(lambda x: x * 3, 2) == 18",
    "assert twice(str, 5) == '5'",
    "values = [3, 1, 2]\nsort(values)\nassert values == [1, 2, 3]",
    "assert pair(1, 2) == (1, 2) and pair(1, 2).b == 2",
    "assert count('aab') == {'a': 2, 'b': 1} and count('aab') == Counter('aab')",
    "assert list(up_to(3)) == [0, 1, 2] and sum(up_to(4)) == 6",
    "stack = Stack()\nstack.push(4)\nstack.push(5)\nassert stack.pop() == 5 and len(stack) == 1 and list(stack) == [4]",
    "try:\n    Stack().pop()\nexcept Empty as error:\n    assert str(error) == 'nothing'\nelse:\n    assert False",
    "try:\n    Stack().pop()\nexcept LookupError:\n    pass\nelse:\n    raise AssertionError",
    "try:\n    fail(ValueError)\nexcept ValueError:\n    pass\nelse:\n    raise AssertionError",
    "assert Point(1) + Point(2, 3) == Point(3, 3) and Point(1) != Point(2) and (Point(1) + Point(1)).x == 2",
    "assert isinstance(Point(1), Point) and not isinstance(Stack(), Point) and isinstance(echo(1), int)",
    "assert m.isclose(math.pi, echo(math.pi)) and LIMIT == 10",
    "from fractions import Fraction\nimport datetime\nfor v in (Fraction(1, 3), 1 + 2j, b'a', 10**5000, None,"
    " True, {1: {2}}, [(1, [2])], frozenset('a'), range(3), datetime.date(2020, 1, 2), 'é', {'a': [1.5]}):\n"
    "    assert echo(v) == v and type(echo(v)) is type(v)",
    "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
    "assert total(Node(1, Node(2))) == 3",
    "def check(candidate):\n    assert candidate(3) == 3\n    assert candidate([]) == []\ncheck(echo)",
]


@confined
@pytest.mark.parametrize("check", CHECKS)
def test_honest_programs_pass_what_they_should(check: str) -> None:
    assert run(Job(HONEST, checks=(check,))).passed == (True,)


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
        ("```py\na\n```", "a"),
        ("```Python\na\n```", "a"),
        ("``` python\na\n```", "a"),
        ("```PY3\na\n```", "a"),
        ("1. So:\n   ```python\n   if a:\n       b\n   ```\n", "if a:\n    b"),
        ("\t```python\n\ta\n\n\tb\n\t```", "a\n\nb"),
        ("```python\na\nb```", "a\nb"),
        ("```python\na\nb``` \nend", "a\nb"),
        ("```python\na = '```'\nb\n```", "a = '```'\nb"),
        ("```pycon\na\n```", ""),
        ("```pytest\na\n```", ""),
        ("```python\n```", ""),
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
