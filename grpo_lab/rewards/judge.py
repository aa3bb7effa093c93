"""Is the answer the gold one? Numbers and words at once, everything else in processes that may be killed.

The processes are started by hand and not through multiprocessing, whose children import the parent's main
module again or inherit its threads. One that is asked nothing more ends by itself when its stdin closes,
whatever ended the parent; a busy one by its own alarm.
"""

import atexit
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import cache
from queue import LifoQueue

from grpo_lab.rewards import verifier
from grpo_lab.rewards.answers import Answer

START_TIMEOUT_S = 120.0  # importing sympy from a cold network disk
MAX_PROCESSES = 4


class Verdict(Enum):
    RIGHT = verifier.RIGHT
    WRONG = verifier.WRONG
    UNREADABLE_GOLD = verifier.UNREADABLE_GOLD
    TIMEOUT = b"T"


@dataclass(frozen=True)
class Question:
    gold: Answer
    answer: Answer
    anywhere: bool = False  # the answer is prose to search, not a formula


def settle(question: Question) -> Verdict | None:
    """The verdict that needs no math-verify, or `None`."""
    gold, answer = question.gold, question.answer
    if not gold.text:
        return Verdict.UNREADABLE_GOLD
    if question.anywhere:
        return None
    if gold.number is not None and answer.number is not None:
        return Verdict.RIGHT if _same_number(gold, answer) else Verdict.WRONG
    readable = gold.number is not None or gold.words is not None
    if readable and not answer.text:
        return Verdict.WRONG
    if gold.words is not None and answer.words is not None:
        return Verdict.RIGHT if gold.words == answer.words else Verdict.WRONG
    return None


def _same_number(gold: Answer, answer: Answer) -> bool:
    assert gold.number is not None
    assert answer.number is not None
    if gold.number == answer.number:
        return True
    if gold.percent == answer.percent:
        return False
    percent, other = (gold, answer) if gold.percent else (answer, gold)
    return percent.number == other.number * 100 if other.number is not None else False


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
        request = {
            "gold": question.gold.text,
            "answer": question.answer.text,
            "gold_percent": question.gold.percent,
            "answer_percent": question.answer.percent,
            "anywhere": question.anywhere,
            "timeout_s": timeout_s,
        }
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
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

    def verdicts(self, questions: Sequence[Question], timeout_s: float) -> list[Verdict]:
        """One per question, in order; equal questions are asked once."""
        settled = {question: settle(question) for question in questions}
        known = {question: verdict for question, verdict in settled.items() if verdict is not None}
        rest = [question for question in settled if question not in known]
        if rest:
            with ThreadPoolExecutor(min(self._processes, len(rest))) as threads:
                asked = threads.map(lambda question: self._ask(question, timeout_s), rest)
                known.update(zip(rest, asked, strict=True))
        return [known[question] for question in questions]

    def _ask(self, question: Question, timeout_s: float) -> Verdict:
        process = self._free.get()
        try:
            if process is None or not process.alive():
                process = _Process()
            return process.ask(question, timeout_s)
        finally:
            self._free.put(process)

    def close(self) -> None:
        while not self._free.empty():
            process = self._free.get()
            if process is not None:
                process.stop()


@cache
def shared_judge() -> Judge:
    """This process's judge. Ranks of one host share its cores."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Judge(max(1, min(MAX_PROCESSES, cores)))


def _close_shared() -> None:
    if shared_judge.cache_info().currsize:
        shared_judge().close()
        shared_judge.cache_clear()


atexit.register(_close_shared)
os.register_at_fork(after_in_child=shared_judge.cache_clear)  # a fork must not talk into its parent's pipes
