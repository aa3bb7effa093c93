"""Rewards that are coroutines: all of a run work on the same completions at the same time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

Function = Callable[..., Coroutine[Any, Any, Any]]
_LOOP = asyncio.Runner()
"""Always the same event loop: what a reward keeps open (a client) is bound to it."""
WAITING = 64
"""Calls of which not all results were fetched; AsyncGRPOTrainer scores several groups at once."""


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return _LOOP.run(coroutine)


def is_coroutine(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


class Gathering:
    """Trainers call rewards one after another with the same completions: the first call starts every coroutine and
    awaits all of them, the other calls fetch their results."""

    def __init__(self, functions: Mapping[str, Function]) -> None:
        self._functions = functions
        self._calls: list[tuple[object, dict[str, Any]]] = []

    def values(self, name: str, given: dict[str, Any]) -> Any:
        """What `name` returns. Raises what it raises."""
        results = next((kept for asked, kept in self._calls if asked is given["completions"] and name in kept), None)
        if results is None:
            results = dict(zip(self._functions, run(self._all(given)), strict=True))
            self._calls = [*self._calls[1 - WAITING :], (given["completions"], results)]
        result = results.pop(name)
        self._calls = [call for call in self._calls if call[1]]
        if isinstance(result, BaseException):
            raise result
        return result

    async def _all(self, given: dict[str, Any]) -> list[Any]:
        async def value(function: Function) -> Any:
            return await function(**given)  # in here, so that a call that fails is one function's failure

        return await asyncio.gather(*map(value, self._functions.values()), return_exceptions=True)
