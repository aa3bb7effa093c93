"""Is the answer the gold one? What can be said without math-verify, and the rule by which it is said.

An answer must be at least as evaluated as the gold: where that is a number, `82-49`, `66/2` or `\\sqrt{1089}` are none.
"""

import re
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from grpo_lab.rewards.answers import Answer
from grpo_lab.rewards.literals import Form, Number

EXACT_DIGITS = 6
"""A decimal stands for an irrational number, or that for a decimal, where it is right to so many digits at least."""
_DIVIDED_BY_ZERO = re.compile(r"/\s*0(?![0-9.])|\\frac\s*(?:\{[^{}]*\}|[0-9])\s*(?:\{\s*0+\s*\}|0(?![0-9.]))")
_OPEN_END = re.compile(r"(?:[-+*/^_=<>(\[,]|\\[a-z]+)\s*$")


class Verdict(Enum):
    RIGHT = b"1"
    WRONG = b"0"
    UNREADABLE_GOLD = b"?"
    TIMEOUT = b"T"


@dataclass(frozen=True)
class Rule:
    """How an answer is compared with the gold."""

    simplified: bool = True
    """The answer is at least as evaluated as the gold; False: any formula of equal value, as TRL's reward has it."""
    relative_tolerance: float = 0.0
    """How far an answer may be from a gold that is written as a decimal, as a share of the gold."""

    def __post_init__(self) -> None:
        if not 0 <= self.relative_tolerance < 1:
            raise ValueError(f"relative_tolerance={self.relative_tolerance}: use a number from 0 to less than 1")


@dataclass(frozen=True)
class Question:
    gold: Answer
    answer: Answer
    anywhere: bool = False
    """The answer is prose to search, not a formula."""
    rule: Rule = Rule()


def settle(question: Question) -> Verdict | None:
    """The verdict that needs no math-verify, or None."""
    gold, answer = question.gold, question.answer
    if not gold.text:
        return Verdict.UNREADABLE_GOLD
    if question.anywhere:
        return None
    if gold.clock is not None:
        return _verdict(answer.clock is not None and _same_time(gold.clock, answer.clock))
    if gold.number is not None:
        return _settle_number(gold.number, answer, question.rule)
    if gold.words is not None and (answer.words is not None or not answer.text):
        return _verdict(gold.words == answer.words)
    if gold.text == answer.text and gold.percent == answer.percent and _is_readable(gold.text):
        return Verdict.RIGHT
    return Verdict.WRONG if question.rule.simplified and _is_less_evaluated(answer, gold) else None


def _verdict(right: bool) -> Verdict:
    return Verdict.RIGHT if right else Verdict.WRONG


def _settle_number(gold: Number, answer: Answer, rule: Rule) -> Verdict | None:
    if answer.number is not None:
        return _verdict(same_number(gold, answer.number, rule))
    if not answer.text or answer.clock is not None:
        return Verdict.WRONG
    return Verdict.WRONG if rule.simplified and gold.step is None else None


def same_number(gold: Number, answer: Number, rule: Rule) -> bool:
    """Exactly, or within the rule's tolerance of a decimal; 50% equals 50%, 50 and 0.5."""
    if rule.simplified and not _may_be_written(answer, gold):
        return False
    golds = [gold.value, gold.value / 100] if gold.percent > answer.percent else [gold.value]
    answers = [answer.value, answer.value / 100] if answer.percent > gold.percent else [answer.value]
    tolerance = Fraction(rule.relative_tolerance) if gold.step is not None else Fraction(0)
    return any(abs(a - g) <= tolerance * abs(g) for g in golds for a in answers)


def _may_be_written(answer: Number, gold: Number) -> bool:
    """A fraction for what is not whole, a bare power of ten for such a one or for times-notation."""
    if answer.form is Form.FRACTION:
        return gold.form is Form.FRACTION or (gold.value / (100 if gold.percent else 1)).denominator > 1
    return answer.form is not Form.POWER or gold.form is Form.POWER or gold.step is not None


def _is_less_evaluated(answer: Answer, gold: Answer) -> bool:
    """Of lists, tuples, sets and matrices of numbers: whether an item of the answer is not written as one."""
    golds, answers = gold.numbers, answer.numbers
    if not golds or None in golds or len(golds) != len(answers):
        return False
    loosest = max((number for number in golds if number), key=lambda number: number.value.denominator)
    return any(number is None or not _may_be_written(number, loosest) for number in answers)


def _same_time(gold: tuple[int, str | None], answer: tuple[int, str | None]) -> bool:
    return gold[0] == answer[0] and (gold[1] == answer[1] or None in (gold[1], answer[1]))


def _is_readable(text: str) -> bool:
    """Whether a formula is whole enough to equal its own copy: brackets closed, nothing open, nothing over zero."""
    depth = 0
    for sign in re.sub(r"\\.", "", text):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    return depth == 0 and not _DIVIDED_BY_ZERO.search(text) and not _OPEN_END.search(text)


def stands_for(decimal: Number, difference: Fraction, tolerance: float) -> bool:
    """Whether an irrational number that is so far from a decimal rounds to it, EXACT_DIGITS or more of it."""
    assert decimal.step is not None
    size = abs(decimal.value)
    rounding = max(min(decimal.step, size / 10**EXACT_DIGITS), size / 10**14)
    return bool(difference <= max(rounding, Fraction(tolerance) * size))
