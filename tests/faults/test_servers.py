"""Whole runs whose vLLM server does wrong, before and after training has begun: a class, a reason, and an end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.machine.processes import carriers
from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import ROOT, SHORT, cli

FAKE = Path(__file__).with_name("fake_server")
LIMITS = ["timeouts.startup=300", "timeouts.step=60", "timeouts.sync=60"]
ASKED = [*SHORT, *LIMITS, "vllm=server", "vllm.check_sync_every=0", "eval.enabled=false"]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{FAKE}:{ROOT}")


def fail(runs: Path, fault: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[Run, dict[str, Any], float]:
    """The run, its failure, and how long all took."""
    monkeypatch.setenv("GRPO_LAB_TEST_FAULT", fault)
    started, run = time.monotonic(), Run(runs / "one")
    ended = cli(*ASKED, *more, f"runs_dir={runs}", "name=one", timeout_s=400)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not carriers(RUN_VARIABLE, str(run.folder))
    failure = store.read_json(run.result)["failure"]
    assert f"failed: {failure['class']}" in ended.stdout
    return run, failure, time.monotonic() - started


@pytest.mark.vllm
@pytest.mark.nightly
def test_the_fake_is_good_enough_to_train_with(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when each answer takes a second."""
    monkeypatch.setenv("GRPO_LAB_TEST_FAULT", "/v1/completions 1 slow")
    ended = cli(*ASKED, f"runs_dir={runs}", "name=one")
    assert ended.returncode == 0, ended.stdout + ended.stderr + Run(runs / "one").worker_log.read_text()[-3000:]
    assert [row["step"] for row in Run(runs / "one").rows()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("/health 1 stall", "server_timeout", "not ready after 4 s"),
        ("/health 1 404", "server_timeout", "/health: 404"),
        ("/health 1 garbage", "server_timeout", "BadStatusLine"),
        ("/v1/models 1 exit", "server_died", "exit code 3"),
        ("/v1/models 1 odd", "error", "does not answer like vLLM"),
    ],
)
def test_before_the_trainer(fault: str, kind: str, reason: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, failure, seconds = fail(runs, fault, monkeypatch, "timeouts.startup=4")
    assert (failure["class"], run.worker_log.exists()) == (kind, False)
    assert reason in failure["message"]
    if kind != "error":
        assert "last lines of" in failure["message"], "the tail of the server's log"
        assert "FakeError" in failure["message"]
    assert seconds < 60


DURING = [
    ("/v1/completions 2 404", "error", "answered 404"),
    ("/v1/completions 2 500", "server_died", "too many 500 error responses"),
    ("/v1/completions 2 odd", "worker_crash", "KeyError: 'choices'"),
    ("/v1/completions 2 exit", "server_died", "exit code 3"),
    ("/v1/completions 2 halfabort", "server_died", "cut off 32 of 32 completions"),
    ("/v1/completions 2 stall", "timeout", "after step 1 of 4, waiting for completions (timeouts.step=10)"),
    ("/init_weight_transfer_engine 1 500", "server_died", "answered 500"),
    ("/update_weights 1 500", "server_died", "/update_weights does 500"),
    ("/update_weights 2 half", "server_died", "a weight has the wrong shape"),
    ("/update_weights 2 halfexit", "server_died", "exit code 1"),
    ("/update_weights 2 stall", "timeout", "sending the weights to vLLM (timeouts.sync=5)"),
]
BRIEF = (
    "/v1/completions 2 halfabort",
    "/v1/completions 2 stall",
    "/update_weights 2 stall",
    "/update_weights 2 halfexit",
)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [pytest.param(*one, marks=() if one[0] in BRIEF else pytest.mark.nightly) for one in DURING],
)
def test_after_training_has_begun(
    fault: str, kind: str, reason: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = ["timeouts.step=10", "timeouts.sync=5"] if "stall" in fault else []
    _, failure, seconds = fail(runs, fault, monkeypatch, *shorter)
    assert failure["class"] == kind, failure
    assert reason in failure["message"]
    assert "last lines of" in failure["message"], "the tail of the server's log"
    assert seconds < 300
