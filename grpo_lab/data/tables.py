"""Files and data sets of the Hub as tables in the cache of `datasets`, and where in them a row stands."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow.parquet
from datasets.exceptions import DatasetGenerationError  # type: ignore[import-untyped]

KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Endings of files that can be read without a folder around them, and their builders in `datasets`."""


@dataclass(frozen=True)
class Source:
    """A data set of the Hub, or where `path` is given, local files: a file, a glob, or a folder laid out like
    a data set of the Hub (train.jsonl and test.jsonl will do)."""

    path: str | None
    hub_id: str | None = None
    hub_config: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: values come from a user's YAML."""
        for key, value in vars(self).items():
            if not isinstance(value, str | None):
                raise ValueError(f"{key}={value!r} is no text")
        if not (self.hub_id if self.path is None else self.path):
            raise ValueError("path= is needed: a file, a pattern or a folder")


class Table:
    """The splits of a source, read into the cache."""

    def __init__(self, source: Source) -> None:
        self.name = source.path or source.hub_id
        self.builder = _builder(source)
        self.files: Mapping[str, list[str]] = (self.builder.config.data_files or {}) if source.path else {}
        if (crash := _crashing(self.files)) is not None:
            raise ValueError(crash)
        try:
            with _silent("datasets"):
                self.builder.download_and_prepare(verification_mode="no_checks" if source.path else None)
        except (DatasetGenerationError, UnicodeDecodeError, StopIteration) as error:
            raise self.fault(error) from error
        self.splits = {str(name): int(split.num_examples) for name, split in self.builder.info.splits.items()}

    def fault(self, error: BaseException) -> ValueError:
        """What made reading fail: the first bad line where one is found, otherwise what the library says."""
        return ValueError(_bad_line(self.files) or f"{self.name}: {_first_line(error.__cause__ or error)}")

    def rows(self, expression: str) -> datasets.Dataset:
        self.parts(expression)
        return self.builder.as_dataset(split=datasets.ReadInstruction.from_spec(expression))

    def parts(self, expression: str) -> list[tuple[str, range]]:
        """The rows that an expression takes, split by split."""
        try:
            taken = datasets.ReadInstruction.from_spec(expression).to_absolute(self.splits)
        except ValueError as error:
            raise ValueError(f"{expression!r} of {self.name}: {_first_line(error)}") from error
        parts = [(part.splitname, range(part.from_, part.to)) for part in taken]
        if not any(rows for _, rows in parts):
            sizes = ", ".join(f"{name} with {size} rows" for name, size in self.splits.items())
            raise ValueError(f"{expression!r} takes no rows of {self.name}, which has {sizes}")
        return parts

    def overlap(self, one: str, other: str) -> bool:
        return any(
            left_name == right_name and max(left.start, right.start) < min(left.stop, right.stop)
            for left_name, left in self.parts(one)
            for right_name, right in self.parts(other)
        )

    def place(self, expression: str, index: int) -> str:
        """Where the row that stands at `index` of an expression came from, for messages."""
        for split, rows in self.parts(expression):
            if index < len(rows):
                row = rows[index]
                return _place(self.files.get(split, []), row) or f"{self.name} {split} row {row + 1}"
            index -= len(rows)
        raise IndexError(index)


def _builder(source: Source) -> Any:
    if source.path is None:
        try:
            return datasets.load_dataset_builder(source.hub_id, source.hub_config, revision=source.revision)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"hub_id={source.hub_id!r} could not be loaded ({_first_line(error)}); without network, give"
                " path=<folder or file with its rows>"
            ) from error
    path = Path(source.path).expanduser()
    if not path.is_dir():
        return _files_builder(source.path, str(path))
    try:
        configs = datasets.get_dataset_config_names(str(path))
        return datasets.load_dataset_builder(str(path), source.hub_config if source.hub_config in configs else None)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"path={source.path!r} holds no data files, such as train.jsonl") from error


def _files_builder(asked: str, pattern: str) -> Any:
    files = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not files:
        raise FileNotFoundError(
            f"path={asked!r} is no file, no folder and no pattern that matches;"
            " a folder holds train.jsonl and test.jsonl"
        )
    kind = KINDS.get(Path(files[0]).suffix)
    if kind is None:
        raise ValueError(f"path={asked!r}: {files[0]} is none of {', '.join(KINDS)}")
    return datasets.load_dataset_builder(kind, data_files=files)


def _place(files: list[str], row: int) -> str | None:
    """`file:line` of the row of a split that lies in these files, None for a format whose rows are not counted."""
    for file in files:
        if file.endswith(".parquet"):
            count = pyarrow.parquet.read_metadata(file).num_rows
            if row < count:
                return f"{file} row {row + 1}"
        elif file.endswith(".jsonl"):
            lines = [number for number, line in _lines(file)]
            if row < len(lines):
                return f"{file}:{lines[row]}"
            count = len(lines)
        else:
            return None
        row -= count
    return None


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def _crashing(files: Mapping[str, list[str]]) -> str | None:
    """What is wrong with files that pyarrow must not be given: its JSON reader (26.0) ends the whole process, by a
    segmentation fault, where `null` stands before an object."""
    for file in (file for some in files.values() for file in some if file.endswith((".json", ".jsonl"))):
        for number, line in _lines(file):
            text = line.strip().removeprefix(b"\xef\xbb\xbf")
            if file.endswith(".json"):
                if not text.startswith((b"{", b"[")):
                    return f"{file}:{number}: neither a JSON list nor an object"
                break
            if not (text.startswith(b"{") and text.endswith(b"}")):
                return _bad_line({"": [file]})
    return None


def _bad_line(files: Mapping[str, list[str]]) -> str | None:
    """What is wrong with the first bad line of all JSON-lines files."""
    for file in (file for some in files.values() for file in some if file.endswith(".jsonl")):
        number = 0
        for number, line in _lines(file):
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                return f"{file}:{number} is not UTF-8 text; save it as UTF-8"
            except json.JSONDecodeError as error:
                return f"{file}:{number}: malformed JSON ({error.msg}); each line is one object"
            if not isinstance(row, dict):
                return f"{file}:{number}: a JSON {type(row).__name__}; each line is one object"
        if number == 0:
            return f"{file} is empty; it must hold one JSON object a line"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a library from printing what it raises as well."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
