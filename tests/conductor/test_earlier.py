"""Runs that version 0.1.0 left (tests/conductor/earlier): shown, skipped, resumed, evaluated, published and reported.

They lack what is large: logs, completions, checkpoints. `server` is a plan only, of a machine with eight GPUs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from grpo_lab.config.places import ASSETS
from grpo_lab.planner.bench import BenchPlan
from grpo_lab.planner.evaluate import EvaluationPlan
from grpo_lab.planner.train import Plan
from grpo_lab.store import checkpoints, files, records
from grpo_lab.store.folder import Run, Sweep
from grpo_lab.store.records import Env, EvaluationResult, Outcome, Progress, Result
from tests.conftest import ROOT, cli

EARLIER = ROOT / "tests" / "conductor" / "earlier"
BATCH = ["data.train_size=32", "grpo.generation_batch_size=16", "grpo.per_device_train_batch_size=8", "tracker=none"]
LATER = [f"~rewards.accuracy.{key}" for key in ("simplified", "relative_tolerance", "step_timeout_s")]
"""Settings of a reward that 0.1.0 did not have: with them a run is another one."""
BATCH += LATER
ASKED = [*BATCH, "grpo.max_steps=4", "grpo.save_steps=2", "eval.problems=4"]
SWEPT = [*BATCH, "grpo.max_steps=2", "eval.enabled=false", "rewards=[accuracy]", "vllm=off,colocate", "vllm.tp=1,64"]
BENCHED = ["vllm=off", "model=tiny", "tracker=none", "bench.prompts=2", "bench.num_generations=2", "bench.warmup=1"]
BENCHED += ["bench.prompt_len=8", "bench.completion_len=8", "bench.repeats=2"]
KINDS = {"result.json": Result, "env.json": Env, "outcome.json": Outcome, "progress.json": Progress}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy of them all."""
    return Path(shutil.copytree(EARLIER, tmp_path / "runs"))


def with_weights(run: Run, step: int) -> None:
    """Put a checkpoint of the tiny policy where the run had its own."""
    checkpoint = run.checkpoint(step)
    checkpoint.mkdir(parents=True)
    for file in (ASSETS / "tiny").iterdir():
        (checkpoint / file.name).symlink_to(file)
    (checkpoint / "trainer_state.json").write_text("{}")
    checkpoints.seal(checkpoint)


def shown(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


YOUNGER = {"chosen": {}, "why": "", "sorted_passes": False}
"""Fields of a training run's plan that these files do not have."""


def plan_kind(file: Path) -> type[Plan | BenchPlan | EvaluationPlan]:
    if "evaluations" in file.parts:
        return EvaluationPlan
    return BenchPlan if file.parent.name == "bench" else Plan


def test_every_plan_is_read_and_written_without_a_change() -> None:
    plans = sorted(EARLIER.rglob("plan.json"))
    assert len(plans) == 8
    for file in plans:
        plan, written = records.must_read(file, plan_kind(file)), files.read_json(file)
        devices = {key: written.pop(key) for key in ("devices", "generating_devices") if key in written}
        younger = YOUNGER if isinstance(plan, Plan) else {}
        assert records.content_of(plan) == {**younger, **written}
        assert {key: getattr(plan, key) for key in devices} == devices


def test_every_record_is_read_and_written_without_a_change() -> None:
    found = [file for file in sorted(EARLIER.rglob("*.json")) if file.name in KINDS]
    assert len(found) == 27
    for file in found:
        kind = EvaluationResult if file.name == "result.json" and "evaluations" in file.parts else KINDS[file.name]
        content = records.content_of(records.must_read(file, kind))
        before = files.read_json(file)
        names = before.keys() | content.keys()  # null and absent are the same
        assert {name: content.get(name) for name in names} == {name: before.get(name) for name in names}, file


def test_a_finished_run_is_shown(earlier: Path) -> None:
    again = shown(cli(*ASKED, f"runs_dir={earlier}", "name=finished"))
    assert "finished before" in again
    assert "held-out pass@1  0.500 (95% 0.150 to 0.850) -> 0.250" in again
    measured = shown(cli(*BENCHED, f"runs_dir={earlier}", "name=bench", module="grpo_lab.bench"))
    assert "finished before" in measured


def test_a_run_that_was_killed_goes_on_once_the_user_has_decided(earlier: Path) -> None:
    run = Run(earlier / "stopped")
    with_weights(run, 2)
    asked = cli(*ASKED, "grpo.max_steps=400", f"runs_dir={earlier}", "name=stopped")
    assert asked.returncode == 2
    assert "was left at step 2: resume=true goes on from there" in asked.stderr


def test_a_run_that_was_killed_without_a_checkpoint_begins_again_under_its_name(earlier: Path) -> None:
    run = Run(earlier / "finished")
    before = records.must_read(run.env, Env)
    run.result.unlink()
    shown(cli(*ASKED, f"runs_dir={earlier}", "name=finished"))
    assert records.must_read(run.result, Result).steps == 4
    assert len(run.rows()) == 4
    after = records.must_read(run.env, Env)
    assert (after.run_id, after.identity) == (before.run_id, before.identity)


def test_the_finished_points_of_a_sweep_are_skipped_and_reported(earlier: Path) -> None:
    sweep = Sweep(earlier / "sweep")
    again = shown(cli("--multirun", *SWEPT, f"hydra.sweep.dir={sweep.folder}", "seed=0"))
    assert "4 points: 2 finished before, 2 infeasible" in again
    shown(cli(str(sweep.folder), module="grpo_lab.report"))
    table = next(sweep.folder.rglob("*.csv")).read_text().splitlines()
    assert sum("infeasible" in line for line in table) == 2
    assert sum("finished" in line for line in table) == 2


def test_an_evaluation_is_not_made_again_and_the_policy_goes_out_with_its_card(earlier: Path) -> None:
    run = Run(earlier / "finished")
    with_weights(run, 4)
    asked = [str(run.folder), "evaluate.k=1,2", "evaluate.problems=4", "vllm=off"]
    again = shown(cli(*asked, module="grpo_lab.evaluate"))
    assert "answered before" in again
    assert "pass@1   0.500 (95% 0.150 to 0.850)   n=4 problems" in again
    assert "README.md" in shown(cli(str(run.folder), module="grpo_lab.publish"))
    assert "| held-out pass@1 after training | 0.25 |" in (run.checkpoint(4) / "README.md").read_text()


def test_a_run_of_a_newer_version_is_refused_by_the_field_that_it_has(earlier: Path) -> None:
    run = Run(earlier / "finished")
    files.write_json(run.result, {**files.read_json(run.result), "energy_j": 12})
    refused = cli(*ASKED, f"runs_dir={earlier}", "name=finished")
    assert refused.returncode == 2
    reason = "unknown field 'energy_j', made by a newer version; update grpo-lab"
    assert refused.stderr == f"error: {run.result}: {reason}\n"


def test_nobody_reads_a_plan_as_a_dictionary() -> None:
    sources = [file for room in ("grpo_lab", "benchmarks", "hydra_plugins") for file in (ROOT / room).rglob("*.py")]
    assert len(sources) > 150
    assert [str(file) for file in sources if re.search(r"plan\[[\"']", file.read_text())] == []
