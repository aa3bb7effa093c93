"""The data sets: what their rows hold, that train and test stay apart, and what a wrong request is told."""

import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lab import data

ROOT = Path(__file__).resolve().parents[1]
GSM8K = Path(os.environ.get("GRPO_LAB_GSM8K", ROOT.parent / "shared" / "data" / "gsm8k"))
GOOD = {"question": "How many?", "answer": "Two.\n#### 2"}


def arithmetic(split: str, **changes: Any) -> Any:
    return data.arithmetic(split, **{"seed": 0, "train_size": 400, "test_size": 100, "difficulty": 2} | changes)


@contextmanager
def refused(kind: type[Exception], words: list[str]) -> Iterator[None]:
    """The block raises `kind` with one line that holds every word."""
    with pytest.raises(kind, match=r"\A.+\Z") as error:
        yield
    assert [word for word in words if word not in str(error.value)] == []


def write_gsm8k(folder: Path, *lines: str) -> str:
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder)


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
    assert arithmetic("train").to_list() == arithmetic("train").to_list()
    assert arithmetic("train")["question"] != arithmetic("train", seed=1)["question"]


def test_a_smaller_size_is_the_beginning_of_a_larger_one() -> None:
    assert arithmetic("test", test_size=20)["question"][:] == arithmetic("test")["question"][:20]


def test_arithmetic_needs_no_global_random_state() -> None:
    import random

    random.seed(1)
    before = random.getstate()
    arithmetic("train")
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"difficulty": 9}, ["difficulty=9", "1, 2, 3, 4, 5"]),
        ({"train_size": 0}, ["train_size=0", "1 or more"]),
        ({"train_size": 10_000, "difficulty": 1}, ["train_size=10000", "difficulty=1", "lower the size"]),
    ],
)
def test_arithmetic_refuses_in_one_line(changes: dict[str, int], words: list[str]) -> None:
    with refused(ValueError, words):
        arithmetic("train", **changes)


def test_both_refuse_an_unknown_split(tmp_path: Path) -> None:
    for load in (lambda: arithmetic("dev"), lambda: data.gsm8k("dev", path=str(tmp_path))):
        with refused(ValueError, ["'dev'", "train, test"]):
            load()


def test_system_prompt_comes_first_when_given(tmp_path: Path) -> None:
    path = write_gsm8k(tmp_path, json.dumps(GOOD))
    for rows in (
        arithmetic("train", system_prompt="Think."),
        data.gsm8k("train", path=path, system_prompt="Think."),
    ):
        assert rows[0]["prompt"][0] == {"role": "system", "content": "Think."}
        assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]


@pytest.mark.parametrize(("split", "count", "golds"), [("train", 7473, ["72", "10", "5"]), ("test", 1319, ["18", "3"])])
def test_real_gsm8k(split: str, count: int, golds: list[str]) -> None:
    rows = data.gsm8k(split, path=str(GSM8K))
    assert len(rows) == count
    assert rows["solution"][: len(golds)] == golds
    assert all(float(gold) == int(gold) for gold in rows["solution"])


def test_gsm8k_takes_thousands_commas_out_and_limits(tmp_path: Path) -> None:
    rich = {"question": "How much?", "answer": "1,000 more than 69,000.\n#### 70,000 "}
    path = write_gsm8k(tmp_path, json.dumps(rich), "", json.dumps(GOOD))
    assert data.gsm8k("train", path=path)["solution"][:] == ["70000", "2"]
    assert data.gsm8k("train", path=path, limit=1)["solution"][:] == ["70000"]
    with pytest.raises(ValueError, match="limit=0"):
        data.gsm8k("train", path=path, limit=0)


def test_gsm8k_keeps_a_line_separator_inside_text(tmp_path: Path) -> None:
    row = GOOD | {"question": "One\u2028two"}
    path = write_gsm8k(tmp_path, json.dumps(row, ensure_ascii=False))
    assert data.gsm8k("train", path=path)["question"][:] == ["One\u2028two"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["train.jsonl", "empty"]),
        ([json.dumps(GOOD), "{"], ["train.jsonl:2", "malformed JSON"]),
        (["[1]"], ["train.jsonl:1", "list"]),
        ([json.dumps({"question": "How many?"})], ["train.jsonl:1", "'answer'"]),
        ([json.dumps({"answer": "#### 2"})], ["train.jsonl:1", "'question'"]),
        ([json.dumps(GOOD | {"answer": "Two."})], ["train.jsonl:1", "####"]),
        ([json.dumps(GOOD | {"answer": "Two.\n####"})], ["train.jsonl:1", "####"]),
    ],
)
def test_gsm8k_names_the_bad_row(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    with refused(ValueError, words):
        data.gsm8k("train", path=write_gsm8k(tmp_path, *lines))


def test_gsm8k_names_a_missing_folder_or_file(tmp_path: Path) -> None:
    with refused(FileNotFoundError, ["nowhere", "train.jsonl and test.jsonl"]):
        data.gsm8k("train", path=str(tmp_path / "nowhere"))
    with refused(FileNotFoundError, ["test.jsonl is missing"]):
        data.gsm8k("test", path=write_gsm8k(tmp_path, json.dumps(GOOD)))


def test_gsm8k_refuses_what_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with refused(ValueError, ["UTF-8"]):
        data.gsm8k("train", path=str(tmp_path))


def test_gsm8k_from_an_unreachable_hub_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nsecond line")

    monkeypatch.setattr(data.datasets, "load_dataset", unreachable)
    with refused(FileNotFoundError, ["openai/gsm8k", "path="]):
        data.gsm8k("train", path=None)


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k"])
def test_the_yaml_names_every_parameter(name: str) -> None:
    shipped = yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert shipped.pop("_target_") == f"grpo_lab.data.{name}"
    assert list(shipped) == list(inspect.signature(getattr(data, name)).parameters)[1:]


def test_the_shipped_arithmetic_defaults_load() -> None:
    shipped = yaml.safe_load((ROOT / "conf" / "data" / "arithmetic.yaml").read_text(encoding="utf-8"))
    shipped.pop("_target_")
    for split in data.SPLITS:
        assert len(data.arithmetic(split, **shipped)) == shipped[f"{split}_size"]
