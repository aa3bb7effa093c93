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
