"""Every run as a flat row for table.csv: what was asked, each measurement with its interval, hardware and versions."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from grpo_lab.reporter import context
from grpo_lab.reporter.configurations import failure_of, per_load
from grpo_lab.store import estimates, measures
from grpo_lab.store.folder import Row

ASKED = ("kind", "model", "algorithm", "vllm_mode", "tp", "dp", "gpus", "seed", "load", "status")
CONTEXT = ("cores", "host_ms", "python", *context.VERSIONS, "git_commit", "command")


def table(rows: Iterable[Row]) -> list[Row]:
    """One flat row for each run and load of rows as `store.load` gives them."""
    return [_flat({"kind": "train", **row}) for row in per_load(rows)]


def _flat(row: Row) -> Row:
    flat: Row = {"run": Path(str(row["run"])).name, **{key: row.get(key) for key in ASKED}}
    flat |= {f"load_{key}": value for key, value in row.get("load_asked", {}).items()}
    estimates_of_row = estimates.read(row) if row["status"] == "finished" else {}
    for measure in measures.columns(row["kind"]):
        one, column = estimates_of_row.get(measure.name), measure.name
        flat[column] = one.value if one else None
        if one and one.n is not None:
            flat |= {f"{column}_low": one.low, f"{column}_high": one.high, f"{column}_n": one.n}
    if row["status"] != "finished":
        flat["failure"], flat["reason"] = failure_of(row)
    return (
        flat
        | {"hardware": context.hardware(row)}
        | {key: row["env"].get(key) for key in CONTEXT}
        | {"left_out": row.get("left_out")}
    )


def write_csv(rows: list[Row], path: Path) -> None:
    """Columns in the order in which rows first have them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
