"""Rewards for the form of a completion, in linear time: no regular expression that could run away."""

import re
from collections.abc import Sequence
from typing import Any

from grpo_lab.rewards import TAIL_CHARS
from grpo_lab.rewards.answers import last_box
from grpo_lab.rewards.text import Completion, text_of

_THINK_TO_ANSWER = re.compile(r"</think>\s*<answer>")


def strict(completions: Sequence[Completion], **columns: Any) -> list[float]:
    r"""1.0 where the completion is exactly `<think>\n...\n</think>\n<answer>\n...\n</answer>`, 0.0 where not.

    Every tag once and alone on its line, as in open-r1's `format_reward`
    (https://github.com/huggingface/open-r1, src/open_r1/rewards.py), with nothing before or after. `format` is the
    same without the line breaks. A line break at the end does not count.
    """
    return [float(_strict(text_of(completion))) for completion in completions]


def soft(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1.0 where `<think>...</think>` and, after blanks at most, `<answer>...</answer>` occur anywhere, 0.0 where not.

    Text around them and repeated tags do no harm, as in the `soft_format_reward_func` of William Brown's GRPO demo
    (https://gist.github.com/willccbb/4676755236bb08cab5f4e54a0475d6fb), whose tag for thoughts is `<reasoning>`.
    """
    return [float(_soft(text_of(completion))) for completion in completions]


def tag_count(
    completions: Sequence[Completion],
    tags: Sequence[str] = ("<think>", "</think>", "<answer>", "</answer>"),
    **columns: Any,
) -> list[float]:
    r"""The share of `tags` that occur exactly once: with four tags 0.0, 0.25, 0.5, 0.75 or 1.0.

    open-r1's `tag_count_reward` (https://github.com/huggingface/open-r1, src/open_r1/rewards.py) counts the tags with
    their line breaks: `tags=["<think>\n","\n</think>\n","\n<answer>\n","\n</answer>"]`.

    Args:
        tags: what to count; order and place do not matter.
    """
    if not tags:
        raise ValueError("tags=[]: name at least one")
    texts = map(text_of, completions)
    return [sum(text.count(tag) == 1 for tag in tags) / len(tags) for text in texts]


def boxed(completions: Sequence[Completion], **columns: Any) -> list[float]:
    r"""1.0 where the last `\boxed{...}` is closed and not blank, 0.0 where there is none.

    The form in which the data sets of MATH's kind want their answer (https://arxiv.org/abs/2103.03874); whether it is
    right is for `accuracy`. Looks at the last 200,000 characters.
    """
    return [float(_boxed(text_of(completion)[-TAIL_CHARS:])) for completion in completions]


def _strict(text: str) -> bool:
    if any(text.count(tag) != 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        return False
    text = text.removesuffix("\n")
    inside = text.removeprefix("<think>\n").removesuffix("\n</answer>")
    return len(text) - len(inside) == len("<think>\n\n</answer>") and "\n</think>\n<answer>\n" in inside


def _soft(text: str) -> bool:
    start = text.find("<think>")
    middle = _THINK_TO_ANSWER.search(text, start) if start >= 0 else None
    return middle is not None and text.find("</answer>", middle.end()) >= 0


def _boxed(text: str) -> bool:
    box = last_box(text)
    return box is not None and bool(text[box].strip())
