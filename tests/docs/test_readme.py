"""The commands of the README and of docs/, as a reader would copy them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from pyarrow import parquet

from grpo_lab.config.places import ASSETS
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import ROOT, cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md")))


def commands(module: str, text: str = README) -> list[list[str]]:
    """Arguments of each line that runs the module."""
    lines = re.findall(rf"^python -m grpo_lab\.{module} .*$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line.partition("#")[0])[3:] for line in lines]


def of_docs() -> list[list[str]]:
    """With the module first, dry where the module has that; without those that need a cluster, runs, or the reader."""
    found = []
    for module, more in (("train", ["dry_run=true"]), ("bench", ["dry_run=true"]), ("plan", [])):
        for words in commands(module, DOCS):
            if not any(word in ("compare", "calibrate", "...") or word.startswith("hydra/launcher=") for word in words):
                found.append([f"grpo_lab.{module}", *words, *more])
    return found


COMMANDS = commands("train")


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    """A working directory with the README's my_rewards.py, more lines like those of its JSONL, and a model's folder."""
    code = re.search(r"```python\n# my_rewards\.py\n(.*?)```", README, re.DOTALL)
    lines = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert lines is not None
    (tmp_path / "my_rewards.py").write_text(code[1])
    question, answer = json.loads(lines[1].splitlines()[0])
    pairs = [(left, right) for right in (25, 57) for left in range(10, 99)]
    rows = [{question: f"{left}+{right}=?", answer: str(left + right)} for left, right in pairs]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(ASSETS / "tiny", tmp_path / "my_model")
    return tmp_path


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6
    assert (len(commands("bench")), len(commands("plan"))) == (2, 1)
    assert len(of_docs()) >= 9


@pytest.mark.parametrize("overrides", COMMANDS, ids=" ".join)
def test_a_command_plans(overrides: list[str], own_files: Path) -> None:
    """With dry_run=true, since most need GPUs; the files that they name are in the working directory."""
    ended = cli(*overrides, "dry_run=true", cwd=own_files)
    assert ended.returncode == 0, ended.stderr
    assert ("6 points" if "--multirun" in overrides else "grpo_lab.worker") in ended.stdout


@pytest.mark.parametrize("overrides", commands("bench"), ids=" ".join)
def test_a_bench_plans(overrides: list[str]) -> None:
    ended = cli(*overrides, "dry_run=true", module="grpo_lab.bench")
    assert ended.returncode == 0, ended.stderr
    assert ("12 points" if "--multirun" in overrides else "grpo_lab.worker.bench") in ended.stdout


@pytest.mark.parametrize("overrides", commands("plan"), ids=" ".join)
def test_a_prediction_is_made(overrides: list[str]) -> None:
    ended = cli(*overrides, module="grpo_lab.plan")
    assert ended.returncode == 0, ended.stderr
    assert "colocate tp=1 dp=8" in ended.stdout


@pytest.mark.parametrize("words", of_docs(), ids=" ".join)
def test_a_command_of_the_docs_is_accepted(words: list[str], tmp_path: Path) -> None:
    ended = cli(*words[1:], module=words[0], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_data_and_a_reward_of_ones_own_train_together(own_files: Path) -> None:
    (overrides,) = [words for words in COMMANDS if "model=./my_model" in words]
    short = ["grpo.max_steps=1", "grpo.generation_batch_size=16", "tracker=none", "name=mine"]
    ended = cli(*overrides, *short, cwd=own_files)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = Run(own_files / "runs" / "mine")
    (row,) = run.rows()
    assert 0 <= row["rewards/short/mean"] < 1
    assert {"rewards/accuracy/mean", "rewards/format/mean"} <= row.keys()
    asked = parquet.read_table(run.completions)["prompt"].to_pylist()
    questions = {json.loads(line)["question"] for line in (own_files / "sums.jsonl").read_text().splitlines()}
    assert {prompt[-1]["content"] for prompt in asked} <= questions
    assert store.read_json(run.plan)["model_path"] == str(own_files / "my_model")
    result = store.read_json(run.result)
    assert result["model"] == "my_model"
    assert result["data"]["train"]["rows"] + result["data"]["test"]["rows"] == 178
    assert result["metrics"]["accuracy_after"]["n"] == result["data"]["test"]["rows"] > 0


def test_files_that_the_readme_links_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_no_number_of_the_readme_s_tables_is_bold_on_one_start() -> None:
    """What is bold rests on two starts or more; of the layouts measured so far each was started once."""
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert not [row for row in rows if re.search(r"\*\*[\d.,]+\*\*", row)]
