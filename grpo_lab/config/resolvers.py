"""Functions with which YAML computes a key from others: `${quotient:...}` and `${pick:...}`. Standard library only.

An axis of a sweep sets one key; these functions derive the keys that follow from it. Hydra shows their errors to the
user with the key that could not be computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def quotient(number: int, *divisors: int) -> int:
    """`${quotient:4,${vllm.tp}}`: how many engines of that size use four GPUs. Raises ValueError unless it is whole."""
    whole = number
    for divisor in divisors:
        if divisor < 1 or whole % divisor:
            raise ValueError(f"{number} is not a multiple of {' x '.join(map(str, divisors))}")
        whole //= divisor
    return whole


def pick(key: Any, choices: Mapping[str, Any]) -> Any:
    """`${pick:${vllm.mode},{colocate:1,server:2}}`: the value of the choice. Raises ValueError for another key."""
    if key not in choices:
        raise ValueError(f"no value for {key}, only for {', '.join(map(str, choices))}")
    return choices[key]
