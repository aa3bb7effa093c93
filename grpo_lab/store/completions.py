"""The completions of a run: one parquet file from the ones that TRL writes each step."""

from __future__ import annotations

import contextlib

from grpo_lab.machine.disk import writing
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
    draft = run.completions.with_name(f".{run.completions.name}")
    try:
        if tables:
            with writing(run.completions, needed):
                parquet.write_table(concat_tables(tables), draft)
            draft.replace(run.completions)
    finally:
        draft.unlink(missing_ok=True)
