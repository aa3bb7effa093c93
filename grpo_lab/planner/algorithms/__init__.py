"""One module for each trainer (`algorithm.kind`), which is found by its name: what its config is called, takes and
refuses. How the trainer is built and made to generate is in the module of the same name in worker/trainers."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.planner.algorithms.base import Algorithm


def kinds() -> tuple[str, ...]:
    """The valid values of `algorithm.kind`."""
    return tuple(module.name for module in iter_modules(__path__) if module.name != "base")


@cache
def algorithm(kind: str) -> Algorithm:
    """Raises RequestError for an unknown kind."""
    if kind not in kinds():
        raise RequestError(f"algorithm.kind={kind}: {nearest(kind, kinds())}")
    found: Algorithm = import_module(f"{__name__}.{kind}").ALGORITHM
    return found
