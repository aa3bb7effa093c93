"""Rewards for the length of a completion in tokens, as the policy's tokenizer counts them."""

import math
from collections.abc import Sequence
from typing import Any

from grpo_lab.rewards import accuracy
from grpo_lab.rewards.text import Completion


def length(
    completion_ids: Sequence[Sequence[int]], target: int = 200, width: int | None = None, **columns: Any
) -> list[float]:
    """1.0 for `target` tokens, falling linearly to 0.0 for `width` tokens more or less; 0.0 to 1.0.

    The distance to a wished length, as in the first example of TRL's documentation (`-abs(20 - len(completion))`) and
    in LCPO-Exact (https://arxiv.org/abs/2503.04697, eq. 1), brought to 0..1.

    Args:
        target: tokens, at least 1.
        width: tokens, at least 1; null: as many as `target`.
    """
    width = target if width is None else width
    if target < 1 or width < 1:
        raise ValueError(f"target={target} width={width}: both must be at least 1")
    return [max(0.0, 1 - abs(len(ids) - target) / width) for ids in completion_ids]


def cosine(
    completions: Sequence[Completion],
    solution: Sequence[object],
    completion_ids: Sequence[Sequence[int]],
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    extract: str = "last_tag",
    timeout_s: float = 5.0,
    simplified: bool = True,
    relative_tolerance: float = 0.0,
    step_timeout_s: float | None = 120.0,
    **columns: Any,
) -> list[float | None]:
    """Accuracy by length on a cosine: right and short scores best, wrong and short worst; `None` as in `accuracy`.

    "Demystifying Long Chain-of-Thought Reasoning", https://arxiv.org/abs/2502.03373, appendix C.1, with the parameters
    and values of TRL's `get_cosine_scaled_reward`. The rightness is that of `accuracy`, whose cost is bounded.

    Args:
        max_len: tokens from which on a completion counts as longest.
        min_value_wrong: for a wrong and empty completion.
        max_value_wrong: for a wrong and longest one.
        min_value_correct: for a right and longest one.
        max_value_correct: for a right and empty one.
        extract: as in `accuracy`.
        timeout_s: as in `accuracy`.
        simplified: as in `accuracy`.
        relative_tolerance: as in `accuracy`.
        step_timeout_s: as in `accuracy`.
    """
    if max_len < 1:
        raise ValueError(f"max_len={max_len}: must be at least 1")
    right = accuracy(completions, solution, extract, timeout_s, simplified, relative_tolerance, step_timeout_s)

    def value(is_right: float, tokens: int) -> float:
        short = (1 + math.cos(math.pi * min(tokens / max_len, 1))) / 2  # 1 for nothing, 0 for the longest
        if is_right:
            return min_value_correct + short * (max_value_correct - min_value_correct)
        return max_value_wrong + short * (min_value_wrong - max_value_wrong)

    pairs = zip(right, completion_ids, strict=True)
    return [None if is_right is None else value(is_right, len(ids)) for is_right, ids in pairs]


def overlong(
    completion_ids: Sequence[Sequence[int]],
    max_completion_len: int,
    soft_punish_cache: int | None = None,
    **columns: Any,
) -> list[float]:
    """0.0 up to `max_completion_len - soft_punish_cache` tokens, from there falling linearly to -1.0.

    TRL's `get_soft_overlong_punishment`: DAPO, https://arxiv.org/abs/2503.14476, eq. 13, where the two are 20,480 and
    4,096 tokens.

    Args:
        max_completion_len: tokens at and above which it is -1.0.
        soft_punish_cache: tokens over which it falls; 0 for a step, null for a fifth of `max_completion_len`.
    """
    from trl.rewards.other_rewards import get_soft_overlong_punishment

    cache = max_completion_len // 5 if soft_punish_cache is None else soft_punish_cache
    punish = get_soft_overlong_punishment(max_completion_len, cache)
    return list(punish(completion_ids=completion_ids))
