"""Several data sets in one stream, and what a run does with its rows before it trains on them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest

from grpo_lab import data
from grpo_lab.conductor.preflight import check_data, check_targets
from grpo_lab.config.errors import RequestError
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from tests.conftest import SHORT, cli
from tests.data.test_data import refused
from tests.planner.test_plan import asked

SUMS = {"_target_": "grpo_lab.data.arithmetic", "seed": 0, "train_size": 900, "test_size": 60, "difficulty": 2}
GAME = {"_target_": "grpo_lab.data.countdown", "seed": 0, "train_size": 900, "test_size": 60, "system_prompt": "r1"}


def reserved(split: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"prompt": "1+1=?", "solution": "2", "completions": "2"}])


def without_solution(split: str) -> datasets.Dataset:
    """Nothing to evaluate: there is no test split either."""
    if split != "train":
        raise ValueError("no test rows")
    return datasets.Dataset.from_list([{"prompt": "1+1=?"}] * 8)


def short_and_long(split: str) -> datasets.Dataset:
    """A hundred prompts, every third one long, as texts or as messages."""
    texts = ["1+1=?" + " and again" * (40 if number % 3 == 0 else 0) for number in range(100)]
    prompts = texts if split == "test" else [[{"role": "user", "content": text}] for text in texts]
    return datasets.Dataset.from_dict({"prompt": prompts, "solution": [str(number) for number in range(100)]})


def mixed(split: str = "train", **changes: Any) -> Any:
    return data.mix(split, **{"parts": {"sums": SUMS | {"weight": 3}, "game": GAME | {"weight": 1}}} | changes)


def test_parts_come_as_often_as_they_weigh_and_each_row_once() -> None:
    rows = mixed()
    assert rows["source"][:].count("sums") == 900
    assert 230 < rows["source"][:].count("game") < 370  # 300 expected; 4.5 standard deviations
    assert len({json.dumps(prompt) for prompt in rows["prompt"]}) == len(rows)
    firsts = rows["source"][:100]
    assert 10 < firsts.count("game") < 45


def test_a_mix_repeats_with_its_seed_only() -> None:
    assert mixed()["source"][:] == mixed()["source"][:] != mixed(seed=1)["source"][:]


def test_rows_of_a_mix_are_the_rows_of_its_parts_and_nothing_where_a_part_has_nothing() -> None:
    rows = mixed("test")
    sums = [row for row in rows if row["source"] == "sums"]
    game = [row for row in rows if row["source"] == "game"]
    alone = data.arithmetic("test", **{key: value for key, value in SUMS.items() if key != "_target_"})
    assert [(row["prompt"], row["solution"], row["question"]) for row in sums] == [
        (row["prompt"], row["solution"], row["question"]) for row in alone.select(range(len(sums)))
    ]
    assert {(row["numbers"], row["target"]) for row in sums} == {(None, None)}
    assert {row["question"] for row in game} == {None}
    assert all(eval(row["solution"]) == row["target"] for row in game)


def test_held_out_rows_of_a_mix_are_not_in_its_training_rows() -> None:
    assert not {json.dumps(row) for row in mixed()["prompt"]} & {json.dumps(row) for row in mixed("test")["prompt"]}


def test_all_exhausted_begins_smaller_parts_again() -> None:
    small = SUMS | {"train_size": 10}
    rows = mixed(parts={"small": small, "game": GAME}, stopping_strategy="all_exhausted")
    assert len(set(rows["target"])) > 50
    assert rows["source"][:].count("game") >= 900
    assert len({row["question"] for row in rows if row["source"] == "small"}) == 10


def test_a_part_of_weight_zero_is_not_even_loaded() -> None:
    broken = {"_target_": "grpo_lab.data.gsm8k", "path": "/nowhere", "weight": 0}
    assert set(mixed(parts={"sums": SUMS, "broken": broken})["source"]) == {"sums"}


def test_columns_of_two_types_are_refused_until_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}?", "solution": "1", "target": "text"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "_target_": "grpo_lab.data.jsonl",
        "path": str(tmp_path / "rows.jsonl"),
        "columns": {"prompt": "prompt", "solution": "solution"},
    }
    with refused(ValueError, ["'target'", "parts.game", "parts.own", "drop=[target]"]):
        mixed(parts={"game": GAME, "own": own})
    rows = mixed(parts={"game": GAME, "own": own}, drop=["target"])
    assert set(rows.column_names) == {"prompt", "solution", "numbers", "source"}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, ["+data@data.parts.gsm8k=gsm8k"]),
        ({"sums": {"weight": 1}}, ["parts.sums", "+data@data.parts.sums="]),
        ({"sums": SUMS | {"weight": -1}}, ["parts.sums.weight=-1"]),
        ({"sums": SUMS | {"difficulty": 9}}, ["parts.sums: difficulty=9"]),
        ({"math": {"_target_": "grpo_lab.data.math", "path": "/nowhere"}}, ["parts.math: path='/nowhere'"]),
    ],
)
def test_a_mix_that_cannot_be_made_is_refused(parts: Any, words: list[str]) -> None:
    with refused(ValueError, words):
        mixed(parts=parts)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=custom", "data._target_=tests.data.test_data_mix.reserved"], "gives a column 'completions'"),
        (["data=custom", "data._target_=tests.data.test_data_mix.without_solution"], "which rewards.accuracy needs"),
        (["data.system_prompt=boxd"], "boxed, plain, r1"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_before_anything_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        check_data(asked(*overrides))


def test_data_without_solutions_needs_no_test_rows_where_no_reward_asks_for_them() -> None:
    check_data(asked("data=custom", "data._target_=tests.data.test_data_mix.without_solution", "rewards=[format]"))


def test_a_wrong_parameter_of_a_part_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"data\.parts\.arithmetic\.difficlty.*did you mean 'difficulty'"):
        check_targets(asked("data=mix", "data.parts.arithmetic.difficlty=3"))


def test_long_prompts_are_dropped_and_counted_and_no_more_held_out_rows_read_than_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from grpo_lab.config.model import location
    from grpo_lab.worker.data import load_data

    config = asked(
        "data=custom",
        "data._target_=tests.data.test_data_mix.short_and_long",
        "data.max_prompt_tokens=40",
        "eval.problems=8",
    )
    run = Run(tmp_path)
    store.write_json(run.outcome, {"startup_s": 1.0})
    training, held_out = load_data(config, location(config.model), run)
    assert training["solution"][:] == [str(number) for number in range(100) if number % 3]
    assert held_out is not None
    assert held_out["solution"][:] == ["1", "2", "4", "5", "7", "8", "10", "11"]
    assert "data.max_prompt_tokens=40: 34 of 100 train rows dropped" in capsys.readouterr().out
    assert store.read_json(run.outcome) == {
        "startup_s": 1.0,
        "data": {"train": {"rows": 66, "too_long": 34}, "test": {"rows": 8, "too_long": 4}},
    }


def test_a_mix_with_own_files_trains(runs: Path, tmp_path: Path) -> None:
    rows = [
        {"q": f"{number}+1=?", "a": number + 1, "note": "long " * (500 if number < 9 else 0)} for number in range(99)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["+data@data.parts.own=jsonl", f"data.parts.own.path={tmp_path}/own.jsonl", "data.parts.own.held_out=0.3"]
    columns = ["data.parts.own.columns={prompt: q, solution: a}", "data.parts.own.system_prompt=plain"]
    asked_for = ["data=mix", *own, *columns, "~data@data.parts.countdown", "data.max_prompt_tokens=60"]
    ended = cli(*SHORT, "grpo.max_steps=1", "eval.problems=16", *asked_for, f"runs_dir={runs}", "name=mixed")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = Run(runs / "mixed")
    prompts = {row["prompt"][-1]["content"] for row in pyarrow.parquet.read_table(run.completions).to_pylist()}
    assert len(prompts) == 4
    assert store.read_json(run.result)["metrics"]["accuracy_after"]["n"] == 16
    assert "train rows dropped" in run.worker_log.read_text()
