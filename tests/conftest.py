"""What the tests share: the command line as a user runs it, and short runs of the tiny policy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet
import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra

from grpo_lab.config import compose as configuration
from grpo_lab.config.places import CONF
from grpo_lab.machine.warden import SHARED_MEMORY, held_segments, parents
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run

ROOT = Path(__file__).resolve().parents[1]
GSM8K = Path(os.environ.get("GRPO_LAB_GSM8K", ROOT.parent / "shared" / "data" / "gsm8k"))

SHORT = ["grpo.max_steps=4", "eval.problems=32", "grpo.generation_batch_size=32", "tracker=none", "rehearse=false"]
"""Overrides for a run of seconds that still trains."""
SMALL_CACHE = f"vllm.engine.kv_cache_memory_bytes={2**27}"
"""With vLLM on a CPU, which takes two seconds to clear the usual GiB."""

LONG = (
    "vllm/test_modes.py",
    "sweep/test_sweeps.py",
    "vllm/test_weight_transfer.py",
    "conductor/test_run.py",
    "faults/test_kills.py",
    "faults/test_servers.py",
    "vllm/test_bench.py",
    "faults/test_disk.py",
    "sweep/test_search.py",
    "worker/test_eval_every.py",
    "faults/test_repeat.py",
)
"""Files of minutes, or of a minute in one test. Begun last, one of them would keep one worker busy while the other has
nothing left to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; `--no-loadscope-reorder` keeps it so with several workers."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


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
def running(*overrides: str, module: str = "grpo_lab.train") -> Iterator[subprocess.Popen[str]]:
    """The same command in the background; killed at the end, whatever the test found."""
    argv = [sys.executable, "-m", module, *overrides]
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


def first_completions(run: Run) -> list[object]:
    """Of the first step."""
    rows = pyarrow.parquet.read_table(run.completions).to_pylist()
    return [row["completion"] for row in rows if row["step"] == 1]


def ownerless() -> set[str]:
    """Files in /dev/shm that no living process holds: those of a test in the next worker are mostly held."""
    held = set().union(*(held_segments(pid) for pid in parents()))
    return {str(file) for file in Path(SHARED_MEMORY).iterdir()} - held


def assert_none_left(before: set[str], timeout_s: float = 300) -> None:
    """Whatever is ownerless now was so `before`, or goes: a semaphore that a process has only the name of goes with the
    test in the next worker that made it, a leak stays."""
    deadline, left = time.monotonic() + timeout_s, ownerless() - before
    while left and time.monotonic() < deadline:
        time.sleep(0.5)
        left &= ownerless()
    assert not left


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    """Hydra's, on our configurations, in this process."""
    configuration.register()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.config_loader


def failure_message(run: Run, ended: subprocess.CompletedProcess[str], kind: str) -> str:
    """Of a run that failed in this class, and said so in the terminal and in result.json."""
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert f"failed: {kind}" in ended.stdout
    failure = store.read_json(run.result)["failure"]
    assert failure["class"] == kind
    assert failure["message"] in ended.stdout
    return str(failure["message"])


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where random weights lie, with none of this machine's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"
