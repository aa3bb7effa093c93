"""How a run ends: its result before all that adorns it, and never finished with fewer steps than were asked for."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from grpo_lab.conductor import console as terminal
from grpo_lab.conductor import publishing
from grpo_lab.conductor.adornment import adorn
from grpo_lab.config import output
from grpo_lab.config.jobs import PublishConfig
from grpo_lab.config.schema import Config, ModelConfig
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from grpo_lab.store.records import Failure
from grpo_lab.sweep import board
from grpo_lab.sweep.points import Point
from grpo_lab.sweep.track import Track, state_on_disk
from tests.conftest import ROOT, SHORT, cli, wait_for_step

BRIEF = [*SHORT, "grpo.max_steps=2", "eval.problems=16"]


@pytest.fixture(scope="module")
def without_picture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, subprocess.CompletedProcess[str]]:
    """A run whose matplotlib raises."""
    broken, runs = tmp_path_factory.mktemp("broken"), tmp_path_factory.mktemp("runs")
    (broken / "matplotlib").mkdir()
    (broken / "matplotlib" / "__init__.py").write_text("rc_context = None\n")
    (broken / "matplotlib" / "figure.py").write_text("raise RuntimeError('no fonts here')\n")
    argv = [sys.executable, "-m", "grpo_lab.train", *BRIEF, f"runs_dir={runs}", "name=one"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Run(runs / "one"), ended


def test_a_picture_that_raises_leaves_the_run_finished(
    without_picture: tuple[Run, subprocess.CompletedProcess[str]],
) -> None:
    run, ended = without_picture
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert store.read_json(run.result)["status"] == "finished"
    assert "no picture\n  RuntimeError: no fonts here\n" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not run.reward_curve.exists()


@pytest.mark.parametrize("raising", ["card", "upload"])
def test_a_card_and_an_upload_that_raise_leave_the_run_finished(
    without_picture: tuple[Run, subprocess.CompletedProcess[str]],
    raising: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("of one's own making")

    run, _ = without_picture
    before = run.result.read_bytes()
    monkeypatch.setattr(publishing, raising, fails)
    publishing.once(run, PublishConfig(repo_id="me/sums"), Console(width=200))
    assert run.result.read_bytes() == before
    shown = capsys.readouterr().out
    assert "not published: me/sums\n  ZeroDivisionError: of one's own making\n  again: python -m" in shown


def rows(file: Path, number: int) -> str:
    file.write_text("".join(json.dumps({"prompt": f"{n}+1=?", "solution": str(n + 1)}) + "\n" for n in range(number)))
    return f"data.path={file}"


def test_too_few_rows_for_one_step_are_refused_with_the_rows_needed(tmp_path: Path) -> None:
    data = ["data=jsonl", rows(tmp_path / "four.jsonl", 4), "data.held_out=0.25"]
    ended = cli(*BRIEF, *data, f"runs_dir={tmp_path}", "name=one")
    assert ended.returncode == 2
    assert "gives 3 training rows, and one step takes 4 (grpo.generation_batch_size=32" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "one").exists()


def test_too_few_rows_after_long_prompts_are_dropped_are_bad_data(tmp_path: Path) -> None:
    data = ["data.train_size=64", "data.max_prompt_tokens=9"]
    ended = cli(*BRIEF, *data, f"runs_dir={tmp_path}", "name=one")
    failure = store.read_json(Run(tmp_path / "one").result)["failure"]
    assert ended.returncode == 1
    assert failure["class"] == "bad_data"


def test_a_run_that_ends_early_is_not_finished(tmp_path: Path) -> None:
    """Its own reward asks it to stop, and nobody else knows of it."""
    stop = ["rewards.mine._target_=tests.faults.rewards.stopping", f"rewards.mine.folder={tmp_path / 'one'}"]
    ended = cli(*BRIEF, *stop, f"runs_dir={tmp_path}", "name=one")
    result = store.read_json(Run(tmp_path / "one").result)
    assert ended.returncode == 1
    assert (result["status"], result["steps"]) == ("failed", 1)
    assert "ended early, without saying why (training 1/2)" in result["failure"]["message"]


def test_a_sweep_does_not_skip_a_point_that_trained_fewer_steps_than_asked(tmp_path: Path) -> None:
    """Version 0.1 called it finished."""
    config = Config(model=ModelConfig(name="m", path="p"), grpo={"max_steps": 4})
    point = Point(0, "one", (), tmp_path, config)
    for steps, state in ((0, "waiting"), (3, "waiting"), (4, "finished")):
        store.write_json(point.run.result, {"status": "finished", "failure": None, "steps": steps})
        assert state_on_disk(point) == (state, None)


STRANGE = "r[/q] [bold]x[/bold] :x:"


def test_names_and_messages_from_outside_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console, run = terminal.screen(), Run(tmp_path / STRANGE)
    console.width = 400
    terminal.banner(console, run.folder, 0, [("model", STRANGE)], [STRANGE])
    progress = terminal.Progress(console, run)
    progress.show(f"vLLM server | {STRANGE}")
    progress.say(STRANGE)
    terminal.failure(console, Failure(STRANGE, STRANGE, STRANGE))
    adorn(console, STRANGE, lambda: 1 / 0, STRANGE)
    track = Track(Point(0, STRANGE, (), tmp_path, None), tmp_path / STRANGE)
    track.failure = Failure("error", STRANGE)
    board.summary(console, [track], run.folder)
    console.print(board.Board(console).table([track]))
    assert capsys.readouterr().out.count(STRANGE) >= 12


def test_every_console_is_one_without_markup() -> None:
    makers = [file for file in (ROOT / "grpo_lab").rglob("*.py") if " Console(" in file.read_text()]
    assert makers == [ROOT / "grpo_lab" / "conductor" / "console.py"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_that_lacks_letters_shows_escapes(encoding: str, tmp_path: Path) -> None:
    asked = [*SHORT, "eval.enabled=false", f"runs_dir={tmp_path}", "name='été Ω'"]
    argv = [sys.executable, "-m", "grpo_lab.train", *asked]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shown = ended.stdout.decode(encoding)
    assert r"t\xe9 \u03a9" in shown if encoding == "ascii" else r"été \u03a9" in shown
    assert "% ##" in shown  # the bars of the summary
    assert store.read_json(Run(tmp_path / "été Ω").result)["status"] == "finished"


def test_a_run_whose_reader_ends_goes_on_and_says_so(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "grpo_lab.train", *BRIEF, f"runs_dir={tmp_path}", "name=one"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        words = process.stderr.read()
    assert process.returncode == 0
    assert words == f"{output.READER_ENDED}\n"
    assert store.read_json(Run(tmp_path / "one").result)["status"] == "finished"


@pytest.mark.parametrize(("before", "code"), [(signal.SIG_DFL, 129), (signal.SIG_IGN, 0)])
def test_a_terminal_that_goes(before: signal.Handlers, code: int, tmp_path: Path) -> None:
    """Its command is stopped as by SIGTERM, or goes on where SIGHUP is ignored, without a terminal to write to."""
    run, asked = Run(tmp_path / "one"), [*SHORT, "grpo.max_steps=20", "eval.enabled=false", f"runs_dir={tmp_path}"]
    pid, terminal_end = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, before)
        os.execv(sys.executable, [sys.executable, "-m", "grpo_lab.train", *asked, "name=one"])
    wait_for_step(run, 1)
    os.close(terminal_end)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert run.last_checkpoint() is not None
    assert run.result.exists() == (code == 0)
