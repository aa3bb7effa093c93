"""The run folder: torn lines, rewinding, checkpoints, and tables of what is there."""

from __future__ import annotations

from pathlib import Path

from grpo_lab import reporter as report
from grpo_lab.store import checkpoints
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run


def make(folder: Path, status: str = "finished", **metrics: object) -> Run:
    run = Run(folder)
    folder.mkdir(parents=True)
    failure = None if status == "finished" else {"class": "oom", "message": "out of memory\nmore", "log": None}
    asked = {"model": "tiny", "vllm_mode": "off", "tp": 1, "dp": 1, "gpus": 0, "seed": 0}
    store.write_json(run.result, {"status": status, "failure": failure, **asked, "metrics": metrics})
    return run


def test_a_torn_last_line_is_left_for_later(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append_metrics({"step": 1})
    with run.metrics.open("a") as lines:
        lines.write('{"step": 2')
    assert run.rows() == [{"step": 1}]
    rows, offset = store.read_new_rows(run.metrics, 0)
    with run.metrics.open("a") as lines:
        lines.write(', "loss": 0.5}\n')
    assert store.read_new_rows(run.metrics, offset)[0] == [{"step": 2, "loss": 0.5}]
    assert rows == [{"step": 1}]


def test_rewinding_drops_later_steps_and_their_completions(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step_completions.mkdir(parents=True)
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
        (run.step_completions / f"completions_{step:05d}.parquet").touch()
    run.rewind(2)
    assert [row["step"] for row in run.rows()] == [1, 2]
    assert len(list(run.step_completions.iterdir())) == 2


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step, whole in ((5, True), (20, True), (100, False)):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").touch()
        if whole:
            checkpoints.seal(folder)
    assert run.last_checkpoint() == (run.checkpoints / "checkpoint-20", 20)


def test_setting_aside_deletes_nothing(tmp_path: Path) -> None:
    for turn in (1, 2):
        run = make(tmp_path / "one")
        assert run.set_aside() == tmp_path / f"one.old-{turn}"
    assert [len(store.load(tmp_path / f"one.old-{turn}")) for turn in (1, 2)] == [1, 1]
    assert store.load(tmp_path) == [], "what was set aside is no result any more"


def test_a_failed_run_is_a_row_with_its_reason(tmp_path: Path) -> None:
    make(tmp_path / "good", step_time_s={"median": 1.5, "ci95": [1.4, 1.6], "n": 8})
    make(tmp_path / "bad", status="failed")
    good, bad = sorted(report.table(store.load(tmp_path)), key=lambda row: str(row["status"]), reverse=True)
    assert [good[f"step_time_s{end}"] for end in ("", "_low", "_high", "_n")] == [1.5, 1.4, 1.6, 8]
    assert bad["failure"] == "oom"
    assert bad["reason"] == "out of memory\nmore"
    report.write_csv([good, bad], tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4, "a header, two rows, and one line break"
