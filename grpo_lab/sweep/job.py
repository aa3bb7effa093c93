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

from grpo_lab.config.errors import RequestError

CORES = "GRPO_LAB_CORES"
"""Environment variable: the cores that a point's processes may use, as numbers of this machine."""


def pack(context: HydraContext, function: TaskFunction, composed: DictConfig) -> bytes:
    """All that a point needs, in a form that another process can read. Resolvers of the application go along."""
    resolvers = {name: found for name, found in BaseContainer._resolvers.items() if name not in _built_in()}
    return bytes(cloudpickle.dumps((resolvers, Singleton.get_state(), context, function, composed)))


def _built_in() -> set[str]:
    return {"now", "hydra", "version_base", "python_version", *(n for n in BaseContainer._resolvers if n[:3] == "oc.")}


def write(path: Path, content: bytes) -> None:
    """Replace a file by one that nobody else can read: a point's environment may hold keys."""
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


def _unpickled(path: Path) -> Any:
    """Unpickling runs what is in a file. Raises RequestError for one that somebody else made or could have changed."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise RequestError(f"{path} belongs to another user or can be changed by others; it is not read")
        return cloudpickle.loads(file.read())


def unpack_return(path: Path) -> JobReturn | None:
    """What the point gave back; None if it did not come so far."""
    return _unpickled(path) if path.is_file() else None


def run(file: Path) -> JobReturn:
    setup_globals()
    resolvers, state, context, function, composed = _unpickled(file)
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
    write(returned, cloudpickle.dumps(job))
    if job.status == JobStatus.FAILED:
        print(f"{type(job._return_value).__name__}: {job._return_value}", file=sys.stderr)
    return 0 if job.status == JobStatus.COMPLETED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
