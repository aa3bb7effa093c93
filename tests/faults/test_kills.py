"""Every process of a run is killed in every way at every kind of moment; then nothing is left, and the run goes on."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import SMALL_CACHE, cli, running
from tests.faults.wreck import SAVE, STEPS, Blow, expect_nothing_left, expect_whole, strike

BRIEF = [f"grpo.max_steps={STEPS}", f"grpo.save_steps={SAVE}", "eval.problems=32", "grpo.generation_batch_size=32"]
LIMITS = ["timeouts.startup=400", "timeouts.step=150", "timeouts.sync=90"]
RANKS = [*BRIEF, *LIMITS, "trainer_gpus=2"]
SERVER = [*RANKS, "vllm=server", SMALL_CACHE]

KILL, TERM, INT, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP
WAYS = ((KILL,), (TERM,), (INT,), (STOP, KILL))
MOMENTS = ("startup", "startup", "before", "sync", "step", "step", "generate", "checkpoint", "checkpoint", "after")
VICTIMS = ("conductor", "rank0", "rank1", "server", "engine")
MATRIX = [
    Blow(victim, way, moment, number) for victim in VICTIMS for way in WAYS for number, moment in enumerate(MOMENTS)
]
CLASSES = {"rank0": "killed", "rank1": "killed", "server": "server_died", "engine": "server_died"}

SELECTED = [Blow("conductor", (KILL,), "after", 9), Blow("rank1", (TERM,), "step", 5)]
SELECTED_WITH_VLLM = [Blow("engine", (STOP, KILL), "sync", 3)]
"""What `make test` does of it, the first without vLLM."""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and children inherit that."""
    before = signal.signal(INT, signal.default_int_handler)
    yield
    signal.signal(INT, before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody strikes, without vLLM, whose completions would depend on its scheduling."""
    runs = tmp_path_factory.mktemp("straight")
    ended = cli(*RANKS, f"runs_dir={runs}", "name=one", timeout_s=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    expect_whole(Run(runs / "one"))
    return Run(runs / "one")


def struck(blow: Blow, asked: list[str], runs: Path) -> Run:
    """A run that the blow ended as it should, and that went on to its end."""
    run = Run(runs / "one")
    with running(*asked, f"runs_dir={runs}", "name=one") as process:
        held = strike(run, blow, process, patience_s=600)
        shown, _ = process.communicate(timeout=200)
    expect_nothing_left(run, held)
    expect_end(run, blow, process.returncode, shown)
    resumed = cli(*asked, f"runs_dir={runs}", "name=one", "resume=true", timeout_s=900)
    assert resumed.returncode == 0, f"{blow}: " + resumed.stdout + resumed.stderr + run.worker_log.read_text()[-3000:]
    expect_whole(run)
    expect_nothing_left(run, held)
    return run


def expect_end(run: Run, blow: Blow, code: int, shown: str) -> None:
    """Failed with its class; interrupted, where that was the conductor's own end; or finished, where it was late or
    the victim deaf, as vLLM is to a signal while it starts."""
    result: dict[str, Any] = store.read_json(run.result) or {}
    last = blow.signals[-1]
    own = re.search(r"^Traceback", shown, re.MULTILINE)  # not one in the indented tail of a log
    assert not own or blow.moment == "startup", f"{blow}: {shown}"
    if result.get("status") == "finished":
        served = blow.victim in ("server", "engine")
        deaf = served and blow.moment == "startup" and last != KILL
        in_last_step = blow.moment in ("step", "generate") and last in (TERM, INT)  # asked to stop after it
        late = blow.moment == "after" or (blow.moment == "checkpoint" and not served)
        late = late or (blow.victim == "conductor" and in_last_step)
        assert deaf or late, f"{blow}: {shown}"
        return
    if blow.victim == "conductor":
        assert code in (-last, 128 + last), f"{blow}: {code} {shown}"
        assert not result, f"{blow}: interrupted is a run without a result"
    else:
        assert code == 1, f"{blow}: {shown}"
        assert result["status"] == "failed"
        assert result["failure"]["class"] == CLASSES[blow.victim], f"{blow}: {shown}"


def lessons(run: Run) -> tuple[Any, ...]:
    rows = [(row["step"], row["loss"], row["reward"], row["grad_norm"]) for row in run.rows()]
    return rows, store.read_json(run.evaluation("before")), store.read_json(run.evaluation("after"))


@pytest.mark.slow
@pytest.mark.parametrize("blow", SELECTED, ids=str)
def test_killed_without_vllm(blow: Blow, runs: Path, straight: Run) -> None:
    """And resumed: equal to the last digit to the run that nobody struck."""
    assert lessons(struck(blow, RANKS, runs)) == lessons(straight)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("blow", SELECTED_WITH_VLLM, ids=str)
def test_killed_with_vllm(blow: Blow, runs: Path) -> None:
    struck(blow, [*SERVER, "trainer_gpus=1"], runs)


@pytest.mark.vllm
@pytest.mark.nightly
@pytest.mark.parametrize("blow", MATRIX, ids=str)
def test_the_whole_matrix(blow: Blow, runs: Path) -> None:
    struck(blow, SERVER, runs)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "blow",
    [blow for blow in MATRIX if blow.victim in ("conductor", "rank0", "rank1") and blow.moment != "sync"],
    ids=str,
)
def test_the_matrix_without_vllm(blow: Blow, runs: Path, straight: Run) -> None:
    assert lessons(struck(blow, RANKS, runs)) == lessons(straight)
