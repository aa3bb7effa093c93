"""From files or the Hub to prompts: the one way of every data set that is not generated.

Rows stay in Arrow files that `datasets` caches and maps into memory; no list of all rows is ever made.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np

from grpo_lab.data.prompts import messages, system_text
from grpo_lab.data.tables import Source, Table

SPLITS = ("train", "test")
PROMPT = [{"role": datasets.Value("string"), "content": datasets.Value("string")}]
TEXT = datasets.Value("string")
CODE = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""Part of what names a cached result: `datasets` knows a module's function by name only, not by what it does."""

Gold = Callable[[str], str]
"""From a published answer to the solution; raises ValueError for one that it cannot read."""


@dataclass(frozen=True)
class Choice:
    """Which rows are which: expressions of `datasets` such as `train[:10%]` or `train[100:200]+validation`.

    `test=None` takes the source's own split `test`. Where it has none, `held_out`, a share of the rows of `train`
    picked by `seed`, is set apart; equal prompts always stay together. Without `train` a set is for evaluation.
    """

    train: str | None
    test: str | None
    held_out: float | None = None
    seed: int = 0


def read(
    source: Source,
    split: str,
    choice: Choice,
    columns: Mapping[str, str | None],
    system_prompt: str | None = None,
    gold: Gold | None = None,
    drop: Sequence[str] = (),
) -> datasets.Dataset:
    """Rows of one split with `prompt` as chat messages and, where `columns` names it, `solution` as text.

    `columns` is new name -> the source's own; all others but those in `drop` are kept as they are.

    Raises:
        ValueError, FileNotFoundError: one line that names the value or the row, and the way out.
    """
    check_split(split)
    if split == "train" and choice.train is None:
        raise ValueError(
            f"{source.path or source.hub_id} is for evaluation; to train on it all the same, say on which rows:"
            f" train={choice.test}[:50%] test={choice.test}[50%:]"
        )
    renamed = _renamed(columns)
    system = system_text(system_prompt)
    table = Table(source)
    expression, carved = _rows_of(table, split, choice)
    rows = _with_columns(table, expression, renamed, drop)
    prompts = _converted(table, expression, rows, renamed, system, gold)
    if carved:
        held_out = _held_out(rows, choice.held_out or 0, choice.seed)
        prompts = prompts.select(np.flatnonzero(held_out if split == "test" else ~held_out))
    if len(prompts) == 0:
        raise ValueError(f"held_out={choice.held_out} of {expression!r} leaves no rows to {split}")
    return prompts


def _renamed(columns: Mapping[str, str | None]) -> dict[str, str]:
    """New name -> the source's own, as far as there is one."""
    if not isinstance(columns, Mapping) or any(not isinstance(old, str | None) for old in columns.values()):
        raise ValueError(f"columns={columns!r}: name the columns, such as columns.prompt=question")
    if columns.get("prompt") is None:
        raise ValueError("columns.prompt is not given; it names the column that holds the prompts")
    return {new: old for new, old in columns.items() if old is not None}


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")


def _rows_of(table: Table, split: str, choice: Choice) -> tuple[str, bool]:
    """The expression that holds the rows of a split, and whether train and test share it, row by row."""
    test = choice.test or ("test" if "test" in table.splits else None)
    if test is None:
        if choice.held_out is None or choice.train is None:
            raise ValueError(
                f"{table.name} has no split 'test', it has {', '.join(table.splits)}; say test=<which rows>"
            )
        if not 0 < choice.held_out < 1:
            raise ValueError(f"held_out={choice.held_out} is no share; use a number between 0 and 1")
        return choice.train, True
    if split == "test" and choice.train is not None and table.overlap(choice.train, test):
        raise ValueError(f"train={choice.train} and test={test} share rows; what is tested must not be trained on")
    return (test if split == "test" else str(choice.train)), False


def _with_columns(table: Table, expression: str, renamed: Mapping[str, str], drop: Sequence[str]) -> datasets.Dataset:
    """The source's rows under our names."""
    rows = table.rows(expression)
    for new, old in renamed.items():
        if old not in rows.column_names:
            raise ValueError(
                f"{table.place(expression, 0)}: no column {old!r} for columns.{new};"
                f" there are {', '.join(rows.column_names)}"
            )
    covered = [new for new, old in renamed.items() if new != old and new in rows.column_names]
    rows = rows.remove_columns([*covered, *(column for column in drop if column in rows.column_names)])
    return rows.rename_columns({old: new for new, old in renamed.items() if new != old})


class _BadRow(Exception):
    def __init__(self, index: int, fault: str) -> None:
        super().__init__(fault)
        self.index = index


def _converted(
    table: Table,
    expression: str,
    rows: datasets.Dataset,
    renamed: Mapping[str, str],
    system: str | None,
    gold: Gold | None,
) -> datasets.Dataset:
    ours = [name for name in ("prompt", "solution") if name in renamed]
    features = {**rows.features, **{name: PROMPT if name == "prompt" else TEXT for name in ours}}
    try:
        return rows.map(
            _convert,
            batched=True,
            with_indices=True,
            input_columns=ours,
            features=datasets.Features(features),
            fn_kwargs={"names": [renamed[name] for name in ours], "system": system, "gold": gold, "code": CODE},
        )
    except _BadRow as bad:
        raise ValueError(f"{table.place(expression, bad.index)}: {bad}") from bad
    except UnicodeDecodeError as error:
        raise table.fault(error) from error


def _convert(*columns: list[Any], names: list[str], system: str | None, gold: Gold | None, code: str) -> Any:
    """A batch: the columns `prompt` and, if there is one, `solution`, then the indices of the rows."""
    prompts, *golds, indices = columns
    converted: dict[str, list[Any]] = {"prompt": [], "solution": []} if golds else {"prompt": []}
    for place, index in enumerate(indices):
        try:
            converted["prompt"].append(messages(prompts[place], system))
            if golds:
                converted["solution"].append(_solution(golds[0][place], names[1], gold))
        except ValueError as error:
            raise _BadRow(index, str(error)) from error
    return converted


def _solution(value: Any, name: str, gold: Gold | None) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"the solution under {name!r} is {value!r}; it must be a text or a number")
    return gold(str(value)) if gold else str(value)


def _held_out(rows: datasets.Dataset, share: float, seed: int) -> Any:
    """True for the rows with the smallest hashes of their prompts: so many as `share` says, and their equals."""
    hashed = rows.map(
        _hashes,
        batched=True,
        input_columns=["prompt"],
        remove_columns=rows.column_names,
        fn_kwargs={"seed": seed, "code": CODE},
    )
    hashes = hashed.with_format("numpy")["hash"][:]
    rank = max(1, round(share * len(hashes))) - 1
    return hashes <= np.partition(hashes, rank)[rank]


def _hashes(prompts: list[Any], seed: int, code: str) -> dict[str, list[int]]:
    texts = (f"{seed}/{json.dumps(prompt, sort_keys=True)}" for prompt in prompts)
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return {"hash": [int.from_bytes(digest, "big", signed=True) for digest in digests]}
