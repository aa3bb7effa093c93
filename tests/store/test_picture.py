"""The picture of a run: drawn for accuracies at both ends of the scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_lab.store import picture, stats
from grpo_lab.store.folder import Row, Run
from grpo_lab.store.records import Result

ROUNDED = {"value": 0.0, "ci95": [4.3368086899420177e-19, 0.0076], "n": 500}
"""What an earlier version made of none right of 500."""


@pytest.mark.parametrize("share", [stats.proportion([0] * 500), stats.proportion([1] * 500), ROUNDED])
def test_none_and_all_right_of_500_are_drawn(tmp_path: Path, share: Row) -> None:
    """The lower end of 0 of 500 lay 4e-19 above it: matplotlib refused the error bar, and the result was lost."""
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "reward": 0.0})
    picture.draw(run, Result(status="finished", metrics={"accuracy_before": share, "accuracy_after": share}))
    assert run.reward_curve.stat().st_size > 1000


def test_the_title_says_the_result(tmp_path: Path) -> None:
    run = Run(tmp_path / "one")
    run.folder.mkdir()
    run.config.write_text("data: {_target_: grpo_lab.data.arithmetic}\n")
    gain = {"value": 0.29, "ci95": [0.241, 0.336], "n": 500}
    shares = {
        "accuracy_before": stats.proportion([1] * 21 + [0] * 29),
        "accuracy_after": stats.proportion([1] * 7 + [0] * 3),
    }
    rows = [{"step": step, "reward": step / 10} for step in range(1, 11)]
    result = Result(status="finished", model="tiny", metrics={**shares, "accuracy_gain": gain})
    assert picture.title(run, result, rows) == "tiny on arithmetic: pass@1 0.42 -> 0.70, +0.29 (0.24 to 0.34)"
    assert picture.title(run, Result(status="failed", model="tiny"), rows) == "tiny on arithmetic: reward 0.10 -> 1.00"


def test_accuracy_is_drawn_before_during_and_after_with_its_problems(tmp_path: Path) -> None:
    rows = [{"step": 5, "eval/accuracy": 0.5, "eval/n": 100}, {"step": 10}]
    shares = {"accuracy_before": stats.proportion([0] * 500), "accuracy_after": stats.proportion([1] * 500)}
    points = picture.held_out(rows, Result(status="finished", metrics=shares), 10)
    assert [(step, share, n) for step, share, *_, n in points] == [(0, 0.0, 500), (5, 0.5, 100), (10, 1.0, 500)]
    assert all(low <= share <= high for _, share, low, high, _ in points)
    assert points[1][3] - points[1][2] == pytest.approx(0.19, abs=0.01), "Wilson's of 50 of 100"
