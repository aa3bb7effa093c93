"""`grpo-lab show`: which samples, in which order, and that a terminal never obeys them."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from rich.cells import cell_len
from rich.console import Console

from grpo_lab import show as command
from grpo_lab.conductor import keys, samples
from grpo_lab.conductor.show import show
from grpo_lab.config.errors import RequestError
from grpo_lab.store import completions
from grpo_lab.store.folder import Run
from tests.conftest import ROOT

HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\x9b2J\u202egpj.exe\u2066 \x00\u200b\u2028 [bold]tag[/] </script> e"
    + "\u0301" * 50
)
CONFIG = "rewards: {accuracy: {weight: 1.0}, format: {weight: 0.2}}\ngrpo: {max_completion_length: 8}\n"


def record(run: Run, step: int, rows: list[tuple[str, str, float, float]], *, tokens: int = 5) -> Path:
    """A step's file as TRL writes it: prompt, completion, accuracy, format."""
    run.step_completions.mkdir(parents=True, exist_ok=True)
    run.config.write_text(CONFIG)
    names = ("prompt", "completion", "accuracy", "format")
    columns: dict[str, list[Any]] = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        columns[name] = [[{"role": role, "content": text}] for text in columns[name]]
    several = {"step": [step] * len(rows), **columns, "completion_tokens": [tokens] * len(rows)}
    table = pyarrow.table({**several, "advantage": [0.5] * len(rows)})
    parquet.write_table(table, file := run.step_completions / f"completions_{step:05}.parquet")
    return file


def shown(run: Run, *words: str, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    show(console, run, command.parser().parse_args([str(run.folder), *words]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "one")
    record(run, 1, [("1+1=?", "three", 0, 0), ("1+1=?", "boxed three", 0, 1), ("2+2=?", "four", 1, 0)])
    record(run, 2, [("2+2=?", "four in a box", 1, 1), ("3+3=?", "five", 0, 0)], tokens=8)
    return run


def test_the_last_step_is_shown_from_the_lowest_reward_to_the_highest(run: Run) -> None:
    text = shown(run)
    assert text.index("five") < text.index("four in a box")
    assert "three" not in text
    assert "reward 1.2  step 2 | problem 2 | advantage +0.50 | 8 tokens | cut off" in text
    assert "2 of 5 completions" in text


def test_rewards_rank_by_their_weights(run: Run) -> None:
    assert "reward 1.2 " in shown(run, "--best", "1")
    worst = shown(run, "--worst", "3")
    assert worst.index("three") < worst.index("boxed three")
    assert "four" not in worst


def test_a_problem_is_followed_over_the_steps_and_a_step_can_be_chosen(run: Run) -> None:
    assert [line.split(" | ")[0] for line in shown(run, "--problem", "2").splitlines() if "problem 2" in line] == [
        "reward 1  step 1",
        "reward 1.2  step 2",
    ]
    assert "five" not in shown(run, "--step", "1")
    assert "reward 0.2" in shown(run, "--worst", "2", "--step", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "9"], "steps 1 to 2"),
        (["--problem", "9"], "problems 1 to 3"),
        (["--changed"], "no answers to held-out problems before"),
        (["--problem", "1", "--step", "2"], "leave out --step"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(run: Run, words: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        shown(run, *words)


def test_a_run_without_completions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no completions"):
        shown(Run(tmp_path))
    with pytest.raises(RequestError, match="no such folder"):
        shown(Run(tmp_path / "none"))


def test_a_folder_of_runs_is_refused_with_their_names(run: Run) -> None:
    with pytest.raises(RequestError, match=r"is no run; name one: .*/one$"):
        shown(Run(run.folder.parent))


def test_changed_shows_what_was_unlearned_and_then_what_was_learned(run: Run) -> None:
    completions.save_answers(run, "before", ["a?", "b?", "c?"], ["a1", "b1", "c1"], [1, 0, None])
    completions.save_answers(run, "after", ["a?", "b?", "c?"], ["a2", "b2", "c2"], [0, 1, 1])
    text = shown(run, "--changed")
    assert text.index("held-out problem 1: right before, wrong after") < text.index("problem 2: wrong before, right")
    assert "before: a1" in text
    assert "problem 3" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_obeys_no_completion(tmp_path: Path, width: int) -> None:
    run = Run(tmp_path)
    record(run, 1, [(HOSTILE, HOSTILE * 3, 0, 0), ("שלום עולם مرحبا", "\u0301 combining first", 0, 0)])
    text = shown(run, width=width)
    assert not {"\x1b", "\x07", "\r", "\x9b", "\x00", "\u202e", "\u2066", "\u200b", "\u2028"} & set(text)
    assert "\\x1b]0;owned" in text
    assert "[bold]tag[/]" in text.replace("\n  ", "")
    assert "\u0301" * 5 not in text
    assert max(cell_len(line) for line in text.splitlines()[:-1]) <= width


def test_a_prompt_of_a_megabyte_is_cut_unless_asked_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    record(run, 1, [("a" * 500_000 + "b" * 500_000, "short", 0, 0)])
    text = shown(run)
    assert len(text) < 2_000
    assert "[... of 1,000,000 characters; --full shows all ...]" in text
    assert shown(run, "--full").count("b") > 499_999


def test_a_half_written_step_is_left_out_and_a_torn_whole_is_refused(run: Run) -> None:
    file = record(run, 3, [("4+4=?", "eight", 1, 1)])
    file.write_bytes(file.read_bytes()[:-20])
    assert "four in a box" in shown(run)
    completions.gather(run)
    run.result.write_text("{}")
    assert "five" in shown(run)
    run.completions.write_bytes(run.completions.read_bytes()[:-20])
    with pytest.raises(RequestError, match=r"completions\.parquet: cannot be read"):
        shown(run)


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    run = Run(tmp_path)
    record(run, 1, [(f"{number % 999}+1=?", f"answer {number}", number / 1e5, 0) for number in range(100_000)])
    completions.gather(run)
    started = time.process_time()
    assert "answer 99999" in shown(run, "--best", "1")
    assert time.process_time() - started < 15


def test_follow_shows_each_step_until_the_run_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "EVERY_S", 0.01)

    def go_on() -> None:
        time.sleep(0.1)
        record(run, 3, [("4+4=?", "eight", 1, 1)])
        run.result.write_text("{}")

    thread = threading.Thread(target=go_on)
    thread.start()
    text = shown(run, "--follow")
    thread.join()
    assert text.index("five") < text.index("eight")


def test_a_reader_that_ends_ends_it(run: Run) -> None:
    record(run, 2, [("2+2=?", "x" * 5_000, 1, 1)] * 200)
    argv = f"{sys.executable} -m grpo_lab show {run.folder} --best 200 --full | head -1"
    ended = subprocess.run(argv, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.startswith("reward 1.2")
    assert ended.stderr == ""


def test_a_key_is_read_from_a_terminal_without_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    main, terminal = pty.openpty()
    saved = os.dup(0)
    os.dup2(terminal, 0)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())  # pytest's own terminal is another
    try:
        with keys.Keys() as reading:
            assert reading.active
            os.write(main, b"s")
            time.sleep(0.05)
            assert (reading.pressed(), reading.pressed()) == ("s", "")
        monkeypatch.undo()
        with keys.Keys() as reading:  # a terminal of others, or in the background: not touched
            os.write(main, b"s")
            assert (reading.active, reading.pressed()) == (False, "")
    finally:
        os.dup2(saved, 0)
        for descriptor in (main, terminal, saved):
            os.close(descriptor)
