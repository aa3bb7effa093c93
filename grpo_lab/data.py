"""Data sets: each is one function `f(split, *, ...)` whose rows have `prompt` (chat messages) and `solution`.

`split` is "train" or "test". A wrong request raises ValueError or FileNotFoundError with one line that names
the value and the way out.
"""

import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets  # type: ignore[import-untyped]

SPLITS = ("train", "test")
TEST_SHARE = 10  # one arithmetic problem in ten is a test problem
PATIENCE = 10_000  # draws in a row without a new problem before a level counts as used up

Row = dict[str, Any]


class Level(NamedTuple):
    """The problems of one difficulty: `terms` operands in 0..`largest`, any of `operators` between them."""

    terms: int
    operators: str
    largest: int


LEVELS = {
    1: Level(2, "+", 99),
    2: Level(2, "+-", 99),
    3: Level(3, "+-", 99),
    4: Level(2, "+-*", 99),
    5: Level(3, "+-*", 99),
}


class Problem(NamedTuple):
    """An expression such as 3+4*5: `numbers` (3, 4, 5) and `operators` ("+", "*")."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]

    def __str__(self) -> str:
        pairs = zip(self.operators, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(f"{operator}{number}" for operator, number in pairs)


def arithmetic(
    split: str,
    *,
    seed: int,
    train_size: int,
    test_size: int,
    difficulty: int,
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """Distinct generated problems of one difficulty (see LEVELS); the same arguments give the same rows.

    Whether a problem belongs to train or test depends on the problem alone, so the splits are disjoint across
    all seeds: a model trained on any train split has seen no test problem.
    """
    _check_split(split)
    if difficulty not in LEVELS:
        raise ValueError(f"difficulty={difficulty!r} is not one of {', '.join(map(str, LEVELS))}")
    size = train_size if split == "train" else test_size
    if size < 1:
        raise ValueError(f"{split}_size={size} gives no rows; use 1 or more")
    problems = _distinct_problems(split, seed=seed, size=size, difficulty=difficulty)
    return datasets.Dataset.from_list([_arithmetic_row(problem, system_prompt) for problem in problems])


def problem_stream(split: str, *, seed: int, difficulty: int) -> Iterator[Problem]:
    """Endless problems of one split and difficulty, repeats included; the order depends on every argument."""
    level = LEVELS[difficulty]
    rng = random.Random(f"{split}/{seed}/{difficulty}")
    while True:
        numbers = tuple(rng.randint(0, level.largest) for _ in range(level.terms))
        operators = tuple(rng.choice(level.operators) for _ in range(level.terms - 1))
        problem = Problem(numbers, operators)
        if _split_of(problem) == split:
            yield problem


def question(problem: Problem) -> str:
    return f"{problem}=?"


def steps(problem: Problem) -> list[tuple[Problem, int]]:
    """The two-term calculations that solve a problem, products first; the last value is the solution."""
    numbers, operators = list(problem.numbers), list(problem.operators)
    done = []
    while operators:
        at = operators.index("*") if "*" in operators else 0
        step = Problem((numbers[at], numbers[at + 1]), (operators[at],))
        done.append((step, _calculate(numbers[at], operators[at], numbers[at + 1])))
        numbers[at : at + 2] = [done[-1][1]]
        del operators[at]
    return done


def gsm8k(
    split: str,
    *,
    path: str | None,
    hub_id: str = "openai/gsm8k",
    hub_config: str = "main",
    system_prompt: str | None = None,
    limit: int | None = None,
) -> datasets.Dataset:
    """GSM8K from `path`/train.jsonl and `path`/test.jsonl, or from the Hub where `path` is None.

    `limit` keeps the first rows of each split. The solution is what follows `####`, without thousands commas.
    """
    _check_split(split)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} gives no rows; use 1 or more, or null for all rows")
    located = _jsonl_rows(Path(path).expanduser(), split) if path else _hub_rows(hub_id, hub_config, split)
    rows = [_gsm8k_row(row, where, system_prompt) for where, row in located[:limit]]
    return datasets.Dataset.from_list(rows)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")


def _messages(question: str, system_prompt: str | None) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


def _split_of(problem: Problem) -> str:
    return "test" if zlib.crc32(str(problem).encode()) % TEST_SHARE == 0 else "train"


def _distinct_problems(split: str, *, seed: int, size: int, difficulty: int) -> list[Problem]:
    found: dict[Problem, None] = {}
    misses = 0
    for problem in problem_stream(split, seed=seed, difficulty=difficulty):
        misses = misses + 1 if problem in found else 0
        found[problem] = None
        if len(found) == size:
            return list(found)
        if misses > PATIENCE:
            break
    raise ValueError(
        f"{split}_size={size} is more than difficulty={difficulty} has: it found {len(found)} distinct "
        f"{split} problems; lower the size or raise the difficulty"
    )


def _calculate(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _arithmetic_row(problem: Problem, system_prompt: str | None) -> Row:
    return {
        "prompt": _messages(question(problem), system_prompt),
        "solution": str(steps(problem)[-1][1]),
        "question": question(problem),
    }


def _gsm8k_row(row: Row, where: str, system_prompt: str | None) -> Row:
    for column in ("question", "answer"):
        if not isinstance(row.get(column), str):
            raise ValueError(f"{where}: no text under {column!r}; a GSM8K row has 'question' and 'answer'")
    gold = row["answer"].rpartition("####")[2] if "####" in row["answer"] else ""
    solution = gold.strip().replace(",", "")
    if not solution:
        raise ValueError(f"{where}: no final answer after '####'; end 'answer' with '#### <number>'")
    return {
        "prompt": _messages(row["question"], system_prompt),
        "solution": solution,
        "question": row["question"],
    }


def _jsonl_rows(folder: Path, split: str) -> list[tuple[str, Row]]:
    """The rows of a JSON-lines file, each with `file:line` for messages; blank lines are skipped."""
    file = folder / f"{split}.jsonl"
    if not folder.is_dir():
        raise FileNotFoundError(f"path={str(folder)!r} is no folder; name one with train.jsonl and test.jsonl")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the folder must hold train.jsonl and test.jsonl")
    lines = _text(file).split("\n")  # not splitlines(), which also cuts at U+2028 inside a JSON string
    placed = [(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    rows = [(where, _json_row(line, where)) for where, line in placed]
    if not rows:
        raise ValueError(f"{file} is empty; it must hold one JSON object a line with 'question' and 'answer'")
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _json_row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: malformed JSON ({error.msg}); each line is one object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON {type(row).__name__}, not an object with 'question' and 'answer'")
    return row


def _hub_rows(hub_id: str, hub_config: str, split: str) -> list[tuple[str, Row]]:
    try:
        rows = datasets.load_dataset(hub_id, hub_config, split=split)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"hub_id={hub_id!r} could not be loaded ({str(error).splitlines()[0]}); without network, "
            "give path=<folder with train.jsonl and test.jsonl>"
        ) from error
    return [(f"{hub_id} {split} row {i}", row) for i, row in enumerate(rows)]
