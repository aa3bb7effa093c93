"""docs/extending.md, followed to the letter in a copy of the repository: an algorithm and a launcher. About 60 s."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
CODE = re.compile(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", re.DOTALL)
SHORT = ["algorithm=gmpo", "grpo.max_steps=2", "grpo.generation_batch_size=16", "data.train_size=64", "tracker=none"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the files of the page, none of which replaces another."""
    root = tmp_path_factory.mktemp("repository")
    for part in ("grpo_lab", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in CODE.findall(PAGE):
        assert not (root / name).exists()
        (root / name).write_text(content)
    return root


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grpo_lab.train", *words],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_page_names_an_algorithm_and_a_launcher_whole() -> None:
    assert [name for name, _ in CODE.findall(PAGE)] == [
        "conf/algorithm/gmpo.yaml",
        "grpo_lab/planner/algorithms/gmpo.py",
        "grpo_lab/worker/trainers/gmpo.py",
        "grpo_lab/sweep/launchers/in_turn.py",
        "hydra_plugins/in_turn.py",
    ]


def test_every_file_that_the_page_names_is_there() -> None:
    for name in re.findall(r"`((?:planner|worker|store|sweep|predictor|server|tests|hydra_plugins)/[\w/]+\.py)`", PAGE):
        if "NAME" not in name and "MODULE" not in name:
            assert (ROOT / name).is_file() or (ROOT / "grpo_lab" / name).is_file(), name


def test_the_algorithm_is_planned_and_refuses(copy: Path) -> None:
    planned = run(copy, *SHORT, "dry_run=true")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "algorithm gmpo" in planned.stdout
    refused = run(copy, *SHORT, "grpo.loss_type=dapo")
    assert refused.returncode == 2
    assert "algorithm=gmpo is a loss of its own" in refused.stderr
    unknown = run(copy, "algorithm.kind=ppo")
    assert "valid: async_grpo, gmpo, grpo, online_dpo, rloo" in unknown.stderr


def test_the_algorithm_trains_through_the_launcher(copy: Path, tmp_path: Path) -> None:
    ended = run(
        copy,
        "--multirun",
        "hydra/launcher=in_turn",
        *SHORT,
        "seed=0,1",
        "eval.problems=8",
        f"runs_dir={tmp_path}",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = [Run(path.parent) for path in sorted(tmp_path.rglob("result.json"))]
    assert len(runs) == 2
    for each in runs:
        result = store.read_json(each.result)
        assert (result["status"], result["algorithm"], result["metrics"]["accuracy_after"]["n"]) == (
            "finished",
            "gmpo",
            8,
        )
        assert all(math.isfinite(row["loss"]) for row in each.rows())
        assert each.rows()[1]["time_s/train"] > 0
