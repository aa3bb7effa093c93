"""The text of a completion, whatever its shape."""

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]
"""Plain text, or chat messages."""


def text_of(completion: Completion | None) -> str:
    """The text of the last message; content may be `None` (a tool call) or a list of parts (for images)."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or () if isinstance(part, Mapping))


def as_list(column: object) -> list[object] | None:
    """A list, tuple or array of numpy (as pandas and parquet files give one) as a list; None for anything else."""
    values = column.tolist() if hasattr(column, "tolist") else column
    return list(values) if isinstance(values, Sequence) and not isinstance(values, (str, bytes)) else None
