"""Which runs may stand in one table: the same kind, sweep, hardware, versions and commit of the harness."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from grpo_lab.reporter.folder import Found, LeftOut, name
from grpo_lab.store.folder import Row

VERSIONS = ("torch", "transformers", "trl", "vllm")
Context = dict[str, str]
"""What must be equal -> how a reader is told."""


def hardware(row: Row) -> str:
    """`4 x NVIDIA H200`, or the processor where there is no GPU."""
    env = row["env"]
    gpus = collections.Counter(env.get("gpus") or ())
    if gpus:
        return ", ".join(f"{count} x {gpu}" for gpu, count in gpus.items())
    return f"{env['processor']}, cores: {env.get('cores')}" if env.get("processor") else "unknown"


def versions(row: Row) -> str:
    return ", ".join(f"{key} {row['env'][key]}" for key in VERSIONS if row["env"].get(key)) or "unknown"


def commit(row: Row) -> str:
    return str(row["env"].get("git_commit") or "unknown")


def of(row: Row, *, sweeps: bool) -> Context:
    """`sweeps`: whether runs of different sweeps are kept apart. A run that was started by hand belongs to any, and
    its commit is an axis of the comparison."""
    of_sweep = {"commit of grpo_lab": commit(row)} if row["sweep"] else {}
    if row["sweep"] and sweeps:
        of_sweep = {"sweep": row["sweep"].name, **of_sweep}
    return {"kind of result": row["kind"], "hardware": hardware(row), "versions": versions(row), **of_sweep}


def comparable(found: Found, folders: Sequence[Path]) -> Found:
    """The largest set of runs that may be compared; the others are left out, each with what is different about it.

    Sweeps that were named one by one are wanted side by side. A run that did not finish measured nothing, so that
    only its kind and its sweep count.
    """
    contexts = [of(row, sweeps=len(folders) == 1) for row in found.rows]
    counted = collections.Counter(
        tuple(context.items()) for row, context in zip(found.rows, contexts, strict=True) if row["status"] == "finished"
    )
    chosen = _largest([dict(context) for context, _ in counted.most_common()] or contexts)
    kept = Found(left_out=list(found.left_out))
    for row, context in zip(found.rows, contexts, strict=True):
        if why := _difference(row, context, chosen):
            kept.left_out.append(LeftOut(name(Path(row["run"]), folders), why))
            kept.aside.append({**row, "left_out": why})
        else:
            kept.rows.append(row)
    return kept


def _largest(in_order: Sequence[Context]) -> Context:
    """The first, and of the next one that may stand beside it what it lays down further: its sweep."""
    chosen = dict(in_order[0])
    for context in in_order[1:]:
        if all(context[key] == value for key, value in chosen.items() if key in context):
            chosen |= context
    return chosen


def _difference(row: Row, context: Context, chosen: Context) -> str:
    counts = (
        context
        if row["status"] == "finished"
        else {key: context[key] for key in ("kind of result", "sweep") if key in context}
    )
    return "; ".join(
        f"another {key}: {value}, the report is of {chosen[key]}"
        for key, value in counts.items()
        if value != chosen.get(key, value)
    )
