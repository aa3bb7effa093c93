"""How a column of metrics.jsonl becomes a field of result.json: a median with its interval, a mean, a sum, a share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_lab.store import stats


@dataclass(frozen=True)
class Form:
    text: str
    """What the field holds, for the docs."""
    reduce: Callable[[Sequence[Any]], Any] = lambda values: None
    """From the values of a column to the field; None where there are none. Of a computed field: always None."""


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def total(values: Sequence[int]) -> int | None:
    return sum(values) if values else None


def last_tenth(values: Sequence[float]) -> Any:
    """Mean of the last tenth of the steps, at least of one."""
    last = values[-max(1, len(values) // 10) :]
    return {"value": math.fsum(last) / len(last), "n": len(last)} if last else None


def tokens_by_engine(values: Sequence[dict[str, int]]) -> dict[str, int]:
    """Engine -> tokens in all rounds."""
    names = dict.fromkeys(name for counts in values for name in counts)
    return {name: sum(counts.get(name, 0) for counts in values) for name in names}


def working_engines(values: Sequence[dict[str, int]]) -> int:
    return sum(count > 0 for count in tokens_by_engine(values).values())


def by_gpu(combine: Callable[[Sequence[float]], float]) -> Callable[[Sequence[dict[str, float]]], Any]:
    """GPU -> its values of all rounds, combined, to two decimals."""

    def reduce(values: Sequence[dict[str, float]]) -> Any:
        filled = [value for value in values if value]
        return {gpu: round(combine([value[gpu] for value in filled]), 2) for gpu in filled[0]} if filled else None

    return reduce


MEDIAN = Form("`median`, `ci95`, `range`, `n`", stats.timing)
LAST_TENTH = Form("`value`, `n`", last_tenth)
PLAIN_MEDIAN = Form("number", median)
TOTAL = Form("number", total)
TOKENS_BY_ENGINE = Form("number for each engine", tokens_by_engine)
WORKING_ENGINES = Form("number", working_engines)
MEAN_BY_GPU = Form("number for each GPU", by_gpu(statistics.fmean))
MOST_BY_GPU = Form("number for each GPU", by_gpu(max))
SHARE = Form("`value`, `ci95`, `n`")
"""Computed by the module of the job, as are the next four."""
DIFFERENCE = Form(SHARE.text)
COMPUTED_MEDIAN = Form(MEDIAN.text)
COMPUTED_MEAN = Form("`value`, `n`")
NUMBER = Form("number")
