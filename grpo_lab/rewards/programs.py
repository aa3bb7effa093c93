"""The reward of a program: the share of its tests that it passes, run where it can do no harm."""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpo_lab.rewards import TAIL_CHARS, sandbox
from grpo_lab.rewards.sandbox import Job, Outcome
from grpo_lab.rewards.text import Completion, as_list, text_of

_OPENING = re.compile(r"(?:^([ \t]*))?```[ \t]*py(?:thon)?[0-9.]*(?![A-Za-z_-])[^\n`]*\n", re.IGNORECASE | re.MULTILINE)
_CLOSING = re.compile(r"^[ \t]*```|```[ \t]*$", re.MULTILINE)
LEAST_MEMORY_MB = 64


def code(
    completions: Sequence[Completion],
    tests: Sequence[object] | None = None,
    test_cases: Sequence[object] | None = None,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    max_output_kb: int = 1000,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The share of its row's tests that the last block fenced as python passes, 0.0 to 1.0; `None` without tests.

    The column `tests` has lists of statements such as `assert f(2) == 4`, each run after the program; one passes when
    it raises nothing. The column `test_cases` has lists of `{"input": ..., "output": ...}` or `[input, output]`: the
    program reads the one on stdin and must print the other (blanks at the ends of lines aside) and exit with 0.

    Every test runs in a process of its own: no network, no file but Python's own (read-only), no other process or
    thread, one core, and the limits below. It has the standard library only. Where a machine cannot confine it so,
    nothing runs (`grpo_lab.rewards.cell` says what is needed).

    `test_cases` are what to train on: the program never sees the output that it should print. Statements in `tests` run
    in a process apart from the program (`grpo_lab.rewards.remote`), which gets the arguments of its functions, lists
    and dicts by value, and gives plain data back: it sees neither the statements nor what they compare with. What
    remains: a weak statement (`assert f(2) != 5`, `assert f(x)`, one that compares with an argument which the program
    may change), methods and helpers of the program that a statement relies on, and an operator between an object of the
    program and plain data, which raises TypeError or is unequal. A program can still tell tests by their arguments.

    `log_metric` receives, per call, how many programs ran out of time and how many rows had no tests.

    Args:
        timeout_s: seconds for all tests of one completion together; what is not done by then has failed.
        memory_mb: address space of a test's process, MiB, at least 64.
        max_output_kb: what all tests of one completion may print together, kB.
    """
    if tests is None and test_cases is None:
        raise ValueError("the data has neither a column tests nor test_cases")
    if memory_mb < LEAST_MEMORY_MB:
        raise ValueError(f"memory_mb={memory_mb}: Python itself takes {LEAST_MEMORY_MB}")
    nothing = [None] * len(completions)
    checks = [_statements(row) for row in tests or nothing]
    cases = [_cases(row) for row in test_cases or nothing]
    programs = [last_program(text_of(completion)[-TAIL_CHARS:]) for completion in completions]
    jobs = [
        Job(program, tuple(lines), tuple(given for given, _ in pairs), timeout_s, memory_mb, max_output_kb * 1000)
        for program, lines, pairs in zip(programs, checks, cases, strict=True)
    ]
    todo = [job for job in jobs if job.program and (job.checks or job.inputs)]
    outcomes = dict(zip(todo, sandbox.run_all(todo), strict=True))
    untested = [not lines and not pairs for lines, pairs in zip(checks, cases, strict=True)]
    if log_metric is not None:
        log_metric("rewards/code/timeouts", sum(outcomes[job].timed_out for job in todo))
        log_metric("rewards/code/untested", sum(untested))
    return [
        None if no_tests else _share(outcomes.get(job), [expected for _, expected in pairs])
        for no_tests, job, pairs in zip(untested, jobs, cases, strict=True)
    ]


def last_program(text: str) -> str:
    """The inside of the last closed block fenced as `python` or `py`, in any case, empty where there is none.

    A fence may be indented, as in a list, and then so is the block. The closing one may end the last line of code.
    Takes linear time.
    """
    last_end = max((match.start() for match in _CLOSING.finditer(text)), default=0)
    opening = next(iter(deque(_OPENING.finditer(text, 0, last_end), maxlen=1)), None)
    closing = _CLOSING.search(text, opening.end()) if opening else None
    if opening is None or closing is None:
        return ""
    lines = text[opening.end() : closing.start()].removesuffix("\n").split("\n")
    return "\n".join(line.removeprefix(opening[1] or "") for line in lines)


def _share(outcome: Outcome | None, expected: Sequence[str]) -> float:
    """Of the tests passed; 0.0 where there was no program to run."""
    if outcome is None:
        return 0.0
    printed = [
        output is not None and _lines(output) == _lines(gold)
        for output, gold in zip(outcome.outputs, expected, strict=True)
    ]
    verdicts = [*outcome.passed, *printed]
    return sum(verdicts) / len(verdicts)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _statements(row: object) -> list[str]:
    if isinstance(row, str):
        return [row] if row.strip() else []
    return [str(statement) for statement in as_list(row) or () if statement is not None]


def _cases(row: object) -> list[tuple[str, str]]:
    """(stdin, stdout) pairs; what is neither a pair nor has `input` and `output` is left out."""
    pairs = []
    for case in as_list(row) or ():
        pair = as_list((case.get("input"), case.get("output")) if isinstance(case, Mapping) else case)
        if pair is not None and len(pair) == 2 and pair[1] is not None:
            pairs.append(("" if pair[0] is None else str(pair[0]), str(pair[1])))
    return pairs
