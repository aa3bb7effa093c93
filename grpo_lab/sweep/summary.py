"""`python -m grpo_lab.sweep.summary FOLDER`: one tracker run, beside those of the points, that holds the table."""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_lab.config.schema import TrackerConfig
from grpo_lab.store import measures, records, tracker
from grpo_lab.store import train as results
from grpo_lab.store.folder import Row, Sweep
from grpo_lab.store.records import FrozenPoint, Result
from grpo_lab.sweep import points


def table(sweep: Sweep) -> list[Row]:
    """One row a point, in the order of the sweep: its overrides, how it ended, its measurements (null: none)."""
    return [_row(sweep, point) for point in points.frozen(sweep).points]


def _row(sweep: Sweep, point: FrozenPoint) -> Row:
    result = records.read(sweep.run(point.name).result, Result) or Result(status="unfinished")
    overrides = dict(text.lstrip("+").split("=", 1) for text in point.overrides if "=" in text)
    measured = {name: results.objective(result, name) for name in measures.objectives()}
    failure = result.failure and result.failure.class_
    ended = {"status": result.status, "failure": failure, "gpus": point.gpus}
    return {"point": point.name, **overrides, **ended, **measured}


def publish(sweep: Sweep) -> None:
    rows = table(sweep)
    frozen = points.frozen(sweep)
    settings = TrackerConfig(**frozen.points[0].config["tracker"])
    log = tracker.open_tracker(
        settings,
        folder=sweep.folder,
        run_id=str(frozen.run_id),
        name=f"{sweep.folder.name} (summary)",
        group=sweep.folder.name,
        tags=["sweep"],
        config={"command": frozen.command, "points": len(rows)},
    )
    log.table("points", rows)
    log.finish({"finished": sum(row["status"] == "finished" for row in rows)}, exit_code=0)


if __name__ == "__main__":
    publish(Sweep(Path(sys.argv[1])))
