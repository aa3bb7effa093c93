"""The list of metrics: one row in it is enough for results, objectives, reports and docs."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from grpo_lab.conductor import bench as conductor_bench
from grpo_lab.conductor import train as conductor_train
from grpo_lab.config.errors import RequestError
from grpo_lab.predictor.parts import PREDICTED
from grpo_lab.reporter import contents, rows
from grpo_lab.store import bench, measures, records, train
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.measures import MEASURES, PHASES, Measure
from grpo_lab.sweep import launching
from tests.conftest import ROOT
from tests.planner.test_plan import asked, planned, with_gpus
from tests.results import make
from tools import make_docs

TOY = Measure("toys_per_s", "toys", "1/s", "lower", "toys that were made", objective=True, terminal="toys made")


@pytest.fixture(params=sorted(MEASURES))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kind of run with one metric more, and with nothing else changed."""
    monkeypatch.setitem(MEASURES, request.param, (*MEASURES[request.param], TOY))
    return str(request.param)


def metrics_of(kind: str, run: Run) -> Row:
    """`metrics` of result.json, where the toys of step 1 belong to the warm-up."""
    recorded = [{"step": step, "load": "default", "toys_per_s": float(step)} for step in (1, 2, 3, 4)]
    if kind == "bench":
        return bench.metrics_of(recorded[1:], {})
    for row in recorded:
        run.append_metrics(row)
    words = ["vllm=colocate", "warmup_steps=1"]
    plan = planned(with_gpus(2), *words)
    return dict(train.build(run, asked(*words), plan, failure=None, server={}).metrics)


def test_a_row_in_the_list_adds_a_metric(kind: str, tmp_path: Path) -> None:
    (tmp_path / "blank").mkdir()
    metrics = metrics_of(kind, Run(tmp_path / "blank"))
    assert (metrics["toys_per_s"]["median"], metrics["toys_per_s"]["n"]) == (3.0, 3)
    assert set(metrics) == {measure.keys[0] for measure in MEASURES[kind] if not measure.inverse_of}

    train.check_objective("toys_per_s")
    assert train.objective(records.Result(status="finished", metrics=metrics), "toys_per_s") == 3.0
    with pytest.raises(RequestError, match="minimize"):
        launching.check_direction("maximize", "toys_per_s")

    loads = {"loads": [{"name": "default", "load": {}, "metrics": metrics}]} if kind == "bench" else {}
    for dp in (1, 2):
        make(tmp_path / "runs" / f"dp={dp}", kind=kind, dp=dp, metrics=metrics, **loads)
    (tmp_path / "published.csv").write_text("dp,metric,value,unit,source\n2,toys_per_s,6,1/s,x\n")
    report = contents.make([tmp_path / "runs"], tmp_path / "published.csv")
    (shown,) = [table for table in report.tables if table.title == "All configurations"]
    assert shown.rows[0][list(shown.head).index("toys, 1/s")].text == "3.000"
    (beside,) = [table for table in report.tables if table.title == "Published beside measured"]
    assert beside.rows[0][4].text == "0.50"
    rows.write_csv(list(report.runs), tmp_path / "table.csv")
    assert [row["toys_per_s"] for row in csv.DictReader((tmp_path / "table.csv").open())] == ["3.0", "3.0"]
    wanted = f"| `toys_per_s` | `toys_per_s` | 1/s | {TOY.form.text} | toys that were made | lower | yes |"
    assert wanted in make_docs.results()

    result = records.Result(kind=kind, status="finished", metrics=metrics, loads=tuple(loads.get("loads", ())))
    screen = Console(file=io.StringIO(), width=200)
    for part in conductor_train.summary(result) if kind == "train" else [conductor_bench.table(result)]:
        screen.print(part)
    assert "toys made" in screen.file.getvalue()  # type: ignore[attr-defined]
    assert "3.000" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_without_its_row_it_is_unknown() -> None:
    with pytest.raises(RequestError, match="objective=toys_per_s"):
        train.check_objective("toys_per_s")


@pytest.mark.parametrize("kind", MEASURES)
def test_names_are_unique_and_every_metric_says_what_it_is(kind: str) -> None:
    names = [measure.name for measure in MEASURES[kind]]
    assert len(set(names)) == len(names)
    fields = [tuple(measure.keys) for measure in MEASURES[kind]]
    assert len(set(fields)) == len(fields)
    assert all(measure.meaning for measure in MEASURES[kind] if not measure.inverse_of)
    assert [measure.headline for measure in measures.headlines(kind)] == list(
        range(1, len(measures.headlines(kind)) + 1)
    )


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks/results").glob("*/*/result.json"), key=str), ids=str)
def test_results_of_earlier_versions_hold_no_metric_that_the_list_lacks(path: Path) -> None:
    result = records.read(path, records.Result)
    assert result is not None
    assert set(result.metrics) <= {measure.keys[0] for measure in MEASURES[result.kind]}


@pytest.mark.parametrize("record", [records.Result, records.Failure, records.EvaluationResult])
def test_every_field_of_a_result_is_described(record: Any) -> None:
    names = {field.name.rstrip("_") for field in dataclasses.fields(record)}
    assert set(make_docs.field_docs(f"grpo_lab.store.records.{record.__name__}")) == names


def test_the_predicted_phases_are_phases() -> None:
    assert set(PREDICTED) < set(PHASES)
