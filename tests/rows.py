"""Data functions as a user might write them, good and bad."""

from __future__ import annotations

import sys
from typing import Any

import datasets


def empty(split: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([])


def without_prompt(split: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"question": "1+1=?", "solution": "2"}])


def failing(completions: list[Any], step: int = 2, **columns: Any) -> list[float]:
    """A reward that raises at a step; one completion is to blame."""
    if columns["trainer_state"].global_step >= step:
        raise KeyError("the reward's own mistake")
    return [float(len(completion[0]["content"])) for completion in completions]


def vllm_imported(completions: list[Any], **columns: Any) -> list[float]:
    """1 in a process that has imported vLLM."""
    return [float("vllm" in sys.modules)] * len(completions)


def keyed(completions: list[Any], api_key: str, **columns: Any) -> list[float]:
    """A reward that is given a secret."""
    return [0.0 for _ in completions]
