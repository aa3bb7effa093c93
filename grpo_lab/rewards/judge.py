"""Is the answer the gold one? Numbers and words at once, everything else in processes that may be killed.

The processes are started by hand and not through multiprocessing, whose children import the parent's main
module again or inherit its threads. One that is asked nothing more ends by itself when its stdin closes,
whatever ended the parent; a busy one by its own alarm.
"""

import atexit
import math
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from queue import LifoQueue

from grpo_lab.rewards import verifier
from grpo_lab.rewards.comparison import Question, Verdict, settle
from grpo_lab.rewards.cores import cores

START_TIMEOUT_S = 120.0  # importing sympy from a cold network disk


class _Process:
    """One verifier, ready. After a verdict of TIMEOUT it is gone."""

    def __init__(self) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._child = subprocess.Popen(
            [sys.executable, "-c", f"from {verifier.__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
        )
        if self._reply(START_TIMEOUT_S) != verifier.READY:
            self.stop()
            raise RuntimeError(
                f"the answer checker did not start (exit code {self._child.returncode}, "
                "its error is on stderr): is math-verify installed?"
            )

    def ask(self, question: Question, timeout_s: float) -> Verdict:
        """TIMEOUT also where the process died, which it does when a formula needs too much memory."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(pickle.dumps((question, timeout_s)))
            reply = self._reply(timeout_s)
        except BrokenPipeError:
            reply = b""
        if not reply:
            self.stop()
            return Verdict.TIMEOUT
        return Verdict(reply)

    def _reply(self, timeout_s: float) -> bytes:
        """One byte, or none where time is up or the process ended."""
        assert self._child.stdout is not None
        poll = select.poll()
        poll.register(self._child.stdout, select.POLLIN)
        return os.read(self._child.stdout.fileno(), 1) if poll.poll(timeout_s * 1000) else b""

    def alive(self) -> bool:
        return self._child.poll() is None

    def stop(self) -> None:
        self._child.kill()
        self._child.communicate()


class Judge:
    """A few verifiers, each started when it is first needed; usable from several threads."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._free: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(processes):
            self._free.put(None)

    def verdicts(
        self, questions: Sequence[Question], timeout_s: float, step_timeout_s: float | None = None
    ) -> list[Verdict]:
        """One per question, in order; equal questions are asked once.

        A question has `timeout_s` and all together `step_timeout_s`: TIMEOUT for what has no verdict by then.
        """
        settled = {question: settle(question) for question in questions}
        known = {question: verdict for question, verdict in settled.items() if verdict is not None}
        rest = [question for question in settled if question not in known]
        if rest:
            end = math.inf if step_timeout_s is None else time.monotonic() + step_timeout_s
            with ThreadPoolExecutor(min(self._processes, len(rest))) as threads:
                asked = threads.map(lambda question: self._ask(question, timeout_s, end), rest)
                known.update(zip(rest, asked, strict=True))
        return [known[question] for question in questions]

    def _ask(self, question: Question, timeout_s: float, end: float) -> Verdict:
        """TIMEOUT at `end`, of time.monotonic(), at the latest; the start of a process does not count."""
        process = self._free.get()
        try:
            if time.monotonic() >= end:
                return Verdict.TIMEOUT
            if process is None or not process.alive():
                started = time.monotonic()
                process = _Process()
                end += time.monotonic() - started
            return process.ask(question, min(timeout_s, end - time.monotonic()))
        finally:
            self._free.put(process)

    def close(self) -> None:
        while not self._free.empty():
            process = self._free.get()
            if process is not None:
                process.stop()


@cache
def shared_judge() -> Judge:
    """This process's judge."""
    return Judge(cores())


def _close_shared() -> None:
    if shared_judge.cache_info().currsize:
        shared_judge().close()
        shared_judge.cache_clear()


atexit.register(_close_shared)
os.register_at_fork(after_in_child=shared_judge.cache_clear)  # a fork must not talk into its parent's pipes
