"""Bounds and choices of the config's fields. They stand beside their field in the schema and are checked here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from grpo_lab.config.errors import RequestError, nearest

LIMITS = "limits"
"""Key of a field's metadata."""


@dataclass(frozen=True)
class Bounds:
    """Least and greatest value of a number. Null is left alone unless `needed`; other types are not looked at."""

    low: float
    high: float = math.inf
    needed: bool = False
    wrong: str = ""
    """Refusal, where it is more helpful than naming the bound."""

    def refusal(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low <= value <= self.high:
            return None
        over = f"at most {self.high}" if value > self.high else "a number"
        return self.wrong or f"must be {f'at least {self.low}' if value < self.low else over}"


@dataclass(frozen=True)
class Choices:
    """Valid values. Null, the default of an optional field, is always one."""

    valid: tuple[str, ...]
    pattern: re.Pattern[str] | None = None
    """Further valid values, described by `hint`."""
    hint: str = ""
    needed = False

    def refusal(self, value: Any) -> str | None:
        if value is None or value in self.valid or (self.pattern and self.pattern.fullmatch(value)):
            return None
        if len(self.valid) == 1:
            return f"the only choice is {self.valid[0]}"
        return nearest(str(value), self.valid) + self.hint


def bounded(default: Any, low: float, high: float = math.inf, wrong: str = "") -> Any:
    """A field whose value lies between `low` and `high`."""
    return field(default=default, metadata={LIMITS: Bounds(low, high, wrong=wrong)})


def choice(default: Any, *valid: str, pattern: re.Pattern[str] | None = None, hint: str = "") -> Any:
    """A field whose value is one of `valid`, or matches `pattern`."""
    return field(default=default, metadata={LIMITS: Choices(valid, pattern, hint)})


def of_options(**limits: Bounds) -> dict[str, dict[str, Bounds]]:
    """Metadata of a field that holds a dictionary of options, some of them with bounds."""
    return {LIMITS: limits}


def check_limits(settings: Any, key: str = "") -> None:
    """Check a dataclass of the schema, its sections included. `key`: its place in the config.

    Raises:
        RequestError: for the first value outside of its bounds or choices.
    """
    for item in fields(settings):
        value, name = getattr(settings, item.name), f"{key}.{item.name}".removeprefix(".")
        limits = item.metadata.get(LIMITS)
        if is_dataclass(value):
            check_limits(value, name)
        elif isinstance(limits, dict):
            for option, limit in limits.items():
                _check(f"{name}.{option}", value.get(option), limit)
        elif limits is not None:
            _check(name, value, limits)


def _check(key: str, value: Any, limit: Bounds | Choices) -> None:
    if value is None and limit.needed:
        raise RequestError(f"{key}: a value is needed")
    if (refusal := limit.refusal(value)) is not None:
        raise RequestError(f"{key}={value}: {refusal}")
