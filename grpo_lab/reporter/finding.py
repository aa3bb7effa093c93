"""What a report found, in the sentences that stand first."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from grpo_lab.reporter.best import RUNS, best, has_enough
from grpo_lab.reporter.configurations import Configuration, failure_of
from grpo_lab.store.estimates import Estimate
from grpo_lab.store.folder import Row
from grpo_lab.store.measures import Measure, headlines


def sentences(configurations: Sequence[Configuration], rows: Sequence[Row], kind: str) -> str:
    """What came out, what did not finish, and whether a run warns."""
    finished = [entry for entry in configurations if entry.folders]
    shown = [key for key in headlines(kind)[:2] if any(key.name in entry.estimates for entry in finished)]
    compared = [sentence for key in shown if (sentence := _compared(finished, key))]
    if compared and not all(has_enough(_measured(finished, key), key) for key in shown):
        compared.append(f"To call one best takes {RUNS} runs of each.")
    outcomes = compared if len(finished) > 1 else [_alone(entry, kind) for entry in finished]
    return " ".join(part for part in (*outcomes, _unfinished(rows), _warned(rows)) if part)


def _alone(entry: Configuration, kind: str) -> str:
    before, after, gain = (entry.estimates.get(f"accuracy_{name}") for name in ("before", "after", "gain"))
    named = f"{entry.work}, {entry.way}"
    if before and after and gain:
        low, high = gain.low or 0, gain.high or 0
        moved = "rose" if low > 0 else "fell" if high < 0 else "did not change measurably"
        value, interval = gain.text("+")
        return f"{named}: pass@1 {moved}, {before.value:.3f} to {after.value:.3f}, {value} ({interval}, {gain.count})."
    known = [key for key in headlines(kind) if key.name in entry.estimates]
    values = [f"{key.label} {_shown(entry.estimates[key.name])} {key.unit}".strip() for key in known]
    return f"{named}: {', '.join(values) or 'finished'}."


def _compared(several: Sequence[Configuration], measure: Measure) -> str:
    """Who leads in a measure, and whether that may be called best."""
    measured = _measured(several, measure)
    works = dict.fromkeys(entry.work for entry in measured)
    rivals = {work: [entry for entry in measured if entry.work == work] for work in works}
    leaders = [_leader(entries, measure) for entries in rivals.values() if len(entries) > 1]
    if not leaders:
        return ""
    marked, enough = best(several, measure), has_enough(measured, measure)
    none = "; none stands clear of the others" if enough else ""
    if len(leaders) > 1:
        counts = collections.Counter(leader.way for leader in leaders).most_common(3)
        ahead = ", ".join(f"{way} in {count}" for way, count in counts)
        clear = f"; {len(marked)} of them clear of all others" if marked else none
        return f"Ahead in {measure.label}, of {len(leaders)} works: {ahead}{clear}."
    (leader,) = leaders
    if marked:
        return (
            f"Best in {measure.label}: {leader.way} {_shown(leader.estimates[measure.name])} {measure.unit}".strip()
            + "."
        )
    ends = sorted((entry.estimates[measure.name] for entry in rivals[leader.work]), key=lambda end: end.value)
    low, high = (end.text()[0] for end in (ends[0], ends[-1]))
    label = measure.label[0].upper() + measure.label[1:]
    return f"{label} from {low} to {high} {measure.unit}".strip() + f"{none}."


def _measured(several: Sequence[Configuration], measure: Measure) -> list[Configuration]:
    return [entry for entry in several if measure.name in entry.estimates]


def _leader(entries: Sequence[Configuration], measure: Measure) -> Configuration:
    first = min if measure.better == "lower" else max
    return first(entries, key=lambda entry: entry.estimates[measure.name].value)


def _shown(estimate: Estimate) -> str:
    value, interval = estimate.text()
    return f"{value} ({interval}, {estimate.count})" if interval else value


def _unfinished(rows: Sequence[Row]) -> str:
    failures = collections.Counter(failure_of(row)[0] for row in rows if row["status"] != "finished")
    listed = ", ".join(f"{name} {count}" for name, count in failures.items())
    return f"{failures.total()} of {len(rows)} runs did not finish: {listed}." if failures else ""


def _warned(rows: Sequence[Row]) -> str:
    count = sum(bool(row.get("warnings")) for row in rows)
    return f"{count} of {len(rows)} runs warn: see Warnings." if count else ""
