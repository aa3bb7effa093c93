"""Predictions for a reader: a table, or JSON and CSV with everything."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from grpo_lab.config.schema import Config
from grpo_lab.machine.clusters import Cluster
from grpo_lab.predictor.calibration import Calibration
from grpo_lab.predictor.candidates import Judged
from grpo_lab.predictor.memory import GIB
from grpo_lab.predictor.parts import PREDICTED
from grpo_lab.predictor.workload import workload
from grpo_lab.store import markdown


def table(layouts: Sequence[Judged], config: Config, cluster: Cluster, *, top: int) -> str:
    runs = [judged for judged in layouts if judged.runs]
    lines = [_heading(config, cluster), ""]
    if runs:
        lines += [_COLUMNS, *(_line(judged) for judged in runs[:top])]
        lines += [f"{len(runs) - top} more that run, slower: plan.top={len(runs)}"] * (len(runs) > top)
        lines += ["", *_memory(runs[0], cluster)]
    else:
        lines.append("no layout of this run fits; the reasons below say what would help")
    rest = sorted((judged for judged in layouts if not judged.runs), key=_reason)
    lines += ["", "not possible:"] if rest else []
    for reason, same in groupby(rest, key=_reason):
        names = [judged.name for judged in same]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {'; '.join(names[:3])}{more}\n      {reason}")
    return "\n".join(lines) + "\n"


def _reason(judged: Judged) -> str:
    return f"{judged.verdict.kind}: {judged.verdict.reason}"


def _heading(config: Config, cluster: Cluster) -> str:
    work, card = workload(config), cluster.card
    machines = f" in each of {cluster.nodes} machines" if cluster.nodes > 1 else ""
    return (
        f"{config.model.name} on {cluster.per_node} {card.name} ({card.memory / GIB:.1f} GiB){machines}:"
        f" {work.completions} completions a step of {work.completion} tokens (all taken to be that long), prompts of"
        f" {work.prompt}\n"
        f"predicted, not measured; ± holds 19 of 20 times, ? where this card or mode was never measured"
    )


_COLUMNS = (
    f"{'layout':<42} {'tokens/s/GPU':>12} {'±':>5} {'step s':>8} {'gener.':>7} {'sync':>6} {'logpr.':>7} {'train':>7}"
    f" {'GiB (role by role)':>20} {'batch':>6} {'longest':>8}  fits"
)


def _line(row: Judged) -> str:
    assert row.phases is not None
    band = "?" if row.band is None else f"{row.band:.0%}"
    p = row.phases
    used = " + ".join(f"{need.total / GIB:.0f}" for need in row.verdict.needs.values())
    note = " ".join(text for text in (row.verdict.kind, row.verdict.reason, row.note) if text)
    return (
        f"{row.name:<42} {row.tokens_per_s_per_gpu:>12,.0f} {band:>5} {p.step:>8.2f} {p.generate:>7.2f} {p.sync:>6.2f}"
        f" {p.logprobs:>7.2f} {p.train:>7.2f} {used:>20} {row.largest_batch:>6} {row.largest_completion:>8}  {note}"
    )


def _memory(judged: Judged, cluster: Cluster) -> list[str]:
    lines = [f"memory of the first on a GPU of {cluster.card.memory / GIB:.1f} GiB:"]
    for role, need in judged.verdict.needs.items():
        parts = ", ".join(f"{part} {size / GIB:.1f}" for part, size in need.parts.items() if size >= 0.05 * GIB)
        lines.append(f"  {role}: {need.total / GIB:.1f} GiB = {parts}")
    return lines


def rows(layouts: Sequence[Judged], cluster: Cluster) -> list[dict[str, Any]]:
    return [_row(judged, cluster) for judged in layouts]


def _row(judged: Judged, cluster: Cluster) -> dict[str, Any]:
    vllm, layout = judged.config.vllm, judged.layout
    return {
        "layout": judged.name,
        "mode": vllm.mode,
        "tp": vllm.tp,
        "dp": vllm.dp,
        "trainer_gpus": layout.trainer if layout else None,
        "distributed": judged.config.distributed.kind,
        "hardware": cluster.card.name,
        "gpus": judged.gpus or None,
        "verdict": judged.verdict.kind,
        "reason": judged.verdict.reason or None,
        "note": judged.note or None,
        "tokens_per_s_per_gpu": round(judged.tokens_per_s_per_gpu, 1) if judged.phases else None,
        "generated_tokens_per_s": round(judged.generated_tokens_per_s, 1) if judged.phases else None,
        "band": round(judged.band, 3) if judged.band is not None and judged.phases else None,
        "step_time_s": round(judged.phases.step, 4) if judged.phases else None,
        "time_s": {key: round(value, 4) for key, value in asdict(judged.phases).items()} if judged.phases else None,
        "memory_gib": {
            role: {part: round(size / GIB, 3) for part, size in need.parts.items()}
            for role, need in judged.verdict.needs.items()
        },
        "card_gib": round(cluster.card.memory / GIB, 1),
        "largest_batch": judged.largest_batch if judged.verdict.needs else None,
        "largest_completion": judged.largest_completion if judged.verdict.needs else None,
    }


def as_json(layouts: Sequence[Judged], cluster: Cluster) -> str:
    return json.dumps(rows(layouts, cluster), indent=2) + "\n"


def as_csv(layouts: Sequence[Judged], cluster: Cluster) -> str:
    flat = [_flat(row) for row in rows(layouts, cluster)]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in row.items() if key not in ("time_s", "memory_gib")}
    times = {f"{phase}_s": (row["time_s"] or {}).get(phase) for phase in PREDICTED}
    parts = {f"gib {role}: {part}": size for role, parts in row["memory_gib"].items() for part, size in parts.items()}
    return {**plain, **times, **parts}


def _error(point: Mapping[str, Any]) -> list[str]:
    blind = point["error_without_this_model"]
    names = [point["name"], point["model"], point["layout"]]
    return [*names, f"{point['error']:+.1%}", "" if blind is None else f"{blind:+.1%}"]


def errors(calibration: Calibration) -> str:
    """How far the predicted tokens a second are from what the calibration rests on."""
    head = ["measurement", "model", "layout", "error", "without this model"]
    lines = [markdown.table(head, map(_error, calibration.points))]
    blind = [
        abs(point["error_without_this_model"])
        for point in calibration.points
        if point["error_without_this_model"] is not None
    ]
    if blind:
        summary = f"median {statistics.median(blind):.1%}, largest {max(blind):.1%}"
        lines += ["", f"{len(blind)} predictions for a model that the fit did not see: {summary}"]
    if calibration.hosts:
        slow = ", ".join(f"{host} {factor:.2f}" for host, factor in calibration.hosts.items())
        lines += ["", f"host times, of the predicted: {slow}"]
    return "\n".join(lines) + "\n"
