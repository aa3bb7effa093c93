"""The process in which a policy's programs run: confines each in a child of its own, or refuses to run any.

Run as a script by `sandbox`, with the standard library only. Reads one job on stdin, a frame of JSON and a frame for
each check, and answers one JSON object: `{"passed": [bool], "outputs": [str or null], "timed_out": bool}`, or
`{"refused": reason}`.

A check runs in a second child, the referee, which asks the program's process for what its functions return
(`remote`). Only the referee ever reads the check: no memory of the program's process, nor of its parent, has held it.

What confines a child needs no privileges and no namespaces, so it also works in an ordinary container:

* Landlock (https://docs.kernel.org/userspace-api/landlock.html): it can open Python's own files, and no other.
* A seccomp filter, made by libseccomp: no system call but those of ALLOWED. No sockets, no files opened for
  writing, no changes to files by their names, no new processes or threads, no signals to others.
* Resource limits: memory, processor time, no core files, no growing files.
* Its parent kills it when its time is up or it has printed too much. It has no descendants and dies with its parent.
"""

import contextlib
import ctypes
import errno
import importlib.util
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls of Landlock, alike on all architectures
READ_FILE, READ_DIR = 1 << 2, 1 << 3
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # bits of rights to files by Landlock's version; 16 from version 5 on
REFUSE = 0x00050000 | errno.EPERM  # SCMP_ACT_ERRNO
ALLOW = 0x7FFF0000  # SCMP_ACT_ALLOW
MASKED_EQUAL = 7  # SCMP_CMP_MASKED_EQ
NOT_READ_ONLY = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | 0o20000000  # the last: O_TMPFILE without O_DIRECTORY
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
OPEN_FILES = 64
CONFINED = b"confined"
PASSED = b"passed"
REFEREE_BYTES = 1 << 30  # of address space

ALLOWED = """
    read readv pread64 preadv write writev close close_range lseek dup dup2 dup3 pipe pipe2
    fstat stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents64 getcwd
    mmap munmap mremap mprotect brk membarrier
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack alarm setitimer getitimer pause restart_syscall
    poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
    futex set_robust_list rseq sched_yield sched_getaffinity getcpu
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage sysinfo uname getrandom
    getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid getrlimit
    exit exit_group
"""
"""What one Python thread needs to compute, read its modules and talk through descriptors that are open already."""
ALLOWED_WHERE = [
    *(("open", 1, NOT_READ_ONLY, 0), ("openat", 2, NOT_READ_ONLY, 0)),
    ("prlimit64", 2, 0xFFFFFFFFFFFFFFFF, 0),  # reads a limit, sets none
    ("madvise", 2, 0xFFFFFFE0, 0),  # not MADV_HWPOISON and its kin
    *(("fcntl", 1, 0xFFFFFFFF, command) for command in (0, 1, 2, 3, 4, 1030)),  # F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC
    *(("ioctl", 1, 0xFFFFFFFF, request) for request in (0x5401, 0x5413, 0x5450, 0x5451)),  # isatty, close-on-exec
]
"""(system call, number of an argument, mask, value): allowed where the masked argument is the value."""


class Refusal(Exception):
    """Programs cannot be confined here; the message says what is missing."""


class _Comparison(ctypes.Structure):
    """libseccomp's `struct scmp_arg_cmp`."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64)]


class Filter:
    """A seccomp filter: `otherwise` (an action of libseccomp) for every system call without a rule."""

    def __init__(self, otherwise: int) -> None:
        try:
            self._library = ctypes.CDLL("libseccomp.so.2")
        except OSError as error:
            raise Refusal("libseccomp is not installed (Debian and Ubuntu: libseccomp2)") from error
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._filter = ctypes.c_void_p(self._library.seccomp_init(otherwise))

    def add(self, action: int, name: str, *comparisons: _Comparison) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # newer than the library: refused by it as well
            return
        array = (_Comparison * len(comparisons))(*comparisons)
        self._check(self._library.seccomp_rule_add_array(self._filter, action, number, len(comparisons), array))

    def load(self) -> None:
        self._check(self._library.seccomp_load(self._filter))

    def _check(self, result: int) -> None:
        if result != 0:
            raise Refusal(f"the seccomp filter was not accepted ({os.strerror(-result)})")


class Cage:
    """The confinement, made ready once; `enter` puts the calling process into it for good. Raises Refusal."""

    def __init__(self, memory_bytes: int, cpu_s: int) -> None:
        if sys.platform != "linux":
            raise Refusal(f"{sys.platform} has neither Landlock nor seccomp")
        self._memory_bytes, self._cpu_s = memory_bytes, cpu_s
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._filter = Filter(REFUSE)
        for name in ALLOWED.split():
            self._filter.add(ALLOW, name)
        for name, argument, mask, value in ALLOWED_WHERE:
            self._filter.add(ALLOW, name, _Comparison(argument, MASKED_EQUAL, mask, value))
        self._ruleset = self._landlock_ruleset()

    def _landlock_ruleset(self) -> int:
        version = self._libc.syscall(CREATE_RULESET, None, 0, 1)
        if version < 1:
            raise Refusal(f"Landlock is not available ({os.strerror(ctypes.get_errno())})")
        handled = struct.pack("=Q", (1 << RIGHTS.get(version, 16)) - 1)
        ruleset = self._call(CREATE_RULESET, handled, len(handled), 0)
        for path in (*sys.path, f"{sys.base_prefix}/lib", *LIBRARIES):
            with contextlib.suppress(FileNotFoundError):
                folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rights = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
                self._call(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, folder), 0)
                os.close(folder)
        return ruleset

    def _call(self, *arguments: Any) -> int:
        result: int = self._libc.syscall(*arguments)
        if result < 0:
            raise Refusal(f"Landlock was not accepted ({os.strerror(ctypes.get_errno())})")
        return result

    def enter(self, memory_bytes: int | None = None) -> None:
        if self._libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise Refusal("no_new_privs was not accepted")
        for limit, value in (
            (resource.RLIMIT_AS, memory_bytes or self._memory_bytes),
            (resource.RLIMIT_CPU, self._cpu_s),
            (resource.RLIMIT_NOFILE, OPEN_FILES),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(limit)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        self._call(RESTRICT_SELF, self._ruleset, 0)
        os.close(self._ruleset)
        self._filter.load()


def main() -> None:
    die_with(os.getppid())
    remote = _remote()
    job = json.loads(remote.read_frame(0))
    sys.argv = ["solution.py"]
    try:
        cage = Cage(job["memory_mb"] << 20, int(job["seconds"]) + 1)
        reply = run(job, cage, remote)
    except Refusal as refusal:
        reply = {"refused": str(refusal)}
    sys.stdout.write(json.dumps(reply))


def _remote() -> Any:
    """The module beside this file, which is on no path of imports."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "remote.py")
    spec = importlib.util.spec_from_file_location("remote", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent`, its parent, is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def run(job: dict[str, Any], cage: Cage, remote: Any) -> dict[str, Any]:
    """Every test in a child of its own; one deadline and one limit of output for all of them together."""
    deadline = time.monotonic() + job["seconds"]
    room: int = job["output_bytes"]
    children = []
    for stdin in [None] * job["checks"] + job["inputs"]:
        child = Child(cage, job["program"], remote, stdin)
        child.watch(deadline, room)
        room -= len(child.output)
        children.append(child)
    checked, fed = children[: job["checks"]], children[job["checks"] :]
    return {
        "passed": [child.proven for child in checked],
        "outputs": [child.output.decode(errors="replace") if child.ended_well else None for child in fed],
        "timed_out": any(child.timed_out for child in children),
    }


class Child:
    """One confined run of a program, with something to read on stdin; None: with the next check on it."""

    def __init__(self, cage: Cage, program: str, remote: Any, stdin: str | None) -> None:
        self.output = bytearray()
        self.timed_out = False
        self._cage, self._remote = cage, remote
        self._printed, stdout = os.pipe()
        self._reports, report = os.pipe()
        asks, answers = os.pipe(), os.pipe()  # the referee's questions and the program's answers
        given = os.memfd_create("stdin")
        with open(given, "wb", closefd=False) as file:
            file.write((stdin or "").encode(errors="replace"))
        os.lseek(given, 0, os.SEEK_SET)

        def serve() -> None:
            module = _execute(program, "__main__" if stdin is not None else "solution")
            if stdin is None:
                sys.stdout.flush()
                with contextlib.suppress(EOFError):
                    remote.Peer(4, 5).serve(module)
            sys.exit()

        nothing = os.open(os.devnull, os.O_RDWR)
        self._pid = self._fork((given, stdout, nothing, report, asks[0], answers[1]), serve, None)
        self._watched = self._pid
        if stdin is None:
            descriptors = (0, nothing, nothing, report, answers[0], asks[1])
            self._watched = self._fork(descriptors, self._referee, REFEREE_BYTES)
        for descriptor in (given, stdout, report, nothing, *asks, *answers):
            os.close(descriptor)

    def _fork(self, descriptors: tuple[int, ...], work: Callable[[], None], memory_bytes: int | None) -> int:
        """A confined child with these descriptors and no other; the report (3) says why where it is not confined."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        die_with(parent)
        kept = [os.dup(descriptor) for descriptor in descriptors]  # or the first could overwrite a later one
        try:
            self._cage.enter(memory_bytes)
        except Refusal as refusal:
            os.write(kept[3], str(refusal).encode())
            os._exit(1)
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
        os.closerange(len(kept), OPEN_FILES)
        os.write(3, CONFINED)
        if work != self._referee:
            os.close(3)
        work()
        os._exit(0)

    def _referee(self) -> None:
        """Run the check that is next on stdin against the program in the other process."""
        try:
            check = json.loads(self._remote.read_frame(0))
            module = ModuleType("check")
            module.__dict__.update(self._remote.Peer(4, 5, guarded=True).names())
            exec(compile(check, "check.py", "exec"), module.__dict__)
        except BaseException:  # noqa: BLE001 - whatever it raises, it has not passed
            os._exit(1)
        os.write(3, PASSED)
        os._exit(0)

    def watch(self, deadline: float, room: int) -> None:
        """Wait for its end, or end it at the deadline or when it has printed more than `room` bytes."""
        self._read(deadline, room)
        exit_codes = [self._end(pid) for pid in dict.fromkeys((self._watched, self._pid))]
        report = os.read(self._reports, 1 << 10)
        os.close(self._printed)
        os.close(self._reports)
        if not report.startswith(CONFINED) and -signal.SIGKILL not in exit_codes:
            raise Refusal(report.decode() or f"a process ended with {exit_codes[0]} on its way into confinement")
        self.ended_well = exit_codes[0] == 0 and len(self.output) <= room
        self.proven = report == CONFINED * 2 + PASSED and self.ended_well

    def _end(self, pid: int) -> int:
        os.kill(pid, signal.SIGKILL)  # it may have ended, but only here is it waited for
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _read(self, deadline: float, room: int) -> None:
        end = os.pidfd_open(self._watched)
        poll = select.poll()
        poll.register(self._printed, select.POLLIN)
        poll.register(end, select.POLLIN)
        while len(self.output) <= room:
            left = deadline - time.monotonic()
            ready = [descriptor for descriptor, _ in poll.poll(max(0.0, left) * 1000)]
            self.timed_out = left <= 0 and end not in ready
            if self.timed_out or ready == [end]:
                break
            if self._printed in ready:
                chunk = os.read(self._printed, 1 << 16)
                self.output += chunk
                if not chunk:
                    poll.unregister(self._printed)
        os.close(end)


def _execute(program: str, name: str) -> ModuleType:
    """The program as a script, `__main__`, where its output is wanted; as a module where its functions are."""
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")  # noqa: SIM115 - to the end
    module = ModuleType(name)
    sys.modules[name] = module  # dataclasses, pickle and others look it up
    exec(compile(program, "solution.py", "exec"), module.__dict__)
    return module


if __name__ == "__main__":
    main()
