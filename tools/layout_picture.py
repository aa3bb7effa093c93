"""`python -m tools.layout_picture TABLE.csv OUT.svg`: TP against DP, from the table.csv of a report."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from grpo_lab.reporter import configurations, layouts
from grpo_lab.reporter.configurations import Configuration
from grpo_lab.store import measures, stats
from grpo_lab.store.estimates import Estimate

_AXES = ("model", "load", "vllm_mode", "tp", "dp", "gpus")


def configuration(row: dict[str, str]) -> Configuration:
    """Of one row, which is one run: its numbers are no means over runs."""
    asked = {key: int(row[key]) if key in ("tp", "dp", "gpus") else row[key] for key in _AXES if row.get(key)}
    named = {measure.name: _estimate(row, measure.name) for measure in measures.columns(row["kind"])}
    known = {name: estimate for name, estimate in named.items() if estimate}
    failed = {"class": row.get("failure"), "message": row.get("reason")}
    run = {"run": row["run"], "status": row["status"], "failure": failed}
    return Configuration(asked, {key: value for key, value in asked.items() if key != "gpus"}, (run,), known)


def _estimate(row: dict[str, str], name: str) -> Estimate | None:
    if not row.get(name):
        return None
    low, high, n = (row.get(f"{name}_{end}") or None for end in ("low", "high", "n"))
    count = int(float(n)) if n else None
    ends = (float(low) if low else None, float(high) if high else None)
    return Estimate(float(row[name]), *ends, count, ranged=count is not None and count < stats.LEAST)


def main(table: Path, out: Path) -> None:
    """Write the picture, or the first of several."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row.get("left_out")]
    several = sorted(
        map(configuration, rows), key=lambda entry: configurations.words_and_numbers(str(entry.asked.get("model")))
    )
    picture = layouts.crossings(several, rows[0]["kind"])[0]
    out.write_text(picture.file(), encoding="utf-8")
    print(picture.title)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
