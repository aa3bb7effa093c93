"""What the tests share: the command line as a user runs it, and short runs of the tiny policy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grpo_lab.store import Run

ROOT = Path(__file__).resolve().parents[1]
GSM8K = Path(os.environ.get("GRPO_LAB_GSM8K", ROOT.parent / "shared" / "data" / "gsm8k"))

SHORT = ["grpo.max_steps=4", "eval.problems=32", "grpo.generation_batch_size=32", "tracker=none"]
"""Overrides for a run of seconds that still trains."""


def cli(
    *overrides: str, module: str = "grpo_lab.train", cwd: Path | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python -m <module> <overrides>` with no terminal; stdout and stderr apart."""
    return subprocess.run(
        [sys.executable, "-m", module, *overrides],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def running(*overrides: str) -> Iterator[subprocess.Popen[str]]:
    """The same command in the background; killed at the end, whatever the test found."""
    argv = [sys.executable, "-m", "grpo_lab.train", *overrides]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_step(run: Run, step: int, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in run.rows()):
        assert time.monotonic() < deadline, f"no step {step} within {timeout_s} s"
        time.sleep(0.2)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"
