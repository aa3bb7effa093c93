"""Files that a kill cut short."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet

from grpo_lab.store import completions
from grpo_lab.store.folder import Run


def test_completions_cut_short_are_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step_completions.mkdir(parents=True)
    files = [run.step_completions / f"completions_{step:05}.parquet" for step in (1, 2, 3)]
    for step, file in enumerate(files, 1):
        pyarrow.parquet.write_table(pyarrow.table({"step": [step], "completion": ["x"]}), file)
    files[1].write_bytes(files[1].read_bytes()[:-20])
    files[2].write_bytes(b"")
    completions.gather(run)
    assert pyarrow.parquet.read_table(run.completions)["step"].to_pylist() == [1]
