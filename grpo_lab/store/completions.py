"""The completions of a run: one parquet file from the ones that TRL writes each step."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from grpo_lab.store.files import write_parquet
from grpo_lab.store.folder import Run


def gather(run: Run) -> None:
    """Write completions.parquet, if there are any: step, prompt, completion, one column a reward, advantage.

    A file that a kill or a full disk has torn is left out. Raises DiskFull.
    """
    from pyarrow import ArrowInvalid, concat_tables, parquet

    tables, needed = [], 0
    for file in sorted(run.step_completions.glob("completions_*.parquet")):
        with contextlib.suppress(ArrowInvalid):
            tables.append(parquet.read_table(file))
            needed += file.stat().st_size
    if tables:
        write_parquet(concat_tables(tables), run.completions, needed)


@dataclass(frozen=True)
class Completion:
    prompt: str
    """All that the policy was given, messages one after the other."""
    text: str


def of_steps(run: Run, first: int, last: int) -> list[Completion]:
    """What was sampled from one step to another, both included; nothing where that is not recorded or damaged."""
    from pyarrow import ArrowException, parquet

    if not run.completions.is_file():
        return []
    asked = {"columns": ["prompt", "completion"], "filters": [("step", ">=", first), ("step", "<=", last)]}
    try:
        rows = parquet.read_table(run.completions, **asked).to_pylist()
    except ArrowException:
        return []
    return [Completion(_text(row["prompt"]), _text(row["completion"])) for row in rows]


def _text(messages: str | list[dict[str, str]]) -> str:
    return messages if isinstance(messages, str) else "\n".join(str(message["content"]) for message in messages)
