"""Which of a run's rewards says whether an answer to a held-out problem is right."""

from collections.abc import Mapping
from typing import Any

NAME = "accuracy"
ACCURACY = "grpo_lab.rewards.accuracy"
COSINE = "grpo_lab.rewards.lengths.cosine"
RULES = (
    ACCURACY,
    "grpo_lab.rewards.matching.reasoning_accuracy",
    "grpo_lab.rewards.matching.number_match",
    "grpo_lab.rewards.matching.exact_match",
    "grpo_lab.rewards.countdown.countdown",
    COSINE,
)
"""Rewards that are 1.0 for a right answer, or scale such a one."""
_NO_RULE = ("weight", "step_timeout_s")  # a budget for training steps, not for evaluations
_OF_ACCURACY = ("extract", "timeout_s", "simplified", "relative_tolerance")


def accuracy_rule(rewards: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Name and settings, `_target_` included: the reward that is called `accuracy`, else the first of RULES, else
    `accuracy` as it is by default. `length_cosine` stands for the accuracy in it.
    """
    targets = {name: settings["_target_"] for name, settings in rewards.items() if settings and "_target_" in settings}
    own = [NAME] * (NAME in targets) + [name for name, target in targets.items() if target in RULES]
    name = own[0] if own else None
    chosen = {"_target_": ACCURACY} if name is None else dict(rewards[name])
    if chosen["_target_"] == COSINE:
        name, chosen = NAME, {"_target_": ACCURACY, **{key: chosen[key] for key in _OF_ACCURACY if key in chosen}}
    settings = {key: value for key, value in chosen.items() if key not in _NO_RULE}
    if settings["_target_"] in (ACCURACY, RULES[1]):
        settings["step_timeout_s"] = None
    return name or NAME, settings


def rule_text(rewards: Mapping[str, Mapping[str, Any]]) -> str:
    """As a result names it: `accuracy(extract=anywhere, simplified=true)`; a user's own function by its path."""
    name, settings = accuracy_rule(rewards)
    target = settings.pop("_target_")
    shown = {key: value for key, value in settings.items() if not key.endswith("timeout_s")}
    values = ", ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in shown.items()
    )
    return f"{name if target in RULES else target}({values})" if values else name if target in RULES else target
