"""The README's commands, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT, cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.partition("#")[0])[3:]
    for line in re.findall(r"^python -m grpo_lab\.train.*$", README, re.MULTILINE)
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("overrides", COMMANDS, ids=" ".join)
def test_a_command_plans(overrides: list[str], tmp_path: Path) -> None:
    """With dry_run=true, since most need GPUs; the reward of the README is beside, in the working directory."""
    code = re.search(r"```python\n# my_rewards\.py\n(.*?)```", README, re.DOTALL)
    assert code is not None
    (tmp_path / "my_rewards.py").write_text(code[1])
    ended = cli(*overrides, "dry_run=true", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ("6 points" if "--multirun" in overrides else "grpo_lab.worker") in ended.stdout


def test_a_reward_of_ones_own_trains(tmp_path: Path) -> None:
    code = re.search(r"```python\n# my_rewards\.py\n(.*?)```", README, re.DOTALL)
    assert code is not None
    (tmp_path / "my_rewards.py").write_text(code[1])
    asked = ["rewards.short._target_=my_rewards.short", "rewards.short.longest=40", "grpo.max_steps=1"]
    ended = cli(*asked, "eval.enabled=false", "tracker=none", "name=mine", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"rewards/short/mean"' in (tmp_path / "runs" / "mine" / "metrics.jsonl").read_text()


def test_files_that_the_readme_links_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
