"""`eval.every`: evaluations between the steps, which change nothing about the steps. About 25 s."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import EvalConfig
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Row, Run
from grpo_lab.worker import held_out as evaluation
from grpo_lab.worker.clock import Clock
from grpo_lab.worker.rewards import held_out_rule
from tests.conftest import SHORT, cli
from tests.planner.test_plan import ON_CPU, planned

ASKED = [*SHORT, "grpo.max_steps=5", "grpo.save_steps=2", "eval.problems=96"]
EVERY = ["eval.every=2", "eval.every_problems=64"]


def losses(rows: list[Row]) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["reward"]) for row in rows]


def test_evaluations_in_between_are_recorded_resumed_and_leave_the_steps_alone(runs: Path) -> None:
    assert cli(*ASKED, f"runs_dir={runs}", "name=without").returncode == 0
    with_it = [*ASKED, *EVERY, f"runs_dir={runs}", "name=with"]
    ended = cli(*with_it)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = Run(runs / "with")
    rows = run.rows()
    assert losses(rows) == losses(Run(runs / "without").rows())
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [2, 4]
    for row in (rows[1], rows[3]):
        assert row["eval/n"] == 64
        assert row["eval/accuracy"] * 64 == round(row["eval/accuracy"] * 64)
        assert 0 < row["eval/accuracy"] < 1
        assert row["eval/time_s"] > 0
    assert store.read_json(run.result)["metrics"]["accuracy_after"]["n"] == 96

    run.result.unlink()
    shutil.rmtree(run.checkpoints / "checkpoint-5")  # as if it had been killed in its last step
    ended = cli(*with_it, "resume=true")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert run.rows()[:4] == rows[:4]
    assert losses(run.rows()) == losses(rows)


def test_the_time_of_an_evaluation_is_no_part_of_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()
    recorder = SimpleNamespace(clock=clock, beside={})
    trainer = SimpleNamespace(use_vllm=True, _last_loaded_step=2, is_world_process_zero=lambda: True)

    def slow(*_: Any) -> list[evaluation.Answer]:
        with clock.section("generate"):
            time.sleep(0.2)
        return [evaluation.Answer("an answer", mark) for mark in (1, 0, 1, 1)]

    monkeypatch.setattr(evaluation, "evaluate", slow)
    held_out = datasets.Dataset.from_dict({"prompt": ["a"] * 4, "solution": ["1"] * 4})
    between = evaluation.InBetween(EvalConfig(every=2), Run(tmp_path), trainer, recorder, held_out, held_out_rule({}))
    clock.lap()
    between.on_step_end(None, SimpleNamespace(global_step=2, max_steps=4), None)
    lap = clock.lap()
    assert lap["generate"] == 0
    assert sum(lap.values()) < 0.2
    assert (recorder.beside["eval/accuracy"], recorder.beside["eval/n"]) == (0.75, 4)
    assert recorder.beside["eval/time_s"] >= 0.2
    assert trainer._last_loaded_step != 2  # or the next step would not be charged for its own weights' way to vLLM


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["eval.every=-1"], "a number of steps"),
        (["eval.every=5", "eval.enabled=false"], "switches every evaluation off"),
        (["eval.every_problems=5"], "together with eval.every=STEPS"),
        (["eval.every=5", "eval.every_problems=0"], "a number of problems"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        planned(ON_CPU, *overrides)
