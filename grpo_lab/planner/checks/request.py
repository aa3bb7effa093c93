"""One key at a time: bounds and choices of the schema, names, rewards."""

from __future__ import annotations

import math

from grpo_lab.config.errors import RequestError
from grpo_lab.config.limits import check_limits
from grpo_lab.config.schema import Config
from grpo_lab.planner.algorithms import algorithm

LONGEST_NAME = 200
"""Bytes: file systems take 255, and what is set aside gets an ending."""


def check_request(config: Config) -> None:
    """Raises RequestError for a value that no run can have."""
    check_limits(config)
    algorithm(config.algorithm.kind)
    if config.name is not None:
        _check_name(config.name)
    limit = config.data.get("max_prompt_tokens")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise RequestError(f"data.max_prompt_tokens={limit!r}: use a number of tokens, or null for no limit")
    if not config.rewards:
        raise RequestError("rewards=[]: at least one reward is needed, for example rewards=[accuracy,format]")
    for name, settings in config.rewards.items():
        _check_reward(f"rewards.{name}", settings)


def _check_reward(key: str, settings: object) -> None:
    if not isinstance(settings, dict):
        way_out = f"{key}._target_= names its function, ~{key} leaves it out"
        raise RequestError(f"{key}={_shown(settings)}: a reward is a mapping; {way_out}")
    weight = settings.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RequestError(f"{key}.weight={_shown(weight)}: must be a finite number")


def _shown(value: object) -> str:
    """As on the command line."""
    return "null" if value is None else str(value)


def _check_name(name: str) -> None:
    bad = not name.strip() or name in (".", "..") or "/" in name or not name.isprintable()
    if bad or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise RequestError(
            f"name={name[:LONGEST_NAME]!r}: the run's folder in runs_dir= cannot be called so; use a word without /"
        )
