"""Files that appear whole, by rename, or not at all; and lines that are appended to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from grpo_lab.machine.disk import writing

Row = dict[str, Any]


def read_new_rows(path: Path, offset: int) -> tuple[list[Row], int]:
    """The whole lines after a byte offset, and the offset after them. A torn last line, as a kill leaves it, is
    left for later; a file that has shrunk is read from its start."""
    if not path.is_file():
        return [], 0
    with path.open("rb") as file:
        file.seek(offset if offset <= file.seek(0, os.SEEK_END) else 0)
        whole, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole) + len(newline)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step. Raises DiskFull; the file is then as it was."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path, len(text)):
            draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The content, or None where the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_parquet(table: Any, path: Path, needed: int | None = None) -> None:
    """Replace a file in one step. `table`: pyarrow's. Raises DiskFull; the file is then as it was."""
    from pyarrow import parquet

    draft = path.with_name(f".{path.name}")
    try:
        with writing(path, needed):
            parquet.write_table(table, draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
