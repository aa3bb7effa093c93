"""A reward that does not work is refused before anything starts, with file and line; one that works is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_lab.conductor import rehearsal
from grpo_lab.config.errors import BadReward
from tests.conftest import cli
from tests.planner.test_plan import asked

REWARDS = """
import asyncio, os, time
def deep(completions, **columns):
    return [number(completion[0]["content"]) for completion in completions]
def number(text):
    return int(text)
def short(completions, **columns):
    return [1.0]
def words(completions, **columns):
    return ["good" for _ in completions]
async def judge(completions, **columns):
    raise ConnectionError("no judge")
def quits(completions, **columns):
    os._exit(0)
def hangs(completions, **columns):
    time.sleep(60)
def texts(completions, prompts, **columns):
    return [float(isinstance(completion, str)) or 1 / 0 for completion in completions]
async def good(completions, solution, trainer_state, log_metric, log_extra, completion_ids, factor=0, **columns):
    print("grpo-lab: nothing to see")
    assert os.environ["MINE"] == "1" and trainer_state.global_step == 0 and factor == 2
    log_metric("a", 1.0)
    log_extra("b", solution)
    return [None if ids is None else float(len(ids)) for ids in completion_ids]
"""
ROW = {"prompt": [{"role": "user", "content": "2+2=?"}], "solution": "4"}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tried.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "tried.py"


def tried(name: str, *more: str, row: dict[str, Any] = ROW, in_plain_text: bool = False) -> tuple[str, ...]:
    return rehearsal.check(asked(f"rewards.mine._target_=tried.{name}", *more), row, in_plain_text=in_plain_text)


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("deep", 6, "raised ValueError("),
        ("short", 7, "returned 1 values for 8 completions"),
        ("words", 9, "returned 'good', not a number or None"),
        ("judge", 12, "raised ConnectionError('no judge')"),
    ],
)
def test_file_and_line_of_what_is_wrong(name: str, line: int, reason: str, module: Path) -> None:
    with pytest.raises(BadReward) as refused:
        tried(name)
    assert str(refused.value).startswith(f"rewards.mine: {module}, line {line}: {reason}")
    assert "rehearse=false" in str(refused.value)
    assert tried(name, "rehearse=false") == ()


@pytest.mark.usefixtures("module")
def test_one_that_ends_its_process() -> None:
    with pytest.raises(BadReward, match="mine: ended the process, exit code 0"):
        tried("quits")


@pytest.mark.usefixtures("module")
def test_rewards_that_work() -> None:
    assert tried("good", "rewards.mine.factor=2", "vllm.env.MINE=1") == ()
    assert tried("texts", row={"prompt": "2+2=?"}, in_plain_text=True) == ()


@pytest.mark.usefixtures("module")
def test_one_that_takes_long_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "PATIENCE_S", 1.0)
    (note,) = tried("hangs")
    assert note == "mine: no reward within 1 s, so none was tried before the start"


def test_shipped_rewards_are_tried_on_the_users_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.sys, "executable", "/nonexistent")
    assert rehearsal.check(asked(), ROW, in_plain_text=False) == ()
    with pytest.raises(FileNotFoundError):
        rehearsal.check(asked("data=jsonl", "data.path=x.jsonl"), ROW, in_plain_text=False)


def test_nothing_is_started_or_written(module: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(module.parent), prepend=":")
    ended = cli("rewards.mine._target_=tried.deep", f"runs_dir={runs}")
    assert ended.returncode == 2
    assert f"error: bad_reward: rewards.mine: {module}, line 6" in ended.stderr
    assert not runs.exists()
