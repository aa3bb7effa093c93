"""How a number of a result is read and shown: an estimate with its interval and n, over runs, as a ratio."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_lab.store import measures
from grpo_lab.store.folder import Row
from grpo_lab.store.measures import Measure

_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5% quantile of Student's t at 1, 2, ... 30 degrees of freedom."""
_NORMAL975 = 1.960


@dataclass(frozen=True)
class Estimate:
    """A measurement with its 95% interval, None where there is none. `n` counts what `of` names."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    of: str = ""

    def text(self) -> tuple[str, str]:
        """Value and interval for a reader, the interval empty where there is none."""
        places = decimals(self.value)
        if self.low is None and self.value.is_integer():
            return f"{self.value:,.0f}", ""
        if self.low is None or self.high is None:
            return f"{self.value:,.{places}f}", ""
        return f"{self.value:,.{places}f}", f"{self.low:,.{places}f} to {self.high:,.{places}f}"


def decimals(value: float) -> int:
    """Places that show three or more significant digits of it."""
    if value == 0 or abs(value) >= 0.1:
        return 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return min(9, 2 - math.floor(math.log10(abs(value))))


def read(row: Row) -> dict[str, Estimate]:
    """Name -> estimate, of one run (or one load of it); what was not measured, or is no number, is not in it."""
    several = measures.columns(row.get("kind", "train"))
    found = {measure.name: estimate(measure.field(row)) for measure in several}
    for measure in several:
        if measure.inverse_of and (under := found[measure.inverse_of]):
            found[measure.name] = _reciprocal(under)
    return {name: one for name, one in found.items() if one is not None}


def estimate(found: Any) -> Estimate | None:
    """Of `{median or value, ci95, n}`, a plain number, or several of them (a role, a GPU each: the largest)."""
    if isinstance(found, Mapping) and not {"median", "value"} & set(found):
        found = list(found.values())
    if isinstance(found, list):
        several = [one.value for each in found if (one := estimate(each))]
        return Estimate(max(several)) if several else None
    if not isinstance(found, Mapping):
        return Estimate(float(found)) if _is_number(found) else None
    value, n = found.get("median", found.get("value")), found.get("n")
    if not _is_number(value):
        return None
    match found.get("ci95"):
        case [low, high] if _is_number(low) and _is_number(high):
            interval: tuple[float | None, float | None] = (float(low), float(high))
        case _:
            interval = (None, None)
    return Estimate(float(value), *interval, n=n if isinstance(n, int) else None)


def over_runs(measure: Measure, several: Sequence[Estimate]) -> Estimate:
    """Mean of runs that differ in their seed only, with Student's t interval over the runs; one keeps its own.

    What has a unit (seconds, tokens a second) is never negative, and neither is its interval.
    """
    if len(several) == 1:
        return several[0]
    values = [one.value for one in several]
    n, mean = len(values), statistics.fmean(values)
    quantile = _T975[n - 2] if n - 2 < len(_T975) else _NORMAL975
    half = quantile * statistics.stdev(values) / math.sqrt(n)
    low = max(0.0, mean - half) if measure.unit else mean - half
    return Estimate(mean, low, mean + half, n, "runs")


def ratio(over: Estimate, under: Estimate) -> Estimate | None:
    """Their quotient; the interval is as wide as both intervals' ends allow, so it errs on the wide side."""
    if under.value <= 0 or over.value <= 0:
        return None
    if over.low is None or over.high is None or under.low is None or under.high is None or under.low <= 0:
        return Estimate(over.value / under.value)
    return Estimate(over.value / under.value, over.low / under.high, over.high / under.low, min_n(over, under))


def min_n(*several: Estimate) -> int | None:
    return min((one.n for one in several if one.n is not None), default=None)


def _reciprocal(one: Estimate) -> Estimate | None:
    if one.value <= 0 or (one.low is not None and one.low <= 0):
        return None
    low, high = (1 / one.high, 1 / one.low) if one.low and one.high else (None, None)
    return Estimate(1 / one.value, low, high, one.n, one.of)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
