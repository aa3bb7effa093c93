"""Whole sweeps from the command line: points that fail in every way, kills, and the same command again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from grpo_lab.planner.commands import RUN_VARIABLE
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run, Sweep
from tests.conftest import ROOT, SHORT, cli, wait_for_step

FATES = ("ok", "raise_once", "kill_once", "hang", "conductor")


def only_sweep(runs: Path) -> Sweep:
    (folder,) = (path for path in runs.iterdir() if path.is_dir())
    return Sweep(folder)


def statuses(sweep: Sweep) -> dict[str, tuple[str, str | None]]:
    names = [row["name"] for row in store.read_json(sweep.points)["points"]]
    found = {name: store.read_json(sweep.run(name).result) for name in names}
    return {name: (row["status"], (row["failure"] or {}).get("class")) for name, row in found.items() if row}


def left_of(folder: Path) -> list[str]:
    """Command lines of living processes of a sweep: conductors, workers, whatever carries a run of it."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get(RUN_VARIABLE, "").startswith(str(folder))
            if process.pid != os.getpid() and (mine or str(folder) in " ".join(process.cmdline())):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def wait_until_gone(folder: Path, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while left := left_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.slow
def test_fates(runs: Path, tmp_path: Path) -> None:
    """One sweep with every fate: the others go on, each failure has its class, the second call does what is asked."""
    fates = ["--multirun", f"runs_dir={runs}", *SHORT, "eval.enabled=false", "grpo.save_steps=1", "rewards=[]"]
    fates += ["rewards.fate._target_=tests.sweep.fates.fate", f"rewards.fate.marks={tmp_path}"]
    every = f"rewards.fate.how={','.join(FATES)}"
    infeasible = "vllm.tp=1,2"
    ended = cli(*fates, every, infeasible, "launcher.timeout=75", timeout_s=560)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    sweep = only_sweep(runs)
    assert statuses(sweep) == {
        **{f"rewards.fate.how={how},vllm.tp=2": ("infeasible", "infeasible") for how in FATES},
        "rewards.fate.how=ok,vllm.tp=1": ("finished", None),
        "rewards.fate.how=raise_once,vllm.tp=1": ("failed", "bad_reward"),
        "rewards.fate.how=kill_once,vllm.tp=1": ("finished", None),
        "rewards.fate.how=hang,vllm.tp=1": ("failed", "timeout"),
        "rewards.fate.how=conductor,vllm.tp=1": ("failed", "killed"),
    }
    out = ended.stdout
    assert out.index("infeasible: rewards.fate.how=ok,vllm.tp=2: vllm.tp=2") < out.index("running on core")
    assert "10 points: 2 finished, 5 infeasible, 3 failed" in out
    assert "the reward of this point is wrong" in out
    assert "launcher.timeout" in out
    assert re.search(r"how=kill_once,vllm.tp=1  waiting after .*: killed", out), "a transient failure is tried again"
    again = sweep.run("rewards.fate.how=kill_once,vllm.tp=1")
    assert [row["step"] for row in again.rows()] == [1, 2, 3, 4], "resumed, every step once"
    calls = (tmp_path / "kill_once.calls").read_text().splitlines()
    assert len(calls) == 3 + 2, "two steps were done, the third was lost and done again, then the fourth"
    wait_until_gone(sweep.folder, 1.0)

    # The same command: what is finished or failed stays; sweep.retry=failed runs the failed ones again.
    skipped = cli(*fates, "rewards.fate.how=ok,raise_once", infeasible)
    assert skipped.returncode == 1
    assert "4 points: 1 finished before, 2 infeasible, 1 failed before" in skipped.stdout
    retried = cli(*fates, "rewards.fate.how=ok,raise_once", infeasible, "sweep.retry=failed")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    assert "4 points: 1 finished before, 2 infeasible, 1 finished" in retried.stdout
    assert len((tmp_path / "ok.calls").read_text().splitlines()) == 4, "a finished point is not run again"

    forced = cli(*fates, "rewards.fate.how=ok,raise_once", infeasible, "sweep.force=true")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert "4 points: 2 finished, 2 infeasible" in forced.stdout
    assert len((tmp_path / "ok.calls").read_text().splitlines()) == 8
    assert Run(sweep.folder / "rewards.fate.how=ok,vllm.tp=1.old-1").result.exists(), "nothing is deleted"
    assert len(store.load(sweep.folder)) == 10, "what was set aside is not reported"


@pytest.mark.slow
def test_kill_9_of_the_launcher_and_the_same_command_again(runs: Path) -> None:
    command = ["--multirun", f"runs_dir={runs}", *SHORT, "eval.enabled=false", "seed=1,2,3"]
    command += ["grpo.max_steps=20", "grpo.save_steps=5"]
    argv = [sys.executable, "-m", "grpo_lab.train", *command]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
        while not (runs.is_dir() and any(runs.rglob("metrics.jsonl"))):
            time.sleep(0.2)
            assert launcher.poll() is None
        sweep = only_sweep(runs)
        wait_for_step(sweep.run("seed=1"), 6)
        launcher.kill()
    wait_until_gone(sweep.folder)
    begun = sweep.run("seed=1")
    assert begun.last_checkpoint() is not None
    assert not begun.result.exists()
    ended = cli(*command, "launcher.max_parallel=2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert statuses(sweep) == {f"seed={seed}": ("finished", None) for seed in (1, 2, 3)}
    for seed in (1, 2, 3):
        assert [row["step"] for row in sweep.run(f"seed={seed}").rows()] == list(range(1, 21))
    assert "going on from step" in sweep.log("seed=1").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop(runs: Path, number: signal.Signals) -> None:
    command = ["--multirun", f"runs_dir={runs}", *SHORT, "eval.enabled=false", "grpo.max_steps=2000", "seed=1,2,3"]
    argv = [sys.executable, "-m", "grpo_lab.train", *command]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
        try:
            while not (runs.is_dir() and any(runs.rglob("metrics.jsonl"))):
                time.sleep(0.2)
                assert launcher.poll() is None
            launcher.send_signal(number)
            asked = time.monotonic()
            out, _ = launcher.communicate(timeout=60)
        finally:
            launcher.kill()
    assert launcher.returncode == 128 + number
    assert time.monotonic() - asked < 15
    sweep = only_sweep(runs)
    assert left_of(sweep.folder) == []
    assert "3 points: 3 interrupted" in out
    assert any(sweep.run(f"seed={seed}").last_checkpoint() for seed in (1, 2)), "a step that was done is saved"


@pytest.mark.slow
def test_frozen(runs: Path, tmp_path: Path) -> None:
    """A file of conf/ that changes while a sweep runs changes none of its points; nor may a second launcher begin."""
    mine = tmp_path / "conf" / "data" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    text = (ROOT / "conf" / "data" / "arithmetic.yaml").read_text()
    mine.write_text(text)
    command = ["-cd", str(tmp_path / "conf"), "--multirun", f"runs_dir={runs}", *SHORT, "data=mine"]
    command += ["eval.enabled=false", "launcher.max_parallel=1", "seed=1,2"]
    argv = [sys.executable, "-m", "grpo_lab.train", *command]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launcher:
        while not (runs.is_dir() and any(runs.rglob("env.json"))):
            time.sleep(0.1)
            assert launcher.poll() is None
        mine.write_text(text.replace("difficulty: 2", "difficulty: 1"))
        second = cli(*command)
        out, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, out
    assert second.returncode == 2
    assert f"is in use by process {launcher.pid}" in second.stderr
    sweep = only_sweep(runs)
    points = store.read_json(sweep.points)["points"]
    assert [point["config"]["data"]["difficulty"] for point in points] == [2, 2]
    assert "difficulty: 2" in sweep.run("seed=2").config.read_text()
    # The changed file is another request: its points get folders of their own.
    told = cli(*command, "dry_run=true")
    assert re.search(r"seed=1-[0-9a-f]{12}", told.stdout), told.stdout


def test_refused_before_anything_starts(runs: Path) -> None:
    for wrong, reason in (
        (["seed=1,2", "grpo.learning_rat=1"], "learning_rate"),
        (["model=tiny,tinny"], "tinny"),
        (["vllm=colocate", "vllm.tp=3,5"], "does not divide"),
        (["seed=1,x"], "seed"),
        (["seed=1,2", "objective=speed"], "tokens_per_s_per_gpu"),
        (["seed=1,2", "launcher.gpus_per_job=1"], "launcher.gpus_per_job=1: this machine has 0 GPUs"),
    ):
        refused = cli("--multirun", f"runs_dir={runs}", *wrong)
        assert refused.returncode == 2, wrong
        assert reason in refused.stderr
        assert "Traceback" not in refused.stderr
        assert len(refused.stderr.splitlines()) <= 3
        assert not runs.exists(), wrong


def test_dry_run_of_a_sweep(runs: Path) -> None:
    told = cli("--multirun", f"runs_dir={runs}", "dry_run=true", "vllm=off,colocate", "vllm.dp=1,2")
    assert told.returncode == 0
    assert "vllm=colocate,vllm.dp=2  2 cores" in told.stdout
    assert "vllm=off,vllm.dp=2  infeasible: " in told.stdout
    assert not runs.exists()
