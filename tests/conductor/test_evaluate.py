"""`python -m grpo_lab.evaluate` as a user runs it: pass@k, going on after a kill, two runs compared, refusals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from grpo_lab.config import compose as configuration
from grpo_lab.config.jobs import EvaluateConfig
from grpo_lab.config.places import ASSETS
from grpo_lab.config.schema import Config, ModelConfig, VllmConfig
from grpo_lab.store import checkpoints
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Evaluation, Run
from tests.conftest import ROOT

TINY = str(ASSETS / "tiny")
ASKED = ["data=arithmetic", "evaluate.k=1,4", "evaluate.problems=32", "evaluate.batch_size=8", "vllm=off"]
BATCHES = 32 // (8 // 4)


def argv(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "grpo_lab.evaluate", *words]


def evaluate(*words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(words), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def only_evaluation(run: Path) -> Evaluation:
    (folder,) = (run / "evaluations").iterdir()
    return Evaluation(folder)


def records(work: Evaluation) -> list[dict[str, Any]]:
    return list(parquet.read_table(work.records).to_pylist())


def saved_run(folder: Path, *, steps: Sequence[int] = (), **data: Any) -> Run:
    """A run of the tiny policy as training leaves it, with the untrained weights at each step."""
    run = Run(folder)
    folder.mkdir(parents=True)
    arithmetic = {"_target_": "grpo_lab.data.arithmetic", "seed": 0, "train_size": 64, "test_size": 64, "difficulty": 2}
    config = Config(
        model=ModelConfig(name="tiny", path="asset:tiny"),
        data={**arithmetic, **data},
        rewards={"accuracy": {"_target_": "grpo_lab.rewards.accuracy"}},
        vllm=VllmConfig(mode="server", dp=2),
        grpo={
            "max_completion_length": 32,
            "generation_batch_size": 64,
            "num_generations": 8,
            "per_device_train_batch_size": 8,
        },
    )
    store.save_config(config, run.config)
    for step in steps:
        checkpoint = run.checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for file in (ASSETS / "tiny").iterdir():
            (checkpoint / file.name).symlink_to(file)
        (checkpoint / "trainer_state.json").write_text("{}")
        checkpoints.seal(checkpoint)
    return run


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """An evaluated run with two checkpoints, and what the terminal showed."""
    run = saved_run(tmp_path_factory.mktemp("runs") / "good", steps=[5, 10])
    ended = evaluate(str(run.folder), *ASKED)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return run, ended.stdout


def test_pass_at_k_is_that_of_the_records(straight: tuple[Run, str]) -> None:
    run, shown = straight
    work = only_evaluation(run.folder)
    rows, result = records(work), store.read_json(work.result)
    assert [(row["problem"], row["sample"]) for row in rows] == [(at, one) for at in range(32) for one in range(4)]
    solved = [sum(row["correct"] for row in rows[at : at + 4]) for at in range(0, 128, 4)]
    assert 0 < sum(solved) < 128
    assert result["metrics"]["pass@1"]["value"] == pytest.approx(sum(solved) / 128)
    assert result["metrics"]["pass@4"]["value"] == sum(one > 0 for one in solved) / 32
    for name in ("pass@1", "pass@4"):
        low, high = result["metrics"][name]["ci95"]
        assert low < result["metrics"][name]["value"] < high
        assert f"{name}   {result['metrics'][name]['value']:.3f} (95% {low:.3f} to {high:.3f})   n=32" in shown
    assert result["tokens"] == sum(row["tokens"] for row in rows)
    assert result["backend"] == "transformers"
    assert "transformers, CPU (vllm=off)" in shown
    assert store.load(run.folder) == []  # an evaluation is no run
    assert not Run(work.folder).ballast.exists()


def test_completions_are_judged_and_counted(straight: tuple[Run, str]) -> None:
    tokenizer = Tokenizer.from_file(f"{TINY}/tokenizer.json")
    rows = records(only_evaluation(straight[0].folder))
    for row in rows:
        assert row["correct"] == row["completion"].rstrip().endswith(f"<answer>{row['solution']}</answer>")
        assert row["tokens"] - len(tokenizer.encode(row["completion"]).ids) in (0, 1)  # the end token
    assert len({row["completion"] for row in rows[:4]}) > 1


def test_the_same_command_again_generates_nothing(straight: tuple[Run, str]) -> None:
    run, shown = straight
    work = only_evaluation(run.folder)
    before = work.records.stat().st_mtime_ns
    ended = evaluate(str(run.folder), *ASKED)
    other_k = evaluate(str(run.folder), *ASKED, "evaluate.k=2,4")
    assert ended.returncode == other_k.returncode == 0
    assert "answered before" in ended.stdout
    assert [line for line in ended.stdout.splitlines() if "pass@" in line] == [
        line for line in shown.splitlines() if "pass@" in line
    ]
    assert "pass@2" in other_k.stdout
    assert work.records.stat().st_mtime_ns == before
    assert only_evaluation(run.folder) == work


def test_stopped_and_killed_it_goes_on_to_the_same_records(straight: tuple[Run, str], tmp_path: Path) -> None:
    """The model's folder by itself; the run's last checkpoint has the same weights."""
    words = [TINY, *ASKED, "grpo.max_completion_length=32", f"runs_dir={tmp_path}"]
    shown = interrupted(words, tmp_path / "tiny", 3, signal.SIGINT)
    work = only_evaluation(tmp_path / "tiny")
    left = parts(tmp_path / "tiny")
    assert "the same command goes on from there" in shown
    assert 3 <= left < BATCHES
    interrupted(words, tmp_path / "tiny", left + 3, signal.SIGKILL)
    assert left + 3 <= parts(tmp_path / "tiny") < BATCHES
    ended = evaluate(*words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert records(work) == records(only_evaluation(straight[0].folder))
    assert not work.parts.exists()


def parts(run: Path) -> int:
    return len(list(run.glob("evaluations/*/parts/part-*.parquet")))


def interrupted(words: Sequence[str], run: Path, after: int, number: signal.Signals) -> str:
    """Signal the command once so many batches are saved; what it printed."""
    with subprocess.Popen(
        argv(words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while parts(run) < after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), shown
    return shown


def test_two_runs_are_compared_over_the_same_problems(straight: tuple[Run, str], tmp_path: Path) -> None:
    good, bad = straight[0], saved_run(tmp_path / "bad", steps=[10])
    file = bad.checkpoints / "checkpoint-10" / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    worse = {name: weight * (0.5 if "mlp" in name else 1.0) for name, weight in weights.items()}
    save_file(worse, file, {"format": "pt"})
    ended = evaluate(str(good.folder), str(file.parent), *ASKED)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    works = [only_evaluation(run.folder) for run in (good, bad)]
    results = [store.read_json(work.result) for work in works]
    assert [result["policy"] for result in results] == ["step 10", "step 10"]
    difference = store.read_json(works[1].comparison)["difference"]
    for name in ("pass@1", "pass@4"):
        apart = results[1]["metrics"][name]["value"] - results[0]["metrics"][name]["value"]
        assert difference[name]["value"] == pytest.approx(apart)
        assert difference[name]["ci95"][1] < 0
        assert f"{apart:+.3f}" in ended.stdout


def test_runs_with_other_problems_are_not_compared(tmp_path: Path) -> None:
    one, other = saved_run(tmp_path / "one", steps=[1]), saved_run(tmp_path / "other", steps=[1], difficulty=1)
    refused(str(one.folder), str(other.folder), message="other data")


REFUSED = [
    (["{runs}/nowhere"], "no such folder"),
    (["{runs}"], "no run, checkpoint or model"),
    (["{runs}/empty"], "it has none; evaluate.checkpoint=before is the untrained model"),
    (["{runs}/one", "evaluate.checkpoint=7"], "no checkpoint of step 7, it has 1"),
    (["{runs}/one", "evaluate.k=1,8", "evaluate.samples=4"], "evaluate.k=8 is more than evaluate.samples=4"),
    (["{runs}/one", "evaluate.k=0"], "each at least 1"),
    (["{runs}/one", "evaluate.temperature=0", "evaluate.k=2"], "evaluate.samples=1"),
    (["{runs}/one", "evaluate.temperature=nan"], "evaluate.temperature=nan: must be a number"),
    (["{runs}/one", "evaluate.seed=-1"], "evaluate.seed=-1: must be at least 0"),
    (["{runs}/one", "vllm.max_model_len=0"], "vllm.max_model_len=0: must be at least 1"),
    (["model=tiny", "name=../one"], "the run's folder in runs_dir= cannot be called so"),
    (["{runs}/one", "vllm.engine.hf_token=abc"], "vllm.engine.hf_token holds a secret"),
    (["{runs}/one", "vllm=server", "vllm.dp=2"], "vllm.dp=2: an evaluation has one engine"),
    (["{runs}/one", "evaluate.kk=1"], "did you mean 'k'?"),
    (["{runs}/one", "data=gsm8"], "did you mean 'gsm8k'?"),
    (["{runs}/one", "model=qwen2.5-0.5b"], "has a policy of its own"),
    (["{runs}/one", "data=gsm8k", "data.path=/nowhere", "vllm=off"], "/nowhere"),
]


@pytest.fixture(scope="module")
def runs_of_others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    saved_run(runs / "empty")
    saved_run(runs / "one", steps=[1])
    return runs


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_bad_input_is_refused_in_few_lines_and_leaves_nothing(
    words: list[str], message: str, runs_of_others: Path
) -> None:
    refused(*(word.format(runs=runs_of_others) for word in words), message=message)
    assert not list(runs_of_others.glob("*/evaluations"))


def refused(*words: str, message: str) -> None:
    ended = evaluate(*words)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert message in ended.stderr
    assert 1 <= len(ended.stderr.strip().splitlines()) <= 3


def test_a_dry_run_shows_the_command_and_leaves_nothing(runs_of_others: Path) -> None:
    ended = evaluate(str(runs_of_others / "one"), "vllm=off", "vllm.env.MY_API_KEY=planted", "dry_run=true")
    assert ended.returncode == 0, ended.stderr
    assert "grpo_lab.worker.evaluate" in ended.stdout
    assert "planted" not in ended.stdout
    assert not list(runs_of_others.glob("*/evaluations"))


def test_the_command_itself_loads_no_heavy_package(runs_of_others: Path) -> None:
    program = (
        "import sys\nfrom grpo_lab.evaluate import main\ntry: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'vllm') if name in sys.modules])"
    )
    words = [str(runs_of_others / "one"), "evaluate.checkpoint=7"]
    ended = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ended.stdout.strip() == "[]"


def test_what_is_evaluated_is_no_part_of_a_run() -> None:
    one, other = (Config(evaluate=EvaluateConfig(k=[k])) for k in (1, 4))
    one.model = other.model = ModelConfig(name="x", path="y")
    assert configuration.identity(one) == configuration.identity(other)
