"""Rewards for how varied a completion is."""

from collections.abc import Sequence
from typing import Any

from grpo_lab.rewards.text import Completion, text_of


def repetition(
    completion_ids: Sequence[Sequence[int]], ngram_size: int = 3, max_penalty: float = -1.0, **columns: Any
) -> list[float]:
    """0.0 where no n-gram of tokens occurs twice, `max_penalty` times the share of repeated ones where some do.

    TRL's `get_repetition_penalty_reward`: "Demystifying Long Chain-of-Thought Reasoning",
    https://arxiv.org/abs/2502.03373, appendix C.2. Below `ngram_size` tokens 0.0.

    Args:
        ngram_size: tokens, at least 1.
        max_penalty: 0.0 or less; what a completion of nothing but repetitions comes near to.
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size={ngram_size}: must be at least 1")
    from trl.rewards.other_rewards import get_repetition_penalty_reward

    return list(get_repetition_penalty_reward(ngram_size, max_penalty)(completion_ids=completion_ids))


def unique_chars(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """The number of different characters, 0.0 or more: the toy reward of TRL's GRPO quickstart.

    It rises within minutes on any model, so it shows that a set-up trains
    (https://huggingface.co/docs/trl/grpo_trainer). Not within 0..1: give it a small weight beside others.
    """
    return [float(len(set(text_of(completion)))) for completion in completions]
