"""The completions of a run: one parquet file from the ones that TRL writes each step."""

from __future__ import annotations

from contextlib import suppress

from grpo_lab.store import Run


def gather(run: Run) -> None:
    """Write completions.parquet, if there are any: step, prompt, completion, one column a reward, advantage."""
    from pyarrow import ArrowInvalid, concat_tables, parquet

    tables = []
    for file in sorted(run.step_completions.glob("completions_*.parquet")):
        with suppress(ArrowInvalid):  # TRL was killed while it wrote this one
            tables.append(parquet.read_table(file))
    if tables:
        parquet.write_table(concat_tables(tables), run.completions)
