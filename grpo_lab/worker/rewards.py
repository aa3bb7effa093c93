"""Reward functions as the trainer takes them: found by name, given their parameters, and named when they fail."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hydra.utils import get_method
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from grpo_lab.planner.algorithms.async_grpo import CLASSIFIER
from grpo_lab.rewards.held_out import accuracy_rule
from grpo_lab.store.completions import TOKENS
from grpo_lab.worker import coroutines

RewardFunction = Callable[..., list[float | None]]
_OURS = ("_target_", "weight")
_ONE_AT_A_TIME = threading.Lock()
"""AsyncGRPOTrainer calls all rewards at once, in threads; they are written for one."""


class BadReward(RuntimeError):
    """A reward function raised, or returned something else than one number or None for each completion."""

    def __init__(self, name: str, problem: str, completion: str | None = None) -> None:
        shown = ""
        if completion is not None:
            cut = completion if len(completion) <= 500 else f"{completion[:500]}... ({len(completion)} characters)"
            shown = f"; completion: {cut!r}"
        super().__init__(f"reward '{name}' {problem}{shown}")


def build(rewards: dict[str, dict[str, Any]], *, weighted: bool = False) -> list[RewardFunction | PreTrainedModel]:
    """What TRL takes, in the order of the config: functions, each called `name` in every metric, and classifiers.

    `weighted`: for a trainer that only adds rewards up, each is multiplied by its weight. The first function also
    records how long completions are.
    """
    functions = [
        _classifier(name, **settings)
        if settings.get("path") and settings["_target_"] == CLASSIFIER
        else Reward(name, settings, float(settings.get("weight", 1.0)) if weighted else 1.0)
        for name, settings in rewards.items()
    ]
    ours = [function for function in functions if isinstance(function, Reward)]
    if ours:
        ours[0].counts_tokens = True
    together = {reward.__name__: reward.start for reward in ours if coroutines.is_coroutine(get_method(reward.target))}
    gathering = coroutines.Gathering(together)
    for reward in ours:
        reward.gathering = gathering if reward.__name__ in together else None
    return functions


def _classifier(name: str, path: str, dtype: str = "auto", **others: Any) -> PreTrainedModel:
    """A sequence classifier with one label, which TRL places on its device and gives the texts to.

    Raises:
        BadReward: where it cannot be loaded, or is none: transformers would give any model a head of random weights.
    """
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            os.path.expanduser(path), num_labels=1, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadReward(name, f"cannot load the classifier {path}: {error}") from error
    if info["missing_keys"]:
        raise BadReward(name, f"needs a sequence classifier; {path} has no {', '.join(sorted(info['missing_keys']))}")
    return model


class Reward:
    """A reward function with its parameters, under its own name. It can be pickled: AsyncGRPOTrainer scores in a
    process of its own, which finds the function by its path again."""

    def __init__(self, name: str, settings: dict[str, Any], factor: float = 1.0) -> None:
        self.__name__ = name
        self.target = settings["_target_"]
        self.parameters = {key: value for key, value in settings.items() if key not in _OURS}
        self.factor, self.counts_tokens = factor, False
        self.gathering: coroutines.Gathering | None = None
        get_method(self.target)

    def start(self, **given: Any) -> Any:
        """Values, or the coroutine that gives them. A column that is called as a parameter does not replace it."""
        return get_method(self.target)(**{**given, **self.parameters})

    def _values(self, **given: Any) -> list[float | None]:
        values = self.start(**given)
        return list(coroutines.run(values) if inspect.iscoroutine(values) else values)

    def _values_of_all(self, **given: Any) -> list[float | None]:
        """Values of this reward; the others that are coroutines work on the same completions meanwhile."""
        return list(self.gathering.values(self.__name__, given)) if self.gathering else self._values(**given)

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        name = self.__name__
        if self.counts_tokens and "log_extra" in columns and "completion_ids" in columns:
            columns["log_extra"](TOKENS, [len(ids) for ids in columns["completion_ids"]])
        try:
            with _ONE_AT_A_TIME:
                values = self._values_of_all(completions=completions, **columns)
        except OSError as error:  # no completion is to blame for a server or a file, and each may take a time limit
            raise BadReward(name, f"raised {error!r}") from error
        except Exception as error:  # whatever a user's function raises: it is reported with its name, and re-raised
            raise BadReward(name, f"raised {error!r}", _culprit(self._values, completions, columns)) from error
        if len(values) != len(completions):
            raise BadReward(name, f"returned {len(values)} values for {len(completions)} completions")
        for value, completion in zip(values, completions, strict=True):
            if value is not None and not isinstance(value, (int, float)):
                raise BadReward(name, f"returned {value!r}, not a number or None", text_of(completion))
        return values if self.factor == 1.0 else [None if value is None else self.factor * value for value in values]


def held_out_rule(rewards: dict[str, dict[str, Any]]) -> Reward:
    """The run's own reward for accuracy, to judge answers to held-out problems by."""
    return Reward(*accuracy_rule(rewards))


def right(rule: Reward, completions: list[Any], rows: Sequence[dict[str, Any]]) -> list[bool | None]:
    """Of completions to the problems of `rows`, with all of their columns; None where a gold cannot be read.

    Raises:
        BadReward: where the rule is a function that fails.
    """
    names = [name for name in (rows[0] if rows else {}) if name != "prompt"]
    columns = {name: [row[name] for row in rows] for name in names}
    values = rule(completions, prompts=[row["prompt"] for row in rows], **columns)
    return [None if value is None else value == 1.0 for value in values]


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
