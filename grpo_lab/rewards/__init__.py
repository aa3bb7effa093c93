"""Rewards: pure functions with TRL's interface, `f(completions, **columns) -> list[float | None]`.

`completions` are lists of chat messages or plain strings, the other columns of the data set arrive as lists.
TRL leaves a `None` out of the mean. TRL's own rewards and any user's function have the same shape and fit
beside these.
"""

from collections.abc import Callable, Sequence
from typing import Any

from grpo_lab.rewards.answers import Answer, last_answer, read_answer, read_gold
from grpo_lab.rewards.comparison import Question, Rule, Verdict
from grpo_lab.rewards.judge import shared_judge
from grpo_lab.rewards.text import Completion, text_of

__all__ = ["accuracy", "format"]

TAIL_CHARS = 200_000  # an answer that so much text follows is not a final answer
ANYWHERE_CHARS = 2_000


def accuracy(
    completions: Sequence[Completion],
    solution: Sequence[object],
    extract: str = "last_tag",
    timeout_s: float = 5.0,
    simplified: bool = True,
    relative_tolerance: float = 0.0,
    step_timeout_s: float | None = 120.0,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""1.0 where the final answer equals the gold one, 0.0 where not, `None` where the gold is unreadable.

    The final answer is the last `\boxed{...}` or `<answer>...</answer>`, whichever ends later; without one
    the score is 0.0, unless `extract="anywhere"` lets math-verify look for an answer in the last 2,000
    characters. It must be at least as evaluated as the gold. A gold that is one number takes a number:
    digits, a decimal, a percentage, times-notation, with a unit or a currency; a fraction, a mixed number or
    a ratio only where the gold is not whole; an equation by its last side. So `82-49`, `66/2` and
    `\sqrt{1089}` are no answers to 33. A decimal gold also takes an irrational number in exact form, and the
    other way round, where six digits or more agree. Items of a list, tuple, set or matrix of numbers are
    numbers too. Any other gold is compared by equivalence.

    Two numbers are compared exactly (`grpo_lab.rewards.literals` says what is one: signs of currency and
    units are dropped, 50% equals 50 and 0.5), everything else by math-verify in processes of its own, one for
    every core there is.

    `log_metric` receives, per call, how many golds were unreadable and how many comparisons ran out of time
    (0.0 each).

    Args:
        extract: `last_tag` or `anywhere`.
        timeout_s: seconds for one completion, after which its process is killed.
        simplified: false: any formula of the gold's value is right, `82-49` for 33 too, as in TRL's reward.
        relative_tolerance: of a gold that is written as a decimal, 0 to less than 1: 0.01 is one percent.
        step_timeout_s: seconds for all completions of a call; null: no limit. What is over it has timed out.
    """
    if extract not in ("last_tag", "anywhere"):
        raise ValueError(f"extract={extract!r}: use last_tag or anywhere")
    rule = Rule(simplified, relative_tolerance)
    questions = [
        _question(gold, text_of(completion)[-TAIL_CHARS:], extract == "anywhere", rule)
        for completion, gold in zip(completions, solution, strict=True)
    ]
    verdicts = shared_judge().verdicts(questions, timeout_s, step_timeout_s)
    if log_metric is not None:
        log_metric("rewards/accuracy/unparsable_gold", verdicts.count(Verdict.UNREADABLE_GOLD))
        log_metric("rewards/accuracy/timeouts", verdicts.count(Verdict.TIMEOUT))
    return [None if v is Verdict.UNREADABLE_GOLD else float(v is Verdict.RIGHT) for v in verdicts]


def format(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """1.0 where the completion is `<think>...</think>`, `<answer>...</answer>`, nothing else but blanks."""
    return [float(_well_formed(text_of(completion))) for completion in completions]


def _question(gold: object, text: str, anywhere: bool, rule: Rule) -> Question:
    answer = last_answer(text)
    if answer is None and anywhere:
        return Question(read_gold(gold), Answer(text[-ANYWHERE_CHARS:]), anywhere=True, rule=rule)
    return Question(read_gold(gold), read_answer(answer or ""), rule=rule)


def _well_formed(text: str) -> bool:
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if any(text.count(tag) != 1 for tag in tags):
        return False
    think, end_think, answer, end_answer = (text.index(tag) for tag in tags)
    if not think < end_think < answer < end_answer:
        return False
    outside = (text[:think], text[end_think + len(tags[1]) : answer], text[end_answer + len(tags[3]) :])
    return not any(part.strip() for part in outside)
