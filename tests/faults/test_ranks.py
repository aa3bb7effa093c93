"""Of several ranks the first that fails says why; torch's launcher ends the others, and reports them as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grpo_lab.conductor.children import failure_of
from grpo_lab.machine.logs import Log
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from grpo_lab.worker import train as training

REPORT = """E1121 15:28:08.280000 21097 torch/api.py:1002] failed (exitcode: {first}) local_rank: 1 (pid: 12)
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 11)  (SIGTERM)
  traceback : Signal 15 (SIGTERM) received by PID 11
Root Cause (first observed failure):
  rank      : 1 (local_rank: 1)
  exitcode  : {first} (pid: 12)
"""
SAID = {"class": "worker_crash", "message": "RuntimeError: Connection closed by peer", "log": None}


@pytest.mark.parametrize(
    ("code", "first", "said", "expected", "words"),
    [
        (1, "-9", SAID, "killed", "signal 9"),
        (1, "-15", None, "killed", "signal 15"),
        (1, "1", SAID, "worker_crash", "Connection closed"),
        (1, "-11", None, "worker_crash", "exit code 1"),
        (1, "-15", {**SAID, "class": "nan", "message": "step 3: loss"}, "nan", "step 3"),
        (-9, "", None, "killed", "host memory"),
        (137, "", None, "killed", "signal 9"),
        (-11, "", None, "worker_crash", "exit code -11"),
    ],
)
def test_class(code: int, first: str, said: object, expected: str, words: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    log = Log(run.worker_log)
    run.worker_log.write_text(REPORT.format(first=first) if first else "started\n")
    if said:
        store.write_json(run.outcome, {"failure": said})
    failure = failure_of(run, code, log)
    assert failure.class_ == expected
    assert words in failure.message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB. Of the allocated memory ..."),
            "CUDA out of memory. Tried to allocate 2 MiB.",
        ),
        (ValueError("No available memory for the cache blocks. ..."), "No available memory for the cache blocks. ..."),
    ],
)
def test_want_of_gpu_memory_is_a_class_of_its_own(error: Exception, message: str) -> None:
    """Torch's, and that of a colocated vLLM, which is an ordinary exception."""
    assert training._explain(error) == ("oom", message)
