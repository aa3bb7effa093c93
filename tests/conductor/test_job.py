"""The course that all jobs share: interrupted before it starts, planned alike in a sweep, recorded with its commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.config_loader import ConfigLoader

from grpo_lab.conductor.provenance import git_commit
from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.sweep.points import need_of
from tests.conftest import ROOT
from tests.planner.test_plan import ON_CPU

COMMANDS = ("train", "bench", "evaluate", "plan", "report", "publish")
INTERRUPTED = """
import os, signal, sys
from grpo_lab.conductor import {room}
{room}.read_machine = lambda *given: os.kill(os.getpid(), signal.SIGINT)
from grpo_lab.{command} import main
main()
"""


@pytest.mark.parametrize(("command", "room"), [("train", "run"), ("bench", "run"), ("evaluate", "evaluate")])
def test_ctrl_c_before_anything_runs_is_no_traceback(command: str, room: str) -> None:
    argv = [sys.executable, "-c", INTERRUPTED.format(room=room, command=command), "model=tiny", "dry_run=true"]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 130
    assert ended.stderr == ""


def test_a_command_parses_calls_and_exits() -> None:
    for name in COMMANDS:
        assert len((ROOT / "grpo_lab" / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["vllm=server", "vllm.url=http://8.8.8.8:8000"], "vllm.expose=true"),
        (["tracker.kind=wandbb"], "did you mean 'wandb'?"),
        (["rewards.mine._target_=nowhere.at_all"], "no module 'nowhere'"),
        (["objective=acuracy_after"], "did you mean 'accuracy_after'?"),
    ],
)
def test_a_point_of_a_sweep_is_refused_for_what_a_run_is(
    loader: ConfigLoader, overrides: list[str], message: str
) -> None:
    with pytest.raises(RequestError, match=message.replace("?", r"\?")):
        need_of(configuration.from_hydra(compose("config", overrides)), ON_CPU)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def clone(folder: Path, name: str) -> Path:
    (folder / "conf").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f"[project]\nname = '{name}'\n")
    return folder


def test_the_commit_is_that_of_the_harness_itself(tmp_path: Path) -> None:
    own = clone(tmp_path / "own", "grpo-lab")
    git(own, "init")
    git(own, "add", ".")
    git(own, "commit", "-m", "first")
    commit = git(own, "rev-parse", "HEAD").strip()
    assert git_commit(own) == commit
    (own / "pyproject.toml").write_text("[project]\nname = 'grpo-lab'\nversion = '2'\n")
    assert git_commit(own) == f"{commit}+changes"


def test_the_commit_of_another_project_around_it_is_not_recorded(tmp_path: Path) -> None:
    around = clone(tmp_path / "around", "thesis")
    inside, wheel = clone(around / "vendored", "grpo-lab"), around / "venv" / "grpo_lab"
    (wheel / "conf").mkdir(parents=True)
    git(around, "init")
    git(around, "add", ".")
    git(around, "commit", "-m", "first")
    assert git_commit(inside) is None
    assert git_commit(wheel) is None
    assert git_commit(around) is None
    assert git_commit(tmp_path) is None
