"""`python -m grpo_lab.sweep.job FILE RETURN`: one point of a sweep in a process of its own.

Exit code 0 if, and only if, the application's function returned; what it returned, or raised, is then in RETURN. An
application that ends the process itself (`sys.exit`) leaves its own exit code and no RETURN.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.basecontainer import BaseContainer

CORES = "GRPO_LAB_CORES"
"""Environment variable: the cores that a point's processes may use, as numbers of this machine."""


def pack(context: HydraContext, function: TaskFunction, composed: DictConfig) -> bytes:
    """All that a point needs, in a form that another process can read. Resolvers of the application go along."""
    resolvers = {name: found for name, found in BaseContainer._resolvers.items() if name not in _built_in()}
    return bytes(cloudpickle.dumps((resolvers, Singleton.get_state(), context, function, composed)))


def _built_in() -> set[str]:
    return {"now", "hydra", "version_base", "python_version", *(n for n in BaseContainer._resolvers if n[:3] == "oc.")}


def unpack_return(path: Path) -> JobReturn | None:
    """What the point gave back; None if it did not come so far."""
    return cloudpickle.loads(path.read_bytes()) if path.is_file() else None


def run(file: Path) -> JobReturn:
    setup_globals()
    resolvers, state, context, function, composed = cloudpickle.loads(file.read_bytes())
    for name, resolver in resolvers.items():
        BaseContainer._resolvers[name] = resolver
    Singleton.set_state(state)
    HydraConfig.instance().set_config(composed)
    return run_job(
        hydra_context=context,
        task_function=function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def main(arguments: list[str]) -> int:
    file, returned = map(Path, arguments)
    if cores := os.environ.get(CORES):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    job: Any = run(file)
    draft = returned.with_suffix(".draft")
    draft.write_bytes(cloudpickle.dumps(job))
    draft.replace(returned)
    if job.status == JobStatus.FAILED:
        print(f"{type(job._return_value).__name__}: {job._return_value}", file=sys.stderr)
    return 0 if job.status == JobStatus.COMPLETED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
