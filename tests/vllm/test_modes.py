"""The harness with vLLM's CPU build: the same commands as on GPUs, real engines, weights that arrive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest

from grpo_lab import store
from grpo_lab.store import Run
from tests.conftest import ROOT, SHORT, cli

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

LOGP_DIFFERENCE = 1e-3
"""Nats a token, float32 on both sides."""

LAYOUTS = {
    "colocate": ["vllm=colocate"],
    "colocate-tp2": ["vllm=colocate", "vllm.tp=2"],
    "server": ["vllm=server"],
    "server-tp2": ["vllm=server", "vllm.tp=2"],
    "server-dp2": ["vllm=server", "vllm.dp=2"],
}
LEARNING = ["grpo.max_steps=10", "eval.problems=400", "tracker=none", "vllm.check_sync_every=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs that learn, by layout and seed; each is made once."""
    runs = tmp_path_factory.mktemp("runs")

    def train(layout: str, seed: int = 1, turn: int = 0) -> Run:
        run = Run(runs / f"{layout}-{seed}-{turn}")
        if not run.result.exists():
            asked = [*LEARNING, *LAYOUTS[layout], f"seed={seed}", f"runs_dir={runs}", f"name={run.folder.name}"]
            ended = cli(*asked, timeout_s=600)
            assert ended.returncode == 0, ended.stdout + ended.stderr + tail(run)
        return run

    return train


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_learns_and_its_weights_arrive(layout: str, trained: Callable[..., Run]) -> None:
    run = trained(layout)
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 11))
    for row in rows:
        assert row["sampling/sampling_logp_difference/mean"] < LOGP_DIFFERENCE
        assert row["time_s/generate"] > 0
    assert all(row["time_s/sync"] > 0 for row in rows[1:])  # before the first step the evaluation had synced
    gain = store.read_json(run.result)["metrics"]["accuracy_gain"]
    assert gain["ci95"][0] > 0
    assert answers_differ(run)
    assert not leftovers(run.folder)


@pytest.mark.parametrize("layout", ["colocate", "server"])
def test_two_seeds_differ_and_one_seed_repeats(layout: str, trained: Callable[..., Run]) -> None:
    first, again, other = (completions(trained(layout, *which)) for which in ((1, 0), (1, 1), (2, 0)))
    assert first == again
    assert first != other


def test_wrong_weights_end_the_run(runs: Path) -> None:
    """vLLM computes something else than the trainer: told to round to bfloat16, held to a tight limit."""
    ended = cli(
        *SHORT,
        "vllm=colocate",
        "vllm.engine.dtype=bfloat16",
        "vllm.max_logp_difference=1e-4",
        f"runs_dir={runs}",
        "name=stale",
        timeout_s=600,
    )
    failure = store.read_json(Run(runs / "stale").result)["failure"]
    assert ended.returncode == 1
    assert "stale or wrong" in failure["message"]


def test_a_killed_conductor_takes_the_server_with_it(runs: Path) -> None:
    run = Run(runs / "orphan")
    argv = [sys.executable, "-m", "grpo_lab.train", *SHORT, "vllm=server", f"runs_dir={runs}", "name=orphan"]
    process = subprocess.Popen(
        [*argv, "grpo.max_steps=2000", "eval.enabled=false"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not run.rows():
        assert time.monotonic() < deadline, tail(run)
        time.sleep(0.5)
    assert leftovers(run.folder)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 15
    while leftovers(run.folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not leftovers(run.folder)


def test_a_server_that_dies_ends_the_run_with_its_class(runs: Path) -> None:
    run = Run(runs / "dies")
    argv = [sys.executable, "-m", "grpo_lab.train", *SHORT, "vllm=server", f"runs_dir={runs}", "name=dies"]
    process = subprocess.Popen(
        [*argv, "grpo.max_steps=2000", "eval.enabled=false"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not run.rows():
        assert time.monotonic() < deadline, tail(run)
        time.sleep(0.5)
    engine = next(one for one in leftovers(run.folder) if "EngineCore" in " ".join(one.cmdline()))
    engine.kill()
    assert process.wait(timeout=60) == 1
    assert store.read_json(run.result)["failure"]["class"] == "server_died"
    assert not leftovers(run.folder)


def completions(run: Run) -> str:
    """Of the first step: later ones also depend on how sums are rounded."""
    rows = pyarrow.parquet.read_table(run.completions).to_pylist()
    return json.dumps([row["completion"] for row in rows if row["step"] == 1])


def answers_differ(run: Run) -> bool:
    """Whether the completions of one prompt differ among themselves."""
    table = pyarrow.parquet.read_table(run.completions).to_pylist()
    prompt = table[0]["prompt"]
    texts = {row["completion"][0]["content"] for row in table if row["prompt"] == prompt and row["step"] == 1}
    return len(texts) > 1


def leftovers(folder: Path) -> list[psutil.Process]:
    """Living processes of the run: they carry its folder on their command line or in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            alive = process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if alive and any(str(folder) in word for word in words):
            found.append(process)
    return found


def tail(run: Run) -> str:
    logs = [log for log in (run.server_log, run.worker_log) if log.is_file()]
    return "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
