"""Rewards that compare a completion's answer with the column `solution`, each with its own idea of an answer."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from grpo_lab.rewards import ANYWHERE_CHARS, TAIL_CHARS, accuracy
from grpo_lab.rewards.answers import last_answer, read_answer
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
    """
    answers = [_after(text_of(completion), reasoning_delimiters) for completion in completions]

    def log(name: str, value: float) -> None:
        if log_metric is not None:
            log_metric(name.replace("/accuracy/", "/reasoning_accuracy/"), value)

    return accuracy(answers, solution, extract=extract, timeout_s=timeout_s, log_metric=log)


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
        return None if gold is None else float(answer is not None and norm(answer) == norm(str(gold)))

    return [score(text_of(completion), gold) for completion, gold in zip(completions, solution, strict=True)]


def number_match(completions: Sequence[Completion], solution: Sequence[object], **columns: Any) -> list[float | None]:
    """1.0 where the last number of the completion is the gold one, 0.0 where not, `None` where the gold is no number.

    No tag is needed: the "flexible extract" with which lm-evaluation-harness scores GSM8K
    (https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/tasks/gsm8k). Looks at the last 2,000 characters;
    numbers are compared exactly, so 1,234.50 is 1234.5 and 1/2 is 0.5.
    """
    golds = [_number(gold) for gold in solution]
    found = [_NUMBER.findall(text_of(completion)[-ANYWHERE_CHARS:]) for completion in completions]
    lasts = [read_answer(numbers[-1]).number if numbers else None for numbers in found]
    return [None if gold is None else float(last == gold) for last, gold in zip(lasts, golds, strict=True)]


def _after(text: str, delimiters: Sequence[str]) -> str:
    """What follows the last of the delimiters; nothing where there is none."""
    return text[max((end + len(one) for one in delimiters if (end := text.rfind(one)) >= 0), default=len(text)) :]


def _number(gold: object) -> object:
    """The exact value of a gold answer, which may be a whole solution that ends in a tagged one."""
    text = "" if gold is None else str(gold)
    found = last_answer(text)
    return read_answer(text if found is None else found).number
