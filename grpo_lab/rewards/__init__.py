"""Rewards: pure functions with TRL's interface, `f(completions, **columns) -> list[float | None]`.

`completions` are lists of chat messages or plain strings, the other columns of the data set arrive as lists.
TRL leaves a `None` out of the mean. TRL's own rewards and any user's function have the same shape and fit
beside these.
"""

from collections.abc import Callable, Sequence
from typing import Any

from grpo_lab.rewards.answers import Answer, last_answer, read_answer
from grpo_lab.rewards.judge import Question, Verdict, shared_judge
from grpo_lab.rewards.text import Completion, text_of

__all__ = ["accuracy", "format"]

TAIL_CHARS = 200_000  # an answer that so much text follows is not a final answer
ANYWHERE_CHARS = 2_000


def accuracy(
    completions: Sequence[Completion],
    solution: Sequence[object],
    extract: str = "last_tag",
    timeout_s: float = 5.0,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    r"""1.0 where the final answer equals the gold one, 0.0 where not, `None` where the gold is unreadable.

    The final answer is the last `\boxed{...}` or `<answer>...</answer>`, whichever ends later; without one
    the score is 0.0, unless `extract="anywhere"` lets math-verify look for an answer in the last 2,000
    characters. Two plain numbers are compared exactly (`grpo_lab.rewards.answers` says what is one: signs of
    currency and units are dropped, 50% equals 50 and 0.5), everything else by math-verify in processes of its
    own, killed after `timeout_s` for one completion.

    `log_metric` receives, per call, how many golds were unreadable and how many comparisons ran out of time
    (0.0 each).
    """
    if extract not in ("last_tag", "anywhere"):
        raise ValueError(f"extract={extract!r}: use last_tag or anywhere")
    questions = [
        _question(gold, text_of(completion)[-TAIL_CHARS:], anywhere=extract == "anywhere")
        for completion, gold in zip(completions, solution, strict=True)
    ]
    verdicts = shared_judge().verdicts(questions, timeout_s)
    if log_metric is not None:
        log_metric("rewards/accuracy/unparsable_gold", verdicts.count(Verdict.UNREADABLE_GOLD))
        log_metric("rewards/accuracy/timeouts", verdicts.count(Verdict.TIMEOUT))
    return [None if v is Verdict.UNREADABLE_GOLD else float(v is Verdict.RIGHT) for v in verdicts]


def format(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """1.0 where the completion is `<think>...</think>`, `<answer>...</answer>`, nothing else but blanks."""
    return [float(_well_formed(text_of(completion))) for completion in completions]


def _question(gold: object, text: str, anywhere: bool) -> Question:
    gold_text = "" if gold is None else str(gold)
    found = last_answer(text)
    if found is None and anywhere:
        return Question(_gold_answer(gold_text), Answer(text[-ANYWHERE_CHARS:]), anywhere=True)
    return Question(_gold_answer(gold_text), read_answer(found or ""))


def _gold_answer(text: str) -> Answer:
    """A gold may be a bare answer or a whole solution that ends in a tagged one."""
    found = last_answer(text)
    return read_answer(text if found is None else found)


def _well_formed(text: str) -> bool:
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    if any(text.count(tag) != 1 for tag in tags):
        return False
    think, end_think, answer, end_answer = (text.index(tag) for tag in tags)
    if not think < end_think < answer < end_answer:
        return False
    outside = (text[:think], text[end_think + len(tags[1]) : answer], text[end_answer + len(tags[3]) :])
    return not any(part.strip() for part in outside)
