"""What stands still is ended by the watchdog: the clock of each limit, and processes of real runs that are stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from grpo_lab.conductor import watchdog
from grpo_lab.conductor.children import past_nccl
from grpo_lab.conductor.watchdog import Watchdog
from grpo_lab.config.schema import TimeoutsConfig
from grpo_lab.machine.gpus import Machine
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import ROOT, SHORT, running, wait_for_step
from tests.faults.test_servers import FAKE
from tests.faults.wreck import expect_nothing_left, find, segments
from tests.planner.test_plan import ON_CPU, planned, with_gpus

LIMITS = TimeoutsConfig(startup=100, step=20, sync=5)


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("phase", "doing", "limit", "said"),
    [
        (None, None, 100, "no progress for 101 s while the trainer starts (timeouts.startup=100)"),
        ("training", None, 20, "no progress for 21 s after step 3 of 9 (timeouts.step=20)"),
        ("training", "generate", 20, "21 s after step 3 of 9, waiting for completions (timeouts.step=20)"),
        ("training", "sync", 5, "6 s after step 3 of 9, sending the weights to vLLM (timeouts.sync=5)"),
        ("evaluating before", None, 20, "21 s evaluating before the training (timeouts.step=20)"),
    ],
)
def test_limits(phase: str | None, doing: str | None, limit: float, said: str, clock: Clock, tmp_path: Path) -> None:
    run = Run(tmp_path)
    if phase:
        store.write_json(run.progress, {"phase": phase, "done": 3, "total": 9, "doing": doing})
    dog = Watchdog(run, LIMITS)
    assert dog.overdue() is None
    clock.now += limit
    assert dog.overdue() is None
    clock.now += 1
    assert said in (dog.overdue() or "")


def test_a_step_is_one_wait_whatever_it_does_meanwhile(clock: Clock, tmp_path: Path) -> None:
    """A transfer has its own limit; beside it, what a step does now is no progress of the step."""
    run = Run(tmp_path)
    dog = Watchdog(run, LIMITS)
    for doing in (None, "generate", "sync", "generate", None):
        store.write_json(run.progress, {"phase": "training", "done": 3, "total": 9, "doing": doing})
        assert dog.overdue() is None
        clock.now += 4.5
    assert "timeouts.step" in (dog.overdue() or "")
    store.write_json(run.progress, {"phase": "training", "done": 4, "total": 9, "doing": None})
    assert dog.overdue() is None


@pytest.mark.parametrize(
    ("machine", "overrides", "message", "told"),
    [
        (with_gpus(2), ["vllm=server"], "no progress for 6 s after step 1 of 4, sending the weights to vLLM", True),
        (with_gpus(2), ["vllm=server"], "RuntimeError: NCCL error: unhandled system error", True),
        (with_gpus(2), ["vllm=server"], "no progress for 20 s after step 1 of 4, waiting for completions", False),
        (with_gpus(2), ["vllm=colocate"], "RuntimeError: NCCL error: unhandled system error", False),
        (ON_CPU, ["vllm=server"], "no progress for 6 s after step 1 of 4, sending the weights to vLLM", False),
    ],
)
def test_who_may_have_no_nccl_is_told_the_way_past_it(
    machine: Machine, overrides: list[str], message: str, told: bool
) -> None:
    assert ("vllm.weight_transfer=gloo" in past_nccl(planned(machine, *overrides), message)) == told


LIMITED = ["timeouts.startup=400", "timeouts.step=20", "timeouts.sync=20"]
STEADY = [*SHORT, "grpo.max_steps=2000", "eval.enabled=false", *LIMITED]
FAKED = [*STEADY, "vllm=server", "vllm.check_sync_every=0"]
REAL = [*STEADY, "vllm=server"]


@pytest.mark.parametrize(
    ("victim", "asked"),
    [
        ("rank0", STEADY),
        pytest.param("rank1", [*STEADY, "trainer_gpus=2"], marks=pytest.mark.nightly),
        pytest.param("server", REAL, marks=[pytest.mark.vllm, pytest.mark.nightly]),
        pytest.param("engine", REAL, marks=[pytest.mark.vllm, pytest.mark.nightly]),
        pytest.param("fake_vllm", FAKED, marks=[pytest.mark.vllm, pytest.mark.nightly]),
    ],
)
def test_a_stopped_process_ends_the_run(
    victim: str, asked: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{FAKE}:{ROOT}" if asked is FAKED else str(ROOT))
    run = Run(runs / "one")
    with running(*asked, f"runs_dir={runs}", "name=one") as process:
        wait_for_step(run, 1, timeout_s=600)
        stopped = find(run, victim, process)
        assert stopped is not None
        held = segments(run)
        stopped.send_signal(signal.SIGSTOP)
        shown, _ = process.communicate(timeout=120)
    expect_nothing_left(run, held)
    failure = store.read_json(run.result)["failure"]
    assert process.returncode == 1, shown
    assert failure["class"] == "timeout"
    assert "timeouts.step=20" in failure["message"] or "timeouts.sync" in failure["message"]
    assert "Traceback" not in shown
