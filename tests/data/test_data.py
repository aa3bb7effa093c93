"""Generated data, system prompts and the shipped files: what rows hold, train and test apart, what is refused."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lab import data
from grpo_lab.conductor.preflight import check_targets
from grpo_lab.config.places import CONF
from grpo_lab.planner.train import make_plan
from tests.planner.test_plan import ON_CPU, PORTS, asked

NEEDED = {
    "custom": ["data._target_=tests.rows.empty"],
    "jsonl": ["data.path=rows.jsonl"],
    "parquet": ["data.path=rows.parquet"],
}
"""What a shipped choice leaves to the user."""
SHIPPED = sorted(file.stem for file in (CONF / "data").glob("*.yaml"))


def arithmetic(split: str, **changes: Any) -> Any:
    return data.arithmetic(split, **{"seed": 0, "train_size": 400, "test_size": 100, "difficulty": 2} | changes)


def countdown(split: str, **changes: Any) -> Any:
    return data.countdown(split, **{"seed": 0, "train_size": 400, "test_size": 100} | changes)


@contextmanager
def refused(kind: type[Exception], words: list[str]) -> Iterator[None]:
    """The block raises `kind` with one line that holds every word."""
    with pytest.raises(kind, match=r"\A.+\Z") as error:
        yield
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("difficulty", data.LEVELS)
def test_arithmetic_rows_are_distinct_and_right(difficulty: int) -> None:
    rows = arithmetic("train", difficulty=difficulty)
    assert len(set(rows["question"])) == len(rows) == 400
    for row in rows:
        assert row["prompt"] == [{"role": "user", "content": row["question"]}]
        assert row["solution"] == str(eval(row["question"].removesuffix("=?")))


def test_train_and_test_never_overlap_over_seeds_and_difficulties() -> None:
    cases = [(seed, difficulty) for seed in range(4) for difficulty in data.LEVELS]
    train = {q for seed, d in cases for q in arithmetic("train", seed=seed, difficulty=d)["question"]}
    test = {q for seed, d in cases for q in arithmetic("test", seed=seed, difficulty=d)["question"]}
    assert len(test) > 1000
    assert not train & test


def test_the_seed_picks_the_problems() -> None:
    for generated in (arithmetic, countdown):
        assert generated("train").to_list() == generated("train").to_list()
        assert generated("train")["prompt"] != generated("train", seed=1)["prompt"]


@pytest.mark.parametrize(
    ("split", "digest"),
    [
        ("train", "771c553abd31c431e7055637a3325cfe262df696e3517793389a30985762027c"),
        ("test", "0546a7b2fdb5cd02ea208da110efdddbd8d4385db105da2127b646932e4aed63"),
    ],
)
def test_the_default_rows_are_those_of_the_published_runs(split: str, digest: str) -> None:
    shipped = yaml.safe_load((CONF / "data" / "arithmetic.yaml").read_text(encoding="utf-8"))
    shipped |= {"system_prompt": None}  # what auto is for the embedded policy
    del shipped["_target_"]
    rows = data.arithmetic(split, **shipped)
    assert len(rows) == shipped[f"{split}_size"]
    assert hashlib.sha256(json.dumps(rows.to_list(), sort_keys=True).encode()).hexdigest() == digest


def test_a_smaller_size_is_the_beginning_of_a_larger_one() -> None:
    assert arithmetic("test", test_size=20)["question"][:] == arithmetic("test")["question"][:20]


def test_generated_data_needs_no_global_random_state() -> None:
    random.seed(1)
    before = random.getstate()
    arithmetic("train")
    countdown("train")
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("numbers", "operators", "expected"),
    [
        ((7, 8), ("+",), ["7+8=15"]),
        ((3, 4, 5), ("+", "*"), ["4*5=20", "3+20=23"]),
        ((5, 9, 3), ("-", "-"), ["5-9=-4", "-4-3=-7"]),
        ((2, 3, 4), ("*", "*"), ["2*3=6", "6*4=24"]),
    ],
)
def test_steps_solve_products_first(numbers: tuple[int, ...], operators: tuple[str, ...], expected: list[str]) -> None:
    assert [f"{step}={value}" for step, value in data.steps(data.Problem(numbers, operators))] == expected


def test_every_countdown_solution_reaches_the_target_with_each_number_once() -> None:
    rows = countdown("train")
    assert {len(row["numbers"]) for row in rows} == {3, 4}
    assert len({(*row["numbers"], row["target"]) for row in rows}) == 400
    for row in rows:
        assert eval(row["solution"]) == row["target"]
        assert sorted(map(int, re.findall(r"\d+", row["solution"]))) == row["numbers"]
        assert str(row["numbers"]) in row["prompt"][0]["content"]
        assert f"equals {row['target']}." in row["prompt"][0]["content"]
        assert row["target"] not in row["numbers"]


def test_countdown_holds_out_what_no_seed_trains_on() -> None:
    few = {"sizes": [3], "largest": 20, "train_size": 300, "test_size": 60}
    train, test = (
        {(*row["numbers"], row["target"]) for seed in range(4) for row in countdown(split, seed=seed, **few)}
        for split in data.SPLITS
    )
    assert len(train) > 500
    assert not train & test


@pytest.mark.parametrize(
    ("generated", "changes", "words"),
    [
        (arithmetic, {"difficulty": 9}, ["difficulty=9", "1, 2, 3, 4, 5"]),
        (arithmetic, {"train_size": 0}, ["train_size=0", "1 or more"]),
        (arithmetic, {"train_size": 10_000, "difficulty": 1}, ["train_size=10000", "difficulty=1", "lower the size"]),
        (countdown, {"sizes": [1]}, ["sizes=[1]", "2 numbers or more"]),
        (countdown, {"sizes": [2], "largest": 9}, ["train_size=400", "raise largest="]),
    ],
)
def test_generated_data_refuses_in_one_line(generated: Any, changes: dict[str, Any], words: list[str]) -> None:
    with refused(ValueError, words):
        generated("train", **changes)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    for load in (lambda: arithmetic("dev"), lambda: data.gsm8k("dev", path=str(tmp_path))):
        with refused(ValueError, ["'dev'", "train, test"]):
            load()


@pytest.mark.parametrize(
    ("asked_for", "expected"),
    [
        ("r1", "<think> reasoning process here </think> <answer> answer here </answer>"),
        ("boxed", r"put your final answer within \boxed{}."),
        ("plain", "You are a helpful assistant."),
        ("Think first.", "Think first."),
    ],
)
def test_a_system_prompt_by_name_or_as_text(asked_for: str, expected: str) -> None:
    system, user = arithmetic("test", system_prompt=asked_for)[0]["prompt"]
    assert system["role"] == "system"
    assert expected in system["content"]
    assert user["role"] == "user"


def test_a_system_prompt_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("Be brief.\n\nBe right.\n", encoding="utf-8")
    (prompt, *_) = arithmetic("test", system_prompt=str(tmp_path / "mine.md"))["prompt"]
    assert prompt[0] == {"role": "system", "content": "Be brief.\n\nBe right."}


@pytest.mark.parametrize("none", [None, "none"])
def test_no_system_prompt(none: str | None) -> None:
    assert [message["role"] for message in arithmetic("test", system_prompt=none)[0]["prompt"]] == ["user"]


@pytest.mark.parametrize("odd", [3, [None], {"r1": 1}])
def test_a_system_prompt_that_is_no_text_is_refused(odd: Any) -> None:
    with pytest.raises(ValueError, match="a shipped prompt, none, a file, or a text"):
        arithmetic("test", system_prompt=odd)


def test_a_misspelt_system_prompt_is_no_text() -> None:
    with refused(FileNotFoundError, ["'boxd'", "boxed, plain, r1", "white space"]):
        arithmetic("test", system_prompt="boxd")


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "custom"])
def test_the_yaml_names_every_parameter(name: str) -> None:
    shipped = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert shipped.pop("_target_") == f"grpo_lab.data.{name}"
    given = {"parts" if key == "defaults" else key for key in shipped}
    assert given == set(list(inspect.signature(getattr(data, name)).parameters)[1:])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_choice_composes_and_plans(name: str) -> None:
    config = asked(f"data={name}", *NEEDED.get(name, []), "data.max_prompt_tokens=200")
    check_targets(config)
    assert make_plan(config, ON_CPU, folder=Path("runs/x"), ports=PORTS).batch.completions > 0


def test_parts_of_a_mix_are_chosen_added_and_left_out_on_the_command_line() -> None:
    parts = asked(
        "data=mix", "+data@data.parts.words=gsm8k", "data.parts.words.weight=0.7", "~data@data.parts.countdown"
    ).data["parts"]
    assert {name: (part["_target_"], part.get("weight")) for name, part in parts.items()} == {
        "arithmetic": ("grpo_lab.data.arithmetic", None),
        "words": ("grpo_lab.data.gsm8k", 0.7),
    }
