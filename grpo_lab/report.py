"""`python -m grpo_lab.report <folder> ...`: the runs below some folders as one table, in Markdown and CSV.

A number stands with its interval and n; a run that did not finish stands with its reason, not as a gap. Nothing calls
this module: it reads result.json files, whoever wrote them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grpo_lab import store
from grpo_lab.results import PHASES
from grpo_lab.store import Row

ASKED = ("model", "vllm_mode", "tp", "dp", "gpus", "seed", "status")
MEASURED = (
    "accuracy_before",
    "accuracy_after",
    "accuracy_gain",
    "step_time_s",
    "generated_tokens_per_s",
    "tokens_per_s_per_gpu",
    "logp_difference",
)
CONTEXT = ("cores", "python", "torch", "transformers", "trl", "vllm", "git_commit", "command")


def table(rows: Iterable[Row]) -> list[Row]:
    """One flat row a run: what was asked, each measurement as value, low, high and n, hardware and versions."""
    return [_flat(row) for row in rows]


def _flat(row: Row) -> Row:
    flat: Row = {"run": Path(str(row["run"])).name, **{key: row.get(key) for key in ASKED}}
    for key in MEASURED:
        flat |= _measurement(key, row.get(key))
    for phase in PHASES:
        flat[f"{phase}_s"] = ((row.get("time_s") or {}).get(phase) or {}).get("median")
    for role in ("trainer", "server"):
        flat[f"peak_memory_gib_{role}"] = (row.get("peak_memory_gib") or {}).get(role)
        flat[f"startup_s_{role}"] = (row.get("startup_s") or {}).get(role)
    flat["reason"] = (row.get("failure") or {}).get("message")
    flat["hardware"] = ", ".join(row["env"].get("gpus") or []) or row["env"].get("processor")
    return flat | {key: row["env"].get(key) for key in CONTEXT}


def _measurement(key: str, found: Mapping[str, Any] | None) -> Row:
    """`key`, `key_low`, `key_high`, `key_n` of a timing or a proportion; None where there is none."""
    found = found or {}
    low, high = found.get("ci95") or (None, None)
    return {
        key: found.get("median", found.get("value")),
        f"{key}_low": low,
        f"{key}_high": high,
        f"{key}_n": found.get("n"),
    }


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Iterable[Row]) -> str:
    """The table for a reader: layout, accuracy, speed, each with its interval."""
    lines = [
        "| run | mode | tp | dp | GPUs | seed | pass@1 before | after | gain | step time, s | tokens/s/GPU | n |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = f"| {row['run']} | {row['vllm_mode']} | {row['tp']} | {row['dp']} | {row['gpus']} | {row['seed']} |"
        if row["status"] != "finished":
            lines.append(f"{start} {row['status']}: {str(row['reason']).splitlines()[0]} |||||||")
            continue
        cells = [_cell(row, key, digits) for key, digits in _SHOWN]
        lines.append(f"{start} {' | '.join(cells)} | {row['step_time_s_n']} |")
    return "\n".join(lines) + "\n"


_SHOWN = (
    ("accuracy_before", 3),
    ("accuracy_after", 3),
    ("accuracy_gain", 3),
    ("step_time_s", 3),
    ("tokens_per_s_per_gpu", 0),
)


def _cell(row: Row, key: str, digits: int) -> str:
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    if value is None:
        return "not measured"
    interval = "" if low is None else f" ({low:,.{digits}f} to {high:,.{digits}f})"
    return f"{value:,.{digits}f}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    asked = parser.parse_args()
    found = [row for folder in asked.folders for row in store.load(folder)]
    if not found:
        sys.exit(f"no result.json below {', '.join(map(str, asked.folders))}")
    rows = table(found)
    if asked.csv:
        write_csv(rows, asked.csv)
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
