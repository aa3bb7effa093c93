"""How a number of a result is read and shown: an estimate with its interval and n, over runs, as a ratio."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_lab.store import forms, measures, stats
from grpo_lab.store.folder import Row
from grpo_lab.store.measures import Measure


@dataclass(frozen=True)
class Estimate:
    """A measurement with its 95% interval, None where there is none. `n` counts what `of` names."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    of: str = ""
    ranged: bool = False
    """Whether `low` and `high` are only the least and the largest of n, too few for an interval."""

    @property
    def count(self) -> str:
        """`n=6`, `n=3 runs`, `range of 3`."""
        if self.n is None:
            return ""
        return f"range of {self.n}" if self.ranged else f"n={self.n} {self.of}".strip()

    def text(self, sign: str = "") -> tuple[str, str]:
        """Value and interval for a reader, the interval empty where there is none. `sign`: `+` shows it always."""
        style = f"{sign},.{decimals(self.value)}f"
        if self.low is None and self.value.is_integer():
            return f"{self.value:{sign},.0f}", ""
        if self.low is None or self.high is None:
            return f"{self.value:{style}}", ""
        return f"{self.value:{style}}", f"{self.low:{style}} to {self.high:{style}}"


def decimals(value: float) -> int:
    """Places that show three or more significant digits of it."""
    if value == 0 or abs(value) >= 0.1:
        return 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return min(9, 2 - math.floor(math.log10(abs(value))))


def read(row: Row) -> dict[str, Estimate]:
    """Name -> estimate, of one run (or one load of it); what was not measured, or is no number, is not in it."""
    several = measures.columns(row.get("kind", "train"))
    estimates = {measure.name: estimate(measure.field(row)) for measure in several}
    for measure in several:
        if measure.inverse_of and (under := estimates[measure.inverse_of]):
            estimates[measure.name] = _reciprocal(under)
    return {name: value for name, value in estimates.items() if value is not None}


def estimate(found: Any) -> Estimate | None:
    """Of `{median or value, ci95, n}`, a plain number, or several of them (a role, a GPU each: the largest)."""
    if isinstance(found, Mapping) and not {"median", "value"} & set(found):
        found = list(found.values())
    if isinstance(found, list):
        several = [part.value for each in found if (part := estimate(each))]
        return Estimate(max(several)) if several else None
    if not isinstance(found, Mapping):
        return Estimate(float(found)) if _is_number(found) else None
    value, n = found.get("median", found.get("value")), found.get("n")
    if not _is_number(value):
        return None
    n = n if isinstance(n, int) else None
    few = "median" in found and n is not None and n < stats.LEAST
    match found.get("ci95") or (found.get("range") if few else None):
        case [low, high] if _is_number(low) and _is_number(high):
            return Estimate(float(value), float(low), float(high), n, ranged=few)
    return Estimate(float(value), n=n)


def over_runs(measure: Measure, several: Sequence[Estimate]) -> Estimate:
    """Mean of runs that differ in their seed only, with its interval over the runs (:func:`stats.over_runs`); a single
    run keeps its own.

    What has a unit (seconds, tokens a second) is never negative, a share lies between 0 and 1, and so do their ends.
    """
    if len(several) == 1:
        return several[0]
    values, share = [run.value for run in several], measure.form is forms.SHARE
    own = [None if run.low is None or run.high is None else (run.low, run.high) for run in several]
    answers = [run.n for run in several if run.n]
    interval = stats.over_runs(values, own, answers if share and len(answers) == len(several) else None)
    low, high = interval or (None, None)
    low = max(0.0, low) if low is not None and (measure.unit or share) else low
    high = min(1.0, high) if high is not None and share else high
    return Estimate(statistics.fmean(values), low, high, len(values), "runs")


def ratio(over: Estimate, under: Estimate) -> Estimate | None:
    """Their quotient; the interval is as wide as both intervals' ends allow, so it errs on the wide side."""
    if under.value <= 0 or over.value <= 0:
        return None
    if over.low is None or over.high is None or under.low is None or under.high is None or under.low <= 0:
        return Estimate(over.value / under.value)
    return Estimate(
        over.value / under.value,
        over.low / under.high,
        over.high / under.low,
        min_n(over, under),
        ranged=over.ranged or under.ranged,
    )


def min_n(*several: Estimate) -> int | None:
    return min((each.n for each in several if each.n is not None), default=None)


def _reciprocal(measured: Estimate) -> Estimate | None:
    if measured.value <= 0 or (measured.low is not None and measured.low <= 0):
        return None
    low, high = (1 / measured.high, 1 / measured.low) if measured.low and measured.high else (None, None)
    return Estimate(1 / measured.value, low, high, measured.n, measured.of, measured.ranged)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
