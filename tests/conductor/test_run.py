"""Real runs of the tiny policy, as a user starts them: what they leave, how they stop, go on and fail."""

from __future__ import annotations

import math
import os
import re
import signal
import statistics
import time
from pathlib import Path

import psutil
import pyarrow.compute
import pyarrow.parquet
import pytest

from grpo_lab.conductor.console import screen
from grpo_lab.conductor.run import settle_folder
from grpo_lab.config import compose as configuration
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from grpo_lab.store.measures import MEASURES, PHASES
from tests.conftest import GSM8K, SHORT, cli, first_completions, running, wait_for_step
from tests.offline_wandb import history, wandb_records

SPY = ["rewards.vllm_imported._target_=tests.rows.vllm_imported", "rewards.vllm_imported.weight=0"]
FINISHED = [*SHORT, *SPY, "grpo.max_steps=6", "tracker=wandb"]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living processes that name the run folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            str(folder) in word for word in process.info["cmdline"] or ()
        ):
            found.append(process)
    return [process for process in found if process.pid != os.getpid()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """One short run with W&B offline, and what the terminal showed."""
    runs = tmp_path_factory.mktemp("runs")
    ended = cli(*FINISHED, f"runs_dir={runs}", "name=one")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Run(runs / "one"), ended.stdout


def test_a_run_leaves_its_files(finished: tuple[Run, str]) -> None:
    run, shown = finished
    result = store.read_json(run.result)
    assert result["status"] == "finished"
    assert result["failure"] is None
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4, 5, 6]
    assert run.reward_curve.read_bytes().startswith(b"\x89PNG")
    table = pyarrow.parquet.read_table(run.completions)
    assert table.num_rows == 6 * 32
    lengths = table.filter(pyarrow.compute.field("step") == 6)["completion_tokens"].to_pylist()
    assert sum(lengths) == run.rows()[-1]["completion_tokens"]
    answers = pyarrow.parquet.read_table(run.answers("after"))
    assert answers["right"].to_pylist() == store.read_json(run.evaluation("after"))
    assert all(answers["completion"].to_pylist())
    environment = store.read_json(run.env)
    assert {"torch", "trl", "command", "cores", "git_commit"} <= environment.keys()
    assert 1 < environment["host_ms"] < 1000
    for told in (
        "samples of step 6, the worst and the best",
        "held-out pass@1",
        "95%",
        "n=32",
        "step time",
        str(run.folder),
        "reward_curve.png",
        "wandb sync",
    ):
        assert told in shown


def test_vllm_is_not_imported_for_nothing(finished: tuple[Run, str]) -> None:
    run, _ = finished
    assert [row["rewards/vllm_imported/mean"] for row in run.rows()] == [0] * 6


def test_phases_add_up_to_the_step(finished: tuple[Run, str]) -> None:
    run, _ = finished
    for row in run.rows():
        parts = math.fsum(row[f"time_s/{phase}"] for phase in PHASES)
        assert parts == pytest.approx(row["step_time_s"], rel=0.03)
        assert row["step_time_s"] >= row["step_time"]  # TRL's own, which leaves out the optimizer


def test_rates_follow_from_tokens_and_times(finished: tuple[Run, str]) -> None:
    run, _ = finished
    for row in run.rows():
        assert row["generated_tokens_per_s"] == pytest.approx(
            row["completion_tokens"] / row["time_s/generate"], rel=0.01
        )
        assert row["tokens_per_s_per_gpu"] == pytest.approx(row["completion_tokens"] / row["step_time_s"], rel=0.01)
        assert row["samples_per_s"] == pytest.approx(32 / row["step_time_s"])


def test_completion_tokens_are_those_of_the_completions(finished: tuple[Run, str]) -> None:
    from transformers import AutoTokenizer

    run, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(store.read_json(run.plan)["model_path"])
    table = pyarrow.parquet.read_table(run.completions).to_pylist()
    texts = [row["completion"][0]["content"] for row in table if row["step"] == 1]
    counted = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert counted <= run.rows()[0]["completion_tokens"] <= counted + len(texts)  # the end token is not in the text


def test_every_metric_of_the_list_is_measured(finished: tuple[Run, str]) -> None:
    """But those of vLLM, of a server and of a card with known FLOPs, which this run does not have."""
    metrics = store.read_json(finished[0].result)["metrics"]
    fields = {measure.name: measure.field(metrics) for measure in MEASURES["train"] if not measure.inverse_of}
    missing = {name for name, value in fields.items() if value is None}
    assert missing == {"logp_difference", "mfu", "peak_memory_gib_server", "startup_s_server"}


def test_prompt_tokens_are_those_of_the_prompts(finished: tuple[Run, str]) -> None:
    from transformers import AutoTokenizer

    run, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(store.read_json(run.plan)["model_path"])
    table = pyarrow.parquet.read_table(run.completions).to_pylist()
    asked = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in table]
    lengths = [len(tokenizer(text)["input_ids"]) for text in asked]
    found = store.read_json(run.result)["metrics"]["prompt_tokens"]
    assert found == {"value": pytest.approx(statistics.fmean(lengths)), "n": len(table)}


def test_timings_leave_out_the_warmup(finished: tuple[Run, str]) -> None:
    run, _ = finished
    metrics = store.read_json(run.result)["metrics"]
    steps = sorted(row["step_time_s"] for row in run.rows() if row["step"] > 2)
    assert metrics["step_time_s"]["n"] == 4
    assert metrics["step_time_s"]["median"] == pytest.approx((steps[1] + steps[2]) / 2)
    assert metrics["step_time_s"]["ci95"] is None
    low, high = metrics["step_time_s"]["range"]
    assert (low, high) == (steps[0], steps[-1])


def test_wandb_holds_what_metrics_jsonl_holds(finished: tuple[Run, str]) -> None:
    run, _ = finished
    (records,) = wandb_records(run.folder, store.read_json(run.env)["run_id"])
    assert history(records) == {
        row["step"]: {key: value for key, value in row.items() if value is not None} for row in run.rows()
    }


def test_the_same_command_again_does_not_train_again(finished: tuple[Run, str]) -> None:
    run, _ = finished
    before = run.metrics.stat().st_mtime_ns
    ended = cli(*FINISHED, f"runs_dir={run.folder.parent}", "name=one")
    assert ended.returncode == 0
    assert "finished before" in ended.stdout
    assert run.metrics.stat().st_mtime_ns == before


def test_a_folder_of_another_config_is_left_alone(finished: tuple[Run, str]) -> None:
    run, _ = finished
    ended = cli(*SHORT, "seed=1", f"runs_dir={run.folder.parent}", "name=one")
    assert ended.returncode == 2
    assert "another config" in ended.stderr


STEPS = [*SHORT, "eval.enabled=false", "grpo.max_steps=20"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """20 steps that nobody stops."""
    runs = tmp_path_factory.mktemp("straight")
    ended = cli(*STEPS, f"runs_dir={runs}", "name=straight")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Run(runs / "straight")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_and_resumed_equals_straight(number: signal.Signals, runs: Path, straight: Run) -> None:
    """20 steps straight, and 20 steps with a stop in between, give the same losses to the last digit."""
    asked = [*STEPS, f"runs_dir={runs}"]
    broken = Run(runs / "broken")
    with running(*asked, "name=broken") as process:
        wait_for_step(broken, 10)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, shown
    assert "resume=true goes on" in shown
    assert not processes_of(broken.folder)
    assert not broken.result.exists()
    checkpoint = broken.last_checkpoint()
    assert checkpoint is not None
    assert 10 <= checkpoint[1] < 20

    refused = cli(*asked, "name=broken")
    assert refused.returncode == 2
    assert "resume=true" in refused.stderr
    assert cli(*asked, "name=broken", "resume=true").returncode == 0
    assert losses(broken) == losses(straight)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["grpo.save_only_model=true"], "leaves optimizer"),
        (["grpo.beta=0.1", "grpo.sync_ref_model=true", "grpo.ref_model_sync_steps=2"], "reference model is not part"),
    ],
)
def test_what_cannot_be_resumed_exactly_is_refused(options: list[str], reason: str, runs: Path) -> None:
    asked, run = [*STEPS, "grpo.save_steps=1", *options, f"runs_dir={runs}", "name=broken"], Run(runs / "broken")
    with running(*asked) as process:
        wait_for_step(run, 3)
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=60)
    assert "it cannot be resumed" in shown
    rows = run.rows()
    for again in ([], ["resume=true"]):
        refused = cli(*asked, *again)
        assert refused.returncode == 2
        assert reason in refused.stderr
        assert "resume=false starts over" in refused.stderr
    assert run.rows() == rows
    point = configuration.load(run.config)
    point.sweep.name = "a sweep, which an unfinished point must not block"
    with (console := screen()).capture() as words:
        assert settle_folder(run, point, console) is None
    assert f"{reason}" in words.get()
    assert "starts over, and the earlier run is now" in words.get()
    assert not run.folder.exists()


def losses(run: Run) -> list[tuple[int, float, float]]:
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 21))
    return [(row["step"], row["loss"], row["reward"]) for row in rows]


def test_a_reward_that_raises_is_named_and_the_steps_are_kept(runs: Path) -> None:
    ended = cli(*SHORT, "rewards.mine._target_=tests.rows.failing", f"runs_dir={runs}", "name=bad")
    run = Run(runs / "bad")
    failure = store.read_json(run.result)["failure"]
    assert ended.returncode == 1
    assert failure["class"] == "bad_reward"
    assert "'mine'" in failure["message"]
    assert "the reward's own mistake" in failure["message"]
    assert "<think>" in failure["message"] or "<answer>" in failure["message"]
    assert run.last_checkpoint() is not None
    assert "Traceback" not in ended.stdout + ended.stderr


ENDLESS = [*SHORT, "grpo.max_steps=2000", "eval.enabled=false"]


def test_a_killed_worker_is_a_failure_with_its_class(runs: Path) -> None:
    run = Run(runs / "killed")
    with running(*ENDLESS, f"runs_dir={runs}", "name=killed") as process:
        wait_for_step(run, 1)
        (worker,) = [one for one in processes_of(run.folder) if one.cmdline()[1:3] == ["-m", "grpo_lab.worker"]]
        worker.kill()
        process.communicate(timeout=60)
    assert process.returncode == 1
    assert store.read_json(run.result)["failure"]["class"] == "killed"
    assert not processes_of(run.folder)


def test_a_killed_conductor_leaves_no_process(runs: Path) -> None:
    run = Run(runs / "orphan")
    with running(*ENDLESS, f"runs_dir={runs}", "name=orphan") as process:
        wait_for_step(run, 1)
        process.kill()
    deadline = time.monotonic() + 15
    while processes_of(run.folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(run.folder)


def test_gsm8k_end_to_end(runs: Path) -> None:
    data = ["data=gsm8k", f"data.path={GSM8K}", "data.max_prompt_tokens=300"]
    ended = cli(*SHORT, "grpo.max_steps=2", *data, f"runs_dir={runs}", "name=gsm8k")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = Run(runs / "gsm8k").rows()
    assert len(rows) == 2
    assert all(row["rewards/accuracy/unparsable_gold"] == 0 for row in rows)
    assert re.search(r"=300: [1-9]\d* of 7473 train rows dropped", Run(runs / "gsm8k").worker_log.read_text())


def test_prompts_that_do_not_fit_are_bad_data(runs: Path) -> None:
    data = ["data=gsm8k", f"data.path={GSM8K}", "grpo.max_completion_length=1000"]
    ended = cli(*SHORT, *data, f"runs_dir={runs}", "name=long")
    assert ended.returncode == 1
    assert store.read_json(Run(runs / "long").result)["failure"]["class"] == "bad_data"
    assert "data.max_prompt_tokens=N" in ended.stdout


def test_two_seeds_differ_and_one_seed_repeats(runs: Path, straight: Run) -> None:
    """The first step does not depend on how many follow."""
    for seed in (0, 1):
        ended = cli(*STEPS, "grpo.max_steps=1", f"seed={seed}", f"runs_dir={runs}", f"name={seed}")
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert first_completions(Run(runs / "0")) == first_completions(straight)
    assert first_completions(Run(runs / "1")) != first_completions(straight)
