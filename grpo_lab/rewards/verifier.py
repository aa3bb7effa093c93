"""The process that runs math-verify: reads one question a line, answers one byte (`judge` is the other end).

sympy can run for hours or fill the memory on a short formula, inside C code that no exception reaches. So the
judge kills this process when time is up, and the process has an alarm of its own, which ends it where the
judge itself was killed.
"""

import json
import logging
import os
import resource
import signal
import sys
import warnings
from typing import Any

READY, RIGHT, WRONG, UNREADABLE_GOLD = b"R", b"1", b"0", b"?"
ALARM_AFTER_S = 1.0  # so long after the judge should have killed this process
MEMORY_BYTES = 3 << 30  # of address space; imports alone take a few hundred MiB


def main() -> None:
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not end up among the replies
    _protect()

    os.write(replies, READY)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question.pop("timeout_s") + ALARM_AFTER_S)
        reply = judge(**question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, reply)


def _protect() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; its end closes our stdin
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def judge(gold: str, answer: str, gold_percent: bool, answer_percent: bool, anywhere: bool) -> bytes:
    """An `anywhere` answer is prose to search; else gold and answer are formulas with nothing around them."""
    from math_verify import verify

    golds = _expressions(_formula(gold))
    if not golds:
        return UNREADABLE_GOLD
    answers = _expressions(answer, prose=True) if anywhere else _expressions(_formula(answer))
    if gold_percent and not answer_percent:
        golds += [gold / 100 for gold in golds if gold.is_number]
    if answer_percent and not gold_percent:
        answers += [answer / 100 for answer in answers if answer.is_number]
    return RIGHT if verify(golds, answers, timeout_seconds=None) else WRONG


def _formula(text: str) -> str:
    return rf"\({text}\)"


def _expressions(text: str, prose: bool = False) -> list[Any]:
    """What sympy makes of the text; nothing where it is no formula or has no value, as 1/0."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
    from sympy import Basic, MatrixBase, nan, zoo

    targets = [LatexExtractionConfig(boxed_match_priority=0), *([ExprExtractionConfig()] if prose else [])]
    found = parse(text, targets, fallback_mode="no_fallback", parsing_timeout=None)
    return [e for e in found if isinstance(e, (Basic, MatrixBase)) and not e.has(nan, zoo)]


if __name__ == "__main__":
    main()
