"""The completions of a run: one parquet file from the ones that TRL writes each step."""

from __future__ import annotations

from grpo_lab.store import Run


def gather(run: Run) -> None:
    """Write completions.parquet, if there are any: step, prompt, completion, one column a reward, advantage."""
    from pyarrow import concat_tables, parquet

    files = sorted(run.step_completions.glob("completions_*.parquet"))
    if files:
        parquet.write_table(concat_tables([parquet.read_table(file) for file in files]), run.completions)
