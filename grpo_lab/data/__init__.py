"""Data sets: each is one function `f(split, *, ...)` whose rows have `prompt` (chat messages) and `solution`.

`split` is "train" or "test". A wrong request raises ValueError or FileNotFoundError with one line that names
the value and the way out.

The published sets share their parameters. `path`: local files with the published columns instead of the Hub: a
folder laid out like a data set of the Hub (train.jsonl and test.jsonl will do), a file or a glob. `revision`: of the
hub data set. `train`, `test`: which rows, as `datasets` writes it: `train[:10%]`, `train[100:200]+validation`.
`system_prompt`: `r1`, `plain`, `boxed`, `none`, a file, or a text (what has white space in it).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets  # type: ignore[import-untyped]

from grpo_lab.data import mixing
from grpo_lab.data.problems import LEVELS, Problem, distinct, problem_stream, puzzle_stream, question, steps
from grpo_lab.data.prompts import messages, system_text
from grpo_lab.data.reading import SPLITS, Choice, check_split, read
from grpo_lab.data.tables import Source

__all__ = [
    "LEVELS",
    "SPLITS",
    "Problem",
    "aime24",
    "aime25",
    "arithmetic",
    "countdown",
    "deepmath",
    "gsm8k",
    "jsonl",
    "math",
    "math500",
    "mix",
    "numina",
    "parquet",
    "problem_stream",
    "question",
    "steps",
    "tldr",
]


def arithmetic(
    split: str,
    *,
    seed: int,
    train_size: int,
    test_size: int,
    difficulty: int,
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """Distinct generated sums of one difficulty; the same arguments give the same rows.

    Whether a problem belongs to train or test depends on the problem alone, so the splits are disjoint across
    all seeds: a model trained on any train split has seen no test problem. `difficulty` is one of LEVELS.
    """
    size = _size(split, train_size, test_size)
    if difficulty not in LEVELS:
        raise ValueError(f"difficulty={difficulty!r} is not one of {', '.join(map(str, LEVELS))}")
    problems = distinct(problem_stream(split, seed=seed, difficulty=difficulty), size)
    if len(problems) < size:
        raise ValueError(
            f"{split}_size={size} is more than difficulty={difficulty} has: it found {len(problems)} distinct"
            f" {split} problems; lower the size or raise the difficulty"
        )
    system = system_text(system_prompt)
    return datasets.Dataset.from_list(
        [
            {
                "prompt": messages(question(problem), system),
                "solution": str(steps(problem)[-1][1]),
                "question": question(problem),
            }
            for problem in problems
        ]
    )


def countdown(
    split: str,
    *,
    seed: int,
    train_size: int,
    test_size: int,
    sizes: Sequence[int] = (3, 4),
    largest: int = 99,
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """The numbers game: reach `target` from `numbers`, each used once; generated, every target can be reached.

    The solution is one expression that does it. `sizes`: how many numbers; `largest`: of numbers and targets. The
    splits are disjoint across all seeds, as those of arithmetic.
    """
    size = _size(split, train_size, test_size)
    if not sizes or min(sizes) < 2 or largest < 2:
        raise ValueError(f"sizes={list(sizes)} largest={largest}: a puzzle has 2 numbers or more, up to 2 or more")
    puzzles = distinct(puzzle_stream(split, seed=seed, sizes=sizes, largest=largest), size)
    if len(puzzles) < size:
        raise ValueError(
            f"{split}_size={size}: found {len(puzzles)} distinct puzzles; raise largest= or lower the size"
        )
    system = system_text(system_prompt)
    asked = (
        "Using the numbers {numbers}, write an expression that equals {target}. Use each number exactly once; the"
        " operations are +, -, *, / and parentheses."
    )
    return datasets.Dataset.from_list(
        [
            {
                "prompt": messages(asked.format(numbers=list(puzzle.numbers), target=puzzle.target), system),
                "solution": puzzle.solution,
                "numbers": list(puzzle.numbers),
                "target": puzzle.target,
            }
            for puzzle in puzzles
        ]
    )


def gsm8k(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "openai/gsm8k",
    hub_config: str | None = "main",
    revision: str | None = None,
    train: str | None = "train",
    test: str | None = "test",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """GSM8K, grade-school word problems (columns `question`, `answer`).

    The solution is what follows `####` in the answer, without thousands commas.
    """
    source = Source(path, hub_id, hub_config, revision)
    columns = {"prompt": "question", "solution": "answer"}
    return read(source, split, Choice(train, test), columns, system_prompt, gold=_after_hashes)


def math(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "DigitalLearningGmbH/MATH-lighteval",
    hub_config: str | None = "default",
    revision: str | None = None,
    train: str | None = "train",
    test: str | None = "test",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    r"""MATH of Hendrycks et al., competition problems of all subjects (columns `problem`, `solution`, `level`, `type`).

    The solution is the published one, worked out; accuracy compares what is boxed in it. `hub_config` narrows it to
    one subject, such as `algebra`. MATH-500 is part of this test split.
    """
    source = Source(path, hub_id, hub_config, revision)
    return read(source, split, Choice(train, test), {"prompt": "problem", "solution": "solution"}, system_prompt)


def math500(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "HuggingFaceH4/MATH-500",
    revision: str | None = None,
    train: str | None = None,
    test: str | None = "test",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """MATH-500, for evaluation (columns `problem`, `answer`, `subject`, `level`, `unique_id`).

    Refused as training data unless `train` says which rows.
    """
    source = Source(path, hub_id, revision=revision)
    return read(source, split, Choice(train, test), {"prompt": "problem", "solution": "answer"}, system_prompt)


def deepmath(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "trl-lib/DeepMath-103K",
    revision: str | None = None,
    train: str | None = "train",
    test: str | None = "test",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """DeepMath-103K as TRL's examples use it: hard problems with short answers (columns `prompt`, `solution`)."""
    source = Source(path, hub_id, revision=revision)
    return read(source, split, Choice(train, test), {"prompt": "prompt", "solution": "solution"}, system_prompt)


def numina(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "AI-MO/NuminaMath-TIR",
    revision: str | None = None,
    train: str | None = "train",
    test: str | None = "test",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    r"""NuminaMath-TIR, competition problems solved with Python (columns `problem`, `solution`).

    The solution is the published one, worked out; accuracy compares what is boxed in it and leaves problems without
    one out of the reward.
    """
    source = Source(path, hub_id, revision=revision)
    columns = {"prompt": "problem", "solution": "solution"}
    return read(source, split, Choice(train, test), columns, system_prompt, drop=("messages",))


def tldr(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "trl-lib/tldr",
    revision: str | None = None,
    train: str | None = "train",
    test: str | None = "test",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """TL;DR, Reddit posts to summarise (columns `prompt`, `completion`); for rewards that need no right answer.

    The published summary is the column `reference`; there is no solution, so nothing is evaluated for accuracy.
    """
    source = Source(path, hub_id, revision=revision)
    return read(source, split, Choice(train, test), {"prompt": "prompt", "reference": "completion"}, system_prompt)


def aime24(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "HuggingFaceH4/aime_2024",
    revision: str | None = None,
    train: str | None = None,
    test: str | None = "train",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """AIME 2024, 30 problems for evaluation (columns `problem`, `answer`); the Hub calls its only split `train`.

    Refused as training data unless `train` says which rows.
    """
    source = Source(path, hub_id, revision=revision)
    return read(source, split, Choice(train, test), {"prompt": "problem", "solution": "answer"}, system_prompt)


def aime25(
    split: str,
    *,
    path: str | None = None,
    hub_id: str = "math-ai/aime25",
    revision: str | None = None,
    train: str | None = None,
    test: str | None = "test",
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """AIME 2025, 30 problems for evaluation (columns `problem`, `answer`).

    Refused as training data unless `train` says which rows.
    """
    source = Source(path, hub_id, revision=revision)
    return read(source, split, Choice(train, test), {"prompt": "problem", "solution": "answer"}, system_prompt)


def jsonl(
    split: str,
    *,
    path: str,
    columns: Mapping[str, str | None],
    train: str | None = "train",
    test: str | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """JSON-lines files of your own: one file, a glob, or a folder with train.jsonl and test.jsonl.

    `columns` maps our names to yours: `prompt` (a text or a list of chat messages), `solution` (null for none), and
    any other that a reward wants under another name. Without a test split, `held_out` of the rows, picked by `seed`,
    are kept from training; equal prompts stay together.
    """
    return read(Source(path), split, Choice(train, test, held_out, seed), columns, system_prompt)


def parquet(
    split: str,
    *,
    path: str,
    columns: Mapping[str, str | None],
    train: str | None = "train",
    test: str | None = None,
    held_out: float = 0.05,
    seed: int = 0,
    system_prompt: str | None = None,
) -> datasets.Dataset:
    """Parquet files of your own: one file, a glob, or a folder with train and test files.

    The parameters are those of jsonl.
    """
    return read(Source(path), split, Choice(train, test, held_out, seed), columns, system_prompt)


def mix(
    split: str,
    *,
    parts: Mapping[str, Mapping[str, Any]],
    seed: int = 0,
    stopping_strategy: str = "first_exhausted",
    drop: Sequence[str] = (),
) -> datasets.Dataset:
    """Rows of several data sets in one stream, each drawn as often as its weight says, in an order given by `seed`.

    `parts`: name -> a data set's own settings with its `_target_`, and `weight`. Train rows are mixed with train rows
    and test rows with test rows. The column `source` names the part; columns that only one part has are null in the
    others, those in `drop` are left out. It ends when the first part is used up; with `stopping_strategy`
    `all_exhausted` smaller parts begin again until every row has been drawn.
    """
    check_split(split)
    return mixing.mix(split, parts, seed, stopping_strategy, drop)


def _size(split: str, train_size: int, test_size: int) -> int:
    check_split(split)
    size = train_size if split == "train" else test_size
    if size < 1:
        raise ValueError(f"{split}_size={size} gives no rows; use 1 or more")
    return size


def _after_hashes(answer: str) -> str:
    solution = answer.rpartition("####")[2].strip().replace(",", "") if "####" in answer else ""
    if not solution:
        raise ValueError("no final answer after '####'; end 'answer' with '#### <number>'")
    return solution
