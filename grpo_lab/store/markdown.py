"""A table as Markdown, for every page and report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: Collection[int] = ()) -> str:
    """One line a row, without a last line break. `right`: places of the columns that are aligned to the right."""
    rule = ["---:" if place in right else "---" for place in range(len(head))]
    lines = [head, rule, *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(cell: object) -> str:
    """On one line, its bars escaped: both would end the cell."""
    return " ".join(str(cell).replace("|", "\\|").split())
