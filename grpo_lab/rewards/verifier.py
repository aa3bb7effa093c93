"""The process that runs math-verify: reads one pickled Question after another, answers a byte (`judge` asks).

sympy can run for hours or fill the memory on a short formula, inside C code that no exception reaches. So the
judge kills this process when time is up, and the process has an alarm of its own, which ends it where the
judge itself was killed.
"""

import logging
import os
import pickle
import resource
import signal
import warnings
from fractions import Fraction
from typing import Any

from grpo_lab.rewards.answers import Answer, read_answer
from grpo_lab.rewards.comparison import Question, Verdict, settle, stands_for
from grpo_lab.rewards.literals import Number

READY = b"R"
ALARM_AFTER_S = 1.0  # so long after the judge should have killed this process
MEMORY_BYTES = 3 << 30  # of address space; imports alone take a few hundred MiB
DIGITS = 30


def main() -> None:
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not end up among the replies
    _protect()

    os.write(replies, READY)
    questions = open(0, "rb")  # noqa: SIM115 - to the end
    while questions.peek(1):
        question, timeout_s = pickle.load(questions)
        signal.setitimer(signal.ITIMER_REAL, timeout_s + ALARM_AFTER_S)
        verdict = judge(question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, verdict.value)


def _protect() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer; its end closes our stdin
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def judge(question: Question) -> Verdict:
    """The verdict on an answer that is a formula with nothing around it, or prose to search for one."""
    if question.anywhere:
        return _judge_prose(question)
    gold, answer, rule = question.gold, question.answer, question.rule
    golds, answers = _expressions(_formula(gold.text)), _expressions(_formula(answer.text))
    if not golds:
        return Verdict.UNREADABLE_GOLD
    if gold.number is not None and rule.simplified:
        return _verdict(any(_stands_for(gold.number, e, rule.relative_tolerance) for e in answers if _is_settled(e)))
    if gold.percent > answer.percent:
        golds += [gold / 100 for gold in golds if gold.is_number]
    if answer.percent > gold.percent:
        answers += [answer / 100 for answer in answers if answer.is_number]
    return _verdict(_equal(golds, answers) or _decimal_of(gold, golds, answer, answers, rule.relative_tolerance))


def _verdict(right: bool) -> Verdict:
    return Verdict.RIGHT if right else Verdict.WRONG


def _judge_prose(question: Question) -> Verdict:
    """What math-verify takes for the answer, judged as if it had been tagged."""
    if not _expressions(_formula(question.gold.text)) and question.gold.words is None and question.gold.clock is None:
        return Verdict.UNREADABLE_GOLD
    for text in (e for e in _parsed(question.answer.text, prose=True) if isinstance(e, str)):
        tagged = Question(question.gold, read_answer(text), rule=question.rule)
        verdict = settle(tagged) or judge(tagged)
        if verdict is Verdict.RIGHT:
            return verdict
    return Verdict.WRONG


def _equal(golds: list[Any], answers: list[Any]) -> bool:
    """By math-verify. Of decimals it would compare six places after the point, so there are none here."""
    from math_verify import verify

    return bool(verify(golds, answers, timeout_seconds=None))


def _exact(expression: Any) -> Any:
    """With decimals as the fractions that they are."""
    from sympy import Float, Rational

    floats = expression.atoms(Float)
    return expression.xreplace({f: Rational(Fraction(repr(float(f)))) for f in floats}) if floats else expression


def _decimal_of(gold: Answer, golds: list[Any], answer: Answer, answers: list[Any], tolerance: float) -> bool:
    """Whether one side is a decimal that stands for the other, an irrational number."""
    if answer.number is not None and answer.number.step is not None:
        return any(_stands_for(answer.number, e, tolerance=0.0) for e in golds)
    if gold.number is not None and gold.number.step is not None:
        return any(_stands_for(gold.number, e, tolerance) for e in answers)
    return False


def _stands_for(decimal: Number, expression: Any, tolerance: float) -> bool:
    from sympy import Expr

    if not isinstance(expression, Expr) or not expression.is_number or expression.doit().is_rational:
        return False
    value = expression.evalf(DIGITS)
    if not value.is_Float:
        return False
    return stands_for(decimal, abs(Fraction(str(value)) - decimal.value), tolerance)


def _is_settled(expression: Any) -> bool:
    """Whether no operation on rational numbers is left to do in it: so of 2*sqrt(17), not of sqrt(8 + 9)."""
    from sympy import Expr

    return isinstance(expression, Expr) and not any(
        e.args and e.is_number and not _is_fraction(e) and e.doit().is_rational for e in _subexpressions(expression)
    )


def _subexpressions(expression: Any) -> list[Any]:
    from sympy import preorder_traversal

    return list(preorder_traversal(expression))


def _is_fraction(expression: Any) -> bool:
    """As math-verify makes it of one: 1/2 and -1 * 1/2."""
    return expression.is_Mul and all(
        e.is_Rational or (e.is_Pow and e.exp == -1 and e.base.is_Integer) for e in expression.args
    )


def _formula(text: str) -> str:
    return rf"\({text}\)"


def _expressions(text: str) -> list[Any]:
    """What sympy makes of the text; nothing where it is no formula or has no value, as 1/0."""
    from sympy import Basic, MatrixBase, nan, zoo

    return [_exact(e) for e in _parsed(text) if isinstance(e, (Basic, MatrixBase)) and not e.has(nan, zoo)]


def _parsed(text: str, prose: bool = False) -> list[Any]:
    """math-verify's expressions and the texts that it took for them."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    targets = [LatexExtractionConfig(boxed_match_priority=0), *([ExprExtractionConfig()] if prose else [])]
    return list(parse(text, targets, fallback_mode="first_match" if prose else "no_fallback", parsing_timeout=None))


if __name__ == "__main__":
    main()
