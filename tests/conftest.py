"""What the tests share: the command line as a user runs it, and short runs of the tiny policy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GSM8K = Path(os.environ.get("GRPO_LAB_GSM8K", ROOT.parent / "shared" / "data" / "gsm8k"))

SHORT = ["grpo.max_steps=4", "eval.problems=32", "grpo.generation_batch_size=32", "tracker=none"]
"""Overrides for a run of seconds that still trains."""

Cli = Callable[..., subprocess.CompletedProcess[str]]


def cli(*overrides: str, cwd: Path | None = None, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """`python -m grpo_lab.train <overrides>` with no terminal; stdout and stderr apart."""
    return subprocess.run(
        [sys.executable, "-m", "grpo_lab.train", *overrides],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"
