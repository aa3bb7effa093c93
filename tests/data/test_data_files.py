"""Data sets from files and the Hub: published columns, splits and slices, held-out rows, what bad rows are told."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from grpo_lab import data
from grpo_lab.rewards import accuracy
from tests.conftest import GSM8K
from tests.data.test_data import refused
from tests.planner.test_plan import asked

GOOD = {"question": "How many?", "answer": "Two.\n#### 2"}
COLUMNS = {"prompt": "question", "solution": "answer"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(file: Path, *rows: Any) -> Path:
    """The rows as a JSON-lines or a Parquet file, by the file's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    else:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def own(split: str, path: Path, **changes: Any) -> datasets.Dataset:
    return data.jsonl(split, path=str(path), **{"columns": COLUMNS} | changes)


def numbered(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {number}?", "answer": str(number)} for number in range(count)]


SOLVED = r"Add them: $1+1=2$. The answer is $\boxed{2}$."
PUBLISHED: list[tuple[str, str, dict[str, Any], str | None, set[str]]] = [
    ("gsm8k", "train.jsonl", {"question": "1+1?", "answer": "Add <<1+1=2>>.\n#### 2"}, "2", set()),
    (
        "math",
        "data/train-00000-of-00001.parquet",
        {"problem": "1+1?", "level": "Level 1", "solution": SOLVED, "type": "Algebra"},
        "2",
        {"level", "type"},
    ),
    (
        "math500",
        "test.jsonl",
        {
            "problem": "1+1?",
            "solution": SOLVED,
            "answer": "2",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        "2",
        {"subject", "level", "unique_id"},
    ),
    (
        "deepmath",
        "data/train-00000-of-00001.parquet",
        {"prompt": [{"role": "user", "content": "1+1?"}], "solution": "2"},
        "2",
        set(),
    ),
    (
        "numina",
        "data/train-00000-of-00001.parquet",
        {"problem": "1+1?", "solution": SOLVED, "messages": [{"role": "user", "content": "1+1?"}]},
        "2",
        set(),
    ),
    (
        "tldr",
        "data/train-00000-of-00001.parquet",
        {"prompt": "1+1?", "completion": " Two."},
        None,
        {"reference"},
    ),
    (
        "aime24",
        "data/train-00000-of-00001.parquet",
        {"id": 60, "problem": "1+1?", "solution": SOLVED, "answer": "2", "url": "https://x", "year": "2024"},
        "2",
        {"id", "url", "year"},
    ),
    ("aime25", "test.jsonl", {"problem": "1+1?", "answer": "2", "id": "0"}, "2", {"id"}),
]
"""Data set, file of its layout on the Hub, a row of the published columns, the final answer, columns kept."""


@pytest.mark.parametrize(("name", "file", "row", "answer", "kept"), PUBLISHED, ids=[case[0] for case in PUBLISHED])
def test_a_published_set_from_local_files(
    name: str, file: str, row: dict[str, Any], answer: str | None, kept: set[str], tmp_path: Path
) -> None:
    write(tmp_path / file, row)
    settings = asked(f"data={name}", f"data.path={tmp_path}", "data.system_prompt=Think first.").data
    split = "train" if settings["train"] else "test"
    (one,) = getattr(data, settings.pop("_target_").rpartition(".")[2])(split, **settings)
    system = {"role": "system", "content": "Think first."}
    assert one["prompt"] == [system, {"role": "user", "content": "1+1?"}]
    assert set(one) == kept | ({"prompt", "solution"} if answer else {"prompt"})
    if answer:
        completions = [rf"<think></think><answer>{answer}</answer>", r"\boxed{3}"]
        assert accuracy(completions=completions, solution=[one["solution"]] * 2) == [1.0, 0.0]


def test_a_copy_of_a_hub_folder_with_its_card(tmp_path: Path) -> None:
    """As `hf download openai/gsm8k --repo-type dataset` leaves it: one folder for each configuration."""
    for config in ("main", "socratic"):
        for split in data.SPLITS:
            row = GOOD | {"question": f"{config} {split}"}
            write(tmp_path / config / f"{split}-00000-of-00001.parquet", row)
    configs = "\n".join(
        f"- config_name: {config}\n  data_files:\n"
        f"  - split: train\n    path: {config}/train-*\n  - split: test\n    path: {config}/test-*"
        for config in ("main", "socratic")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n# GSM8K\n", encoding="utf-8")
    assert data.gsm8k("test", path=str(tmp_path))[0]["prompt"][0]["content"] == "main test"
    assert data.gsm8k("train", path=str(tmp_path), hub_config="socratic")[0]["prompt"][0]["content"] == "socratic train"


@pytest.mark.parametrize(("split", "count", "golds"), [("train", 7473, ["72", "10", "5"]), ("test", 1319, ["18", "3"])])
def test_real_gsm8k_needs_no_network(split: str, count: int, golds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    rows = data.gsm8k(split, path=str(GSM8K))
    assert len(rows) == count
    assert rows["solution"][: len(golds)] == golds
    assert all(float(gold) == int(gold) for gold in rows["solution"])


def test_splits_and_slices() -> None:
    def real(split: str = "train", **changes: str) -> list[str]:
        return [prompt[0]["content"] for prompt in data.gsm8k(split, path=str(GSM8K), **changes)["prompt"]]

    everything = real()
    assert real(train="train[:10%]") == everything[:747]
    assert real(train="train[100:200]") == everything[100:200]
    assert real(train="train[:2]+test[:1]", test="test[1:]") == everything[:2] + real("test")[:1]
    assert real("test", train="train[10:]", test="train[:10]") == everything[:10]


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("trian", "test", ["'trian'", "'train'", "'test'"]),
        ("train[:", "test", ["'train[:'"]),
        ("train[5:]", "test", ["'train[5:]'", "takes no rows", "train with 4 rows"]),
    ],
)
def test_a_wrong_expression_is_refused(train: str, test: str, words: list[str], tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *[GOOD] * 4)
    write(tmp_path / "test.jsonl", GOOD)
    with refused(ValueError, words):
        data.gsm8k("train", path=str(tmp_path), train=train, test=test)


def test_testing_on_rows_that_are_trained_on_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *[GOOD] * 10)
    with refused(ValueError, ["train=train[:60%]", "test=train[50%:]", "share rows"]):
        data.gsm8k("test", path=str(tmp_path), train="train[:60%]", test="train[50%:]")
    assert len(data.gsm8k("test", path=str(tmp_path), train="train[:60%]", test="train[60%:]")) == 4


def test_evaluation_sets_are_trained_on_only_when_told(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", *[{"problem": f"{number}?", "answer": str(number)} for number in range(4)])
    path = str(tmp_path)
    assert len(data.aime25("test", path=path)) == 4
    with refused(ValueError, ["is for evaluation", "train=test[:50%] test=test[50%:]"]):
        data.aime25("train", path=path)
    halves = {"train": "test[:50%]", "test": "test[50%:]"}
    assert data.aime25("train", path=path, **halves)["solution"][:] == ["0", "1"]
    assert data.aime25("test", path=path, **halves)["solution"][:] == ["2", "3"]


def test_held_out_rows_are_disjoint_seeded_and_of_the_size_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *numbered(200))

    def golds(split: str, **changes: Any) -> set[str]:
        return set(own(split, path, **{"held_out": 0.1} | changes)["solution"])

    assert len(golds("test")) == 20
    assert golds("train") | golds("test") == {str(number) for number in range(200)}
    assert not golds("train") & golds("test")
    assert golds("test") == golds("test", system_prompt="boxed") != golds("test", seed=1)
    assert not golds("train", seed=1) & golds("test", seed=1)
    assert len(golds("test", train="train[:50]")) == 5


def test_equal_prompts_are_held_out_together(tmp_path: Path) -> None:
    rows = numbered(40)
    path = write(tmp_path / "rows.jsonl", *rows, *rows, *rows)
    train, test = (own(split, path, held_out=0.2)["solution"][:] for split in data.SPLITS)
    assert not set(train) & set(test)
    assert len(test) == 3 * len(set(test)) == 24


def test_a_test_split_of_the_source_is_held_out_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *numbered(9))
    write(tmp_path / "test.jsonl", GOOD)
    assert len(own("train", tmp_path)) == 9
    assert own("test", tmp_path)["solution"][:] == [GOOD["answer"]]


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        (20, {"held_out": 5}, ["held_out=5", "between 0 and 1"]),
        (1, {}, ["held_out=0.05", "no rows to train"]),
        (2, {"columns": {"prompt": None, "solution": "answer"}}, ["columns.prompt"]),
        (2, {"columns": COLUMNS | {"solution": "gold"}}, ["rows.jsonl:1", "'gold'", "question, answer"]),
    ],
)
def test_own_files_refuse_a_wrong_request(rows: int, changes: Any, words: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *numbered(rows))
    with refused(ValueError, words):
        own("train", path, **changes)


def test_own_rows_may_hold_messages_numbers_and_further_columns(tmp_path: Path) -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}
    rows = [
        {"chat": [user], "gold": 2, "nums": [1, 1], "note": "a"},
        {"chat": [system, user], "gold": 3, "nums": [1, 2], "note": "b"},
    ]
    columns = {"prompt": "chat", "solution": "gold", "numbers": "nums"}
    for name, load in (("rows.jsonl", data.jsonl), ("rows.parquet", data.parquet)):
        path = write(tmp_path / name, *rows)
        one, other = load("train", path=str(path), columns=columns, system_prompt="plain", test="train[:0]")
        assert one["prompt"] == [{"role": "system", "content": "You are a helpful assistant."}, user]
        assert other["prompt"] == [system, user]
        assert (one["solution"], one["numbers"], one["note"]) == ("2", [1, 1], "a")
        assert set(one) == {"prompt", "solution", "numbers", "note"}


def test_own_rows_need_no_solution(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *numbered(30))
    rows = own("train", path, columns={"prompt": "question", "solution": None})
    assert set(rows.column_names) == {"prompt", "answer"}


def test_a_pattern_takes_all_its_files_and_a_bad_row_is_found_in_the_second(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *numbered(30))
    second = write(tmp_path / "b.jsonl", *numbered(3), "", {"question": "", "answer": "1"})
    with refused(ValueError, [f"{second}:5", "the prompt is ''"]):
        own("train", tmp_path / "*.jsonl")
    with refused(ValueError, [f"{second}:5"]):
        own("train", tmp_path / "*.jsonl", train="train[20:]")
    assert len(own("train", tmp_path / "*.jsonl", train="train[:33]", test="train[33:]")) == 33


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", *numbered(3), {"question": "Why?", "answer": None})
    with refused(ValueError, ["rows.parquet row 4", "'answer'", "None"]):
        data.parquet("train", path=str(path), columns=COLUMNS)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["train.jsonl", "empty"]),
        ([GOOD, "{"], ["train.jsonl:2", "malformed JSON"]),
        ([GOOD, "", "[1]"], ["train.jsonl:3", "list"]),
        (["[1]"], ["train.jsonl:1", "list"]),
        ([{"question": "How many?"}], ["train.jsonl:1", "'answer'"]),
        ([GOOD, {"question": "How many?"}], ["train.jsonl:2", "'answer'", "None"]),
        ([GOOD, {"answer": "#### 2"}], ["train.jsonl:2", "the prompt is None"]),
        ([GOOD | {"answer": "Two."}], ["train.jsonl:1", "####"]),
        ([GOOD, "", GOOD | {"answer": "Two.\n####"}], ["train.jsonl:3", "####"]),
        ([GOOD | {"question": [{"role": "user"}]}], ["train.jsonl:1", "'role' and 'content'"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, lines: list[Any], words: list[str]) -> None:
    write(tmp_path / "train.jsonl", *lines)
    with refused(ValueError, words):
        data.gsm8k("train", path=str(tmp_path))


def test_what_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(
        b'{"question": "?", "answer": "#### 1"}\n{"question": "\xff", "answer": "#### 1"}'
    )
    with refused(ValueError, ["train.jsonl:2", "UTF-8"]):
        data.gsm8k("train", path=str(tmp_path))


def test_text_keeps_its_line_separators_and_a_gold_loses_its_commas(tmp_path: Path) -> None:
    rich = {"question": "One\u2028two", "answer": "1,000 more than 69,000.\n#### 70,000 "}
    write(tmp_path / "train.jsonl", rich, "", GOOD)
    rows = data.gsm8k("train", path=str(tmp_path))
    assert rows["solution"][:] == ["70000", "2"]
    assert rows[0]["prompt"][0]["content"] == "One\u2028two"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with refused(FileNotFoundError, ["nowhere", "train.jsonl and test.jsonl"]):
        data.gsm8k("train", path=str(tmp_path / "nowhere"))
    with refused(FileNotFoundError, [str(tmp_path), "no data files"]):
        data.gsm8k("train", path=str(tmp_path))
    write(tmp_path / "train.jsonl", GOOD)
    with refused(ValueError, ["'test'", "'train'"]):
        data.gsm8k("test", path=str(tmp_path))
    (tmp_path / "rows.txt").touch()
    with refused(ValueError, ["rows.txt", ".jsonl, .json, .parquet"]):
        own("train", tmp_path / "rows.txt")


@pytest.mark.parametrize(
    ("path", "words"), [(None, "path= is needed"), ("", "path= is needed"), (3, "path=3 is no text")]
)
def test_a_path_that_is_none_is_refused(path: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        data.jsonl("train", path=path, columns=COLUMNS)


def test_a_changed_file_and_a_changed_prompt_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.")
    write(tmp_path / "train.jsonl", GOOD)
    asked_for = {"path": str(tmp_path), "system_prompt": str(tmp_path / "system.txt")}
    assert data.gsm8k("train", **asked_for)["solution"][:] == ["2"]
    write(tmp_path / "train.jsonl", GOOD | {"answer": "#### 3"})
    (tmp_path / "system.txt").write_text("Be right.")
    (row,) = data.gsm8k("train", **asked_for)
    assert row["solution"] == "3"
    assert row["prompt"][0]["content"] == "Be right."


def test_an_unreachable_hub_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with refused(FileNotFoundError, ["openai/gsm8k", "path="]):
        data.gsm8k("train", path=None)


def test_the_hub_gets_id_configuration_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[Any] = []

    def builder(hub_id: str, config: str | None, revision: str | None) -> None:
        wanted.append((hub_id, config, revision))
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    for load in (data.gsm8k, data.math, data.aime24):
        with pytest.raises(FileNotFoundError):
            load("test", revision="abc")
    assert wanted == [
        ("openai/gsm8k", "main", "abc"),
        ("DigitalLearningGmbH/MATH-lighteval", "default", "abc"),
        ("HuggingFaceH4/aime_2024", None, "abc"),
    ]
