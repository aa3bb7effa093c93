"""`grpo-lab` as one command, and what <TAB> completes in a shell."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_lab import __version__
from grpo_lab.__main__ import COMMANDS
from tests.conftest import ROOT, cli

TAB_S = 60.0
"""How long completions may take on a busy machine."""


@pytest.fixture
def on_path(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell whose `grpo-lab` completes as ours, and says what else it is asked to do."""
    script = tmp_path / "bin" / "grpo-lab"
    script.parent.mkdir()
    ours = f'[ "$1" != completion ] || exec "{sys.executable}" -m grpo_lab "$@"'
    script.write_text(f'#!/bin/sh\n{ours}\necho "RAN $*."\n')
    script.chmod(0o755)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    path = f"{script.parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb", "HOME": str(tmp_path)}


def grpo_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "grpo_lab", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_without_arguments_it_lists_the_commands() -> None:
    shown = grpo_lab()
    assert shown.returncode == 0
    assert all(f"\n  {name} " in shown.stdout for name in (*COMMANDS, "completion"))
    assert grpo_lab("--help").stdout == shown.stdout
    assert grpo_lab("--version").stdout == f"grpo-lab {__version__}\n"


def test_a_wrong_command_is_refused_with_the_nearest() -> None:
    refused = grpo_lab("trian", "model=tiny")
    assert (refused.returncode, refused.stderr) == (2, "error: trian: no such command; did you mean 'train'?\n")


def test_it_runs_the_module_of_the_command() -> None:
    assert grpo_lab("train", "seed=3", "--cfg", "job").stdout == cli("seed=3", "--cfg", "job").stdout
    assert grpo_lab("train", "modle=tiny").returncode == 2
    for name in COMMANDS:
        assert name in grpo_lab(name, "--help").stdout


def test_only_the_command_asked_for_is_imported() -> None:
    names = "{name for name in sys.modules if name.startswith('grpo_lab')}"
    script = f"import sys, grpo_lab.__main__; print(*{names})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert set(loaded.split()) == {"grpo_lab", "grpo_lab.__main__", "grpo_lab.config", "grpo_lab.config.errors"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_in_a_terminal(shell: str, on_path: dict[str, str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    quiet = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"]}[shell]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe(shell, [shell, *quiet, "-i"], on_path)
    try:
        os.write(terminal, f'eval "$(grpo-lab completion {shell})"; echo READY""NOW\n'.encode())
        _read(terminal, "READYNOW")
        os.write(terminal, b"grpo-lab tra\t vllm=serv\t grpo.max_st\t5\n")
        assert "RAN train vllm=server grpo.max_steps=5." in _read(terminal, "RAN ")
    finally:
        os.close(terminal)  # hangs the shell up
        os.waitpid(child, 0)


def _read(terminal: int, until: str) -> str:
    """What the shell shows, up to the end of the line with the text; gives up after TAB_S."""
    shown, end = "", time.monotonic() + TAB_S
    while "\n" not in shown.partition(until)[2] and (left := end - time.monotonic()) > 0:
        if select.select([terminal], [], [], left)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


COMPLETED = [
    ("grpo-lab tr", "train"),
    ("grpo-lab train vllm=", "colocate colocate_sleep off server"),
    ("grpo-lab train vllm=ser", "server"),
    ("grpo-lab train grpo.max_s", "grpo.max_steps="),
    ("grpo-lab bench --multirun seed=0,1 model=qwen2.5-math-", "qwen2.5-math-1.5b qwen2.5-math-72b qwen2.5-math-7b"),
    ("grpo-lab evaluate ru", "runs/ runs_dir="),
    ("grpo-lab trian vllm=", ""),
    ("grpo-lab report ru", ""),
]


@pytest.mark.parametrize(("line", "expected"), COMPLETED, ids=[line for line, _ in COMPLETED])
def test_bash_completes(line: str, expected: str, on_path: dict[str, str], tmp_path: Path) -> None:
    script = f"""
        eval "$(grpo-lab completion bash)" && complete -p grpo-lab >/dev/null || exit 1
        COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:' COMP_LINE='{line}' COMP_POINT={len(line)}
        _grpo_lab
        printf '%s\\n' "${{COMPREPLY[@]}}" | sort -u
    """
    ended = subprocess.run(
        ["bash", "--norc", "-c", script], env={**on_path, "LC_ALL": "C"}, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == expected.split()


def test_a_key_in_the_middle_of_the_line_is_completed_up_to_the_cursor(on_path: dict[str, str]) -> None:
    script = 'eval "$(grpo-lab completion bash)"; COMP_LINE="grpo-lab train vll seed=1" COMP_POINT=18 _grpo_lab'
    ended = subprocess.run(
        ["bash", "--norc", "-c", f'{script}; echo "${{COMPREPLY[@]}}"'], env=on_path, capture_output=True, text=True
    )
    assert "vllm=" in ended.stdout.split() or "vllm." in ended.stdout.split()
