"""The reward of the countdown game: reach a target with given numbers and the four operations."""

import ast
import operator
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from grpo_lab.rewards import TAIL_CHARS
from grpo_lab.rewards.answers import plain_number
from grpo_lab.rewards.text import Completion, as_list, text_of

MAX_CHARS = 500  # a longer expression is none: bounds its depth and the size of its values
_WRITTEN = re.compile(r"[0-9+\-*/() \n]+")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def countdown(
    completions: Sequence[Completion],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    format_score: float = 0.1,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the last `<answer>` is an expression with the value `target` that has each of `numbers` once.

    `format_score` where there is an answer with a wrong expression, or none at all; 0.0 without an answer; `None` where
    the row has no numbers or no target. As in TinyZero (https://github.com/Jiayi-Pan/TinyZero,
    verl/utils/reward_score/countdown.py), with exact fractions, and without running the expression: it may have
    + - * / ( ) and whole numbers only. An expression is what the game asks for, so none has to be calculated.

    Args:
        format_score: for an answer in its tags that is wrong.
    """

    def score(text: str, given: list[Fraction] | None, goal: Fraction | None) -> float | None:
        if given is None or goal is None:
            return None
        expression = _last_tagged(text)
        if expression is None:
            return 0.0
        return 1.0 if _value(expression, given) == goal else format_score

    rows = zip(completions, map(_numbers, numbers), map(_number, target), strict=True)
    return [score(text_of(completion)[-TAIL_CHARS:], given, goal) for completion, given, goal in rows]


def _numbers(column: object) -> list[Fraction] | None:
    """Sorted; None where it is no list of numbers, or an empty one."""
    values = as_list(column)
    known = [number for number in map(_number, values or ()) if number is not None]
    return sorted(known) if values and len(known) == len(values) else None


def _number(value: object) -> Fraction | None:
    return plain_number(str(value))


def _last_tagged(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return None if start < 0 else text[start + len("<answer>") : end].partition("</answer>")[0]


def _value(expression: str, given: list[Fraction]) -> Fraction | None:
    """None where it is no such expression, uses other numbers, or divides by zero."""
    expression = expression.strip()
    if len(expression) > MAX_CHARS or not _WRITTEN.fullmatch(expression):
        return None
    used: list[Fraction] = []
    try:
        value = _evaluate(ast.parse(expression, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return value if sorted(used) == given else None


def _evaluate(node: ast.expr, used: list[Fraction]) -> Fraction:
    """Raises ValueError for what is no number, no sign and none of the four operations."""
    match node:
        case ast.Constant(value=int(number)):
            used.append(Fraction(number))
            return used[-1]
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
            value = _evaluate(operand, used)
            return value if isinstance(sign, ast.UAdd) else -value
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            result: Fraction = _OPERATIONS[type(operation)](_evaluate(left, used), _evaluate(right, used))
            return result
        case _:
            raise ValueError(ast.dump(node))
