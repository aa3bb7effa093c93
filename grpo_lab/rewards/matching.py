"""Rewards that compare a completion's answer with the column `solution`, each with its own idea of an answer."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from grpo_lab.rewards import ANYWHERE_CHARS, TAIL_CHARS, accuracy
from grpo_lab.rewards.answers import is_missing, last_answer, read_answer, read_gold
from grpo_lab.rewards.comparison import Rule, same_number
from grpo_lab.rewards.literals import Number
from grpo_lab.rewards.text import Completion, text_of

_NUMBER = re.compile(
    r"""(?<![0-9])[-\N{MINUS SIGN}]?(?:\$\s?)?  # a minus between digits is an operation
    (?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+|/[0-9]+)?|\.[0-9]+)""",
    re.VERBOSE,
)


def reasoning_accuracy(
    completions: Sequence[Completion],
    solution: Sequence[object],
    reasoning_delimiters: Sequence[str] = ("</think>",),
    extract: str = "last_tag",
    timeout_s: float = 5.0,
    simplified: bool = True,
    relative_tolerance: float = 0.0,
    step_timeout_s: float | None = 120.0,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    r"""1.0 where the answer after the reasoning equals the gold one, 0.0 where not, `None` for an unreadable gold.

    As TRL's `reasoning_accuracy_reward`: what stands up to the last delimiter does not count, and without one the
    score is 0.0. The comparison is that of `accuracy`, whose cost is bounded: TRL's runs sympy in the trainer.

    Args:
        reasoning_delimiters: any of them ends the reasoning.
        extract: as in `accuracy`.
        timeout_s: as in `accuracy`.
        simplified: as in `accuracy`.
        relative_tolerance: as in `accuracy`.
        step_timeout_s: as in `accuracy`.
    """
    answers = [_after(text_of(completion), reasoning_delimiters) for completion in completions]

    def log(name: str, value: float) -> None:
        if log_metric is not None:
            log_metric(name.replace("/accuracy/", "/reasoning_accuracy/"), value)

    return accuracy(answers, solution, extract, timeout_s, simplified, relative_tolerance, step_timeout_s, log)


def exact_match(
    completions: Sequence[Completion],
    solution: Sequence[object],
    extract: str = "last_tag",
    ignore_case: bool = False,
    **columns: Any,
) -> list[float | None]:
    r"""1.0 where the answer is the gold one letter by letter, blanks aside; 0.0 where not; `None` without a gold.

    Blanks at the ends do not count, and several count as one. For words, labels and code, which `accuracy` would read
    as formulas.

    Args:
        extract: `last_tag`: the last `\boxed{...}` or `<answer>...</answer>`; `all`: the whole completion.
        ignore_case: upper and lower case are alike.
    """
    if extract not in ("last_tag", "all"):
        raise ValueError(f"extract={extract!r}: use last_tag or all")

    def norm(text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if ignore_case else text

    def score(text: str, gold: object) -> float | None:
        answer = text if extract == "all" else last_answer(text[-TAIL_CHARS:])
        return None if is_missing(gold) else float(answer is not None and norm(answer) == norm(str(gold)))

    return [score(text_of(completion), gold) for completion, gold in zip(completions, solution, strict=True)]


def number_match(
    completions: Sequence[Completion],
    solution: Sequence[object],
    simplified: bool = True,
    relative_tolerance: float = 0.0,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the last number of the completion is the gold one, 0.0 where not, `None` where the gold is no number.

    No tag is needed: the "flexible extract" with which lm-evaluation-harness scores GSM8K
    (https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/gsm8k). Looks at the last 2,000 characters;
    numbers are compared exactly, so 1,234.50 is 1234.5 and 1/2 is 0.5, but 66/2 is not 33: see `accuracy`.

    Args:
        simplified: as in `accuracy`; false: a fraction stands for a whole number too.
        relative_tolerance: as in `accuracy`.
    """
    rule = Rule(simplified, relative_tolerance)
    written = [_NUMBER.findall(text_of(completion)[-ANYWHERE_CHARS:]) for completion in completions]
    lasts = [read_answer(numbers[-1]).number if numbers else None for numbers in written]
    golds = [read_gold(gold).number for gold in solution]
    return [_score(gold, last, rule) for gold, last in zip(golds, lasts, strict=True)]


def _score(gold: Number | None, answer: Number | None, rule: Rule) -> float | None:
    return None if gold is None else float(answer is not None and same_number(gold, answer, rule))


def _after(text: str, delimiters: Sequence[str]) -> str:
    """What follows the last of the delimiters; nothing where there is none."""
    return text[
        max(
            (end + len(delimiter) for delimiter in delimiters if (end := text.rfind(delimiter)) >= 0), default=len(text)
        ) :
    ]
