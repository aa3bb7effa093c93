"""Loads of a bench, and the requests of their rounds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.config.jobs import BenchConfig

DEFAULT = "default"
"""Name of the load where bench.loads is empty."""
NAME = re.compile(r"[\w.-]+")
_LENGTHS, _TOKENS = 0, 1
"""Streams of random numbers."""
TIMED_LEAST, TIMED_EVERY = 8, 16
"""Requests whose tokens are timed one by one, where bench.timed_every is null: every 16th, but about eight of fewer
than 128. Each costs the server and the client a message a token, which would slow down what is measured."""


@dataclass(frozen=True)
class Load:
    name: str
    prompts: int
    num_generations: int
    prompt_len: int | tuple[int, int]
    completion_len: int | tuple[int, int]
    concurrency: int | None
    timed_every: int

    @property
    def longest_prompt(self) -> int:
        return _bounds(self.prompt_len)[1]

    @property
    def longest_completion(self) -> int:
        return _bounds(self.completion_len)[1]

    @property
    def in_flight(self) -> int:
        """Requests at a time, at most."""
        return min(self.prompts, self.concurrency or self.prompts)

    def asked(self) -> dict[str, Any]:
        """Keys that make the work, as result.json has them."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("name", "timed_every")}

    def __str__(self) -> str:
        tokens = f"{_told(self.prompt_len)} + {_told(self.completion_len)} tokens"
        return f"{self.prompts} prompts x {self.num_generations}, {tokens}, {self.in_flight} requests in flight"


@dataclass(frozen=True)
class Request:
    """A prompt and its completions."""

    prompt: tuple[int, ...]
    """Token ids."""
    length: int
    """Tokens of each completion."""
    timed: bool
    """Whether the arrival of each token is recorded."""


KEYS = ("prompts", "num_generations", "prompt_len", "completion_len", "concurrency", "timed_every")
"""Keys of BenchConfig that a load may change."""


def loads_of(bench: BenchConfig) -> tuple[Load, ...]:
    """In the order in which they were written. Raises RequestError for a value that makes no sense."""
    usual = {key: getattr(bench, key) for key in KEYS}
    if not bench.loads:
        return (_load("bench", DEFAULT, usual),)
    return tuple(_named(name, changes, usual) for name, changes in bench.loads.items())


def _named(name: str, changes: Any, usual: dict[str, Any]) -> Load:
    where = f"bench.loads.{name}"
    if not NAME.fullmatch(name):
        raise RequestError(f"{where}: a name is of letters, digits, '.', '_' and '-'")
    if not isinstance(changes, dict):
        raise RequestError(f"{where}={changes}: must be {{key: value, ...}} of {', '.join(KEYS)}")
    for key in changes:
        if key not in KEYS:
            raise RequestError(f"{where}.{key}: no such key; {nearest(key, KEYS)}")
    return _load(where, name, {**usual, **changes})


def _load(where: str, name: str, asked: dict[str, Any]) -> Load:
    for key, optional in (("prompts", False), ("num_generations", False), ("concurrency", True), ("timed_every", True)):
        value = asked[key]
        if not _is_count(value) and not (optional and value is None):
            raise RequestError(f"{where}.{key}={value}: must be a whole number, at least 1")
    lengths = {key: _length(f"{where}.{key}", asked[key]) for key in ("prompt_len", "completion_len")}
    every = asked["timed_every"] or min(TIMED_EVERY, max(1, asked["prompts"] // TIMED_LEAST))
    return Load(name, **{**asked, **lengths, "timed_every": every})


def _length(where: str, value: Any) -> int | tuple[int, int]:
    if _is_count(value):
        return int(value)
    if isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)) and value[0] <= value[1]:
        return (value[0], value[1])
    raise RequestError(f"{where}={value}: a number of tokens, at least 1, or [low, high]")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _bounds(length: int | tuple[int, int]) -> tuple[int, int]:
    return length if isinstance(length, tuple) else (length, length)


def _told(length: int | tuple[int, int]) -> str:
    return f"{length[0]}..{length[1]}" if isinstance(length, tuple) else str(length)


def draw(load: Load, vocabulary: Sequence[int], *, seed: int, number: int, turn: int) -> list[Request]:
    """The requests of a load's round: prompts of random tokens, no two alike.

    Lengths are the same in every round and layout; tokens differ between rounds (`turn`) and loads (`number`), so that
    no prompt finds another one's prefix in a cache.

    Raises:
        RequestError: where there are not that many different prompts.
    """
    lengths = np.random.default_rng([seed, _LENGTHS])
    sizes = [lengths.integers(low, high + 1, load.prompts) for low, high in map(_bounds, _both(load))]
    tokens, known = np.random.default_rng([seed, _TOKENS, number, turn]), np.asarray(vocabulary)
    prompts: dict[tuple[int, ...], None] = {}
    for size in sizes[0]:
        for _ in range(100):
            prompt = tuple(tokens.choice(known, int(size)).tolist())
            if prompt not in prompts:
                break
        else:
            raise RequestError(f"{load.prompts} different prompts of {size} tokens: there are not so many")
        prompts[prompt] = None
    return [
        Request(prompt, int(length), timed=place % load.timed_every == 0)
        for place, (prompt, length) in enumerate(zip(prompts, sizes[1], strict=True))
    ]


def _both(load: Load) -> tuple[int | tuple[int, int], int | tuple[int, int]]:
    return load.prompt_len, load.completion_len
