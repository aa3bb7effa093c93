"""Reward functions as the trainer takes them: found by name, given their parameters, and named when they fail."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hydra.utils import get_method

RewardFunction = Callable[..., list[float | None]]
_OURS = ("_target_", "weight")


class BadReward(RuntimeError):
    """A reward function raised, or returned something else than one number or None for each completion."""

    def __init__(self, name: str, problem: str, completion: str) -> None:
        shown = completion if len(completion) <= 500 else f"{completion[:500]}... ({len(completion)} characters)"
        super().__init__(f"reward '{name}' {problem}; completion: {shown!r}")


def build(rewards: dict[str, dict[str, Any]]) -> list[RewardFunction]:
    """The functions in the order of the config, each called `name` in every metric."""
    return [_named(name, settings) for name, settings in rewards.items()]


def _named(name: str, settings: dict[str, Any]) -> RewardFunction:
    parameters = {key: value for key, value in settings.items() if key not in _OURS}
    function = functools.partial(get_method(settings["_target_"]), **parameters)

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        try:
            values = list(function(completions=completions, **columns))
        except Exception as error:  # whatever a user's function raises: it is reported with its name, and re-raised
            raise BadReward(name, f"raised {error!r}", _culprit(function, completions, columns)) from error
        for value, completion in zip(values, completions, strict=False):
            if value is not None and not isinstance(value, (int, float)):
                raise BadReward(name, f"returned {value!r}, not a number or None", text_of(completion))
        return values

    reward.__name__ = name
    return reward


def _culprit(function: RewardFunction, completions: list[Any], columns: dict[str, Any]) -> str:
    """The first completion that fails alone; the first of all where none does."""
    for index, completion in enumerate(completions):
        one = {key: [value[index]] if _is_column(value, completions) else value for key, value in columns.items()}
        try:
            function(completions=[completion], **one)
        except Exception:  # noqa: BLE001 - whatever it raises, this is the one
            return text_of(completion)
    return text_of(completions[0])


def _is_column(value: Any, completions: list[Any]) -> bool:
    return isinstance(value, list) and len(value) == len(completions)


def text_of(completion: Any) -> str:
    """The text of a completion, which is a string or a list of chat messages."""
    return completion if isinstance(completion, str) else "".join(str(message["content"]) for message in completion)
