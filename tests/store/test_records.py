"""The records of a run folder: written as before, read back as dataclasses, of older and newer versions too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.store import files, records
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Env, Failure, Outcome, Progress, Published, Result
from tests.conftest import ROOT

RESULTS = ROOT / "notebooks" / "results"
FAILURE = {"class": "oom", "message": "out of memory", "log": None}


@pytest.mark.parametrize(("name", "kind"), [("result.json", Result), ("env.json", Env)])
def test_real_runs_are_read_and_written_without_a_change(name: str, kind: type[Any], tmp_path: Path) -> None:
    originals = sorted(RESULTS.rglob(name))
    assert len(originals) >= 18, "the results that the notebooks show"
    for original in originals:
        record = records.read(original, kind)
        records.write(tmp_path / name, record)
        before = files.read_json(original)
        after = files.read_json(tmp_path / name)
        assert {**after, **before} == after, "every field is there, unchanged"
        assert {key: after[key] for key in after.keys() - before.keys()} in ({}, {"kind": "train"}, {"host_ms": None})


@pytest.mark.parametrize(
    "record",
    [
        Progress("training", 3, 9),
        Progress("training", 3, 9, doing="sync"),
        Outcome(),
        Outcome(startup_s=1.5, finished=True, failure=Failure("oom", "out of memory", "worker.log")),
        Result(status="failed", failure=Failure("nan", "step 3: loss not finite"), steps=3),
        Result(kind="bench", status="finished", loads=({"name": "default", "load": {}, "metrics": {}},)),
        Env(run_id="x", gpus=("NVIDIA H200",), versions={"torch": "2.13.0", "grpo-lab": "0.1"}),
        Published("owner/name", "0" * 40),
    ],
)
def test_what_was_written_is_read_back(record: Any, tmp_path: Path) -> None:
    records.write(tmp_path / "file.json", record)
    assert records.read(tmp_path / "file.json", type(record)) == record


def test_names_in_the_files() -> None:
    assert records.content_of(Outcome(failure=Failure("oom", "out of memory"))) == {"failure": FAILURE}
    assert records.content_of(Progress("loading")) == {"phase": "loading", "done": 0, "total": 0, "doing": None}
    assert records.content_of(Env(versions={"vllm": "0.31.0"}))["vllm"] == "0.31.0"
    assert records.content_of(Result(status="finished"))["failure"] is None


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert records.read(tmp_path / "outcome.json", Outcome) is None


def test_an_update_changes_the_fields_it_names(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.update_outcome(startup_s=2.0)
    run.update_outcome(failure=Failure("oom", "out of memory"))
    assert files.read_json(run.outcome) == {"startup_s": 2.0, "failure": FAILURE}
    run.update_outcome(startup_s=3.0)
    assert run.read_outcome() == Outcome(startup_s=3.0, failure=Failure("oom", "out of memory"))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (Result, {"status": "finished", "energy_j": 3}, "unknown field 'energy_j', made by a newer version"),
        (Result, {"status": "failed", "failure": {**FAILURE, "hint": ""}}, "unknown field 'failure.hint'"),
        (Env, {"gpus": [], "rocm": "6"}, "unknown field 'rocm'"),
        (Outcome, {"failure": "oom"}, "failure is not an object"),
        (Env, {"gpus": "H200"}, "gpus is not a list"),
        (Result, {"kind": "train"}, "no field 'status', made by an older version; resume=false starts over"),
        (Result, [], "its content is not an object"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(kind: type[Any], content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=message) as refusal:
        records.read(file, kind)
    assert str(refusal.value).startswith(f"{file}: ")
    assert "\n" not in str(refusal.value)


def test_every_field_of_a_worker_s_records_has_a_default() -> None:
    """So that a run of an older version, which lacks the newest ones, is read."""
    for kind in (Outcome, Env):
        assert dataclasses.asdict(kind())
