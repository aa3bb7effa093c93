"""Points as Slurm jobs, submitted by submitit. Jobs outlive the launcher; one that is started again finds them."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.machine.gpus import read_machine
from grpo_lab.sweep.launchers.base import Need, Work
from grpo_lab.sweep.launchers.remote import Command, note
from grpo_lab.sweep.launchers.slurm_queue import (
    BY_ITSELF,
    LONGEST_MINUTES,
    Job,
    LocalQueue,
    Partition,
    SlurmQueue,
    job_name,
    read_partition,
)

try:
    import submitit
    from submitit.core.utils import FailedJobError
except ModuleNotFoundError as error:
    raise RequestError("hydra/launcher=slurm needs submitit: pip install 'grpo-lab[slurm]'") from error

from grpo_lab.sweep.launchers.slurm_job import ASK, STOP, SlurmJob

OURS = {
    **dict.fromkeys(("gpus_per_node", "gpus_per_task", "num_gpus"), "the plan counts the GPUs"),
    "cpus_per_gpu": "cpus_per_task= says how many cores a point has",
    **dict.fromkeys(("nodes", "ntasks_per_node"), "the plan counts the machines; nodes= sets them"),
    **dict.fromkeys(("job_name", "srun_args", "use_srun", "array_parallelism"), "the launcher needs it for itself"),
}
"""Parameters of submitit that are not the user's to set."""
SAVE_S = 120
"""How long before a job must leave its node it is told, unless `signal_delay_s` says otherwise."""
SPARE = 0.95
"""Of a node's memory: what the system keeps for itself is not in what sinfo says."""
RESULT_LAG_S = 15.0
"""How long after a job's end its result may still be on its way through a shared file system."""
FULL_S = 30.0
"""How long nothing is submitted once the user has as many jobs as the cluster allows."""
STOP_PATIENCE_S = 300.0
LOCAL_EVERY_S = 0.3


class SlurmBackend:
    """`parameters`: submitit's for Slurm (`partition`, `account`, `qos`, `constraint`, `time` in minutes, ...).

    GPUs, cores, a proportional share of memory, time (`timeout_s`, at most the partition's limit) and nodes are the
    work's own. A job that makes room for others or reaches its time limit is queued again, for the latter `requeues`
    times at most. `exclusive`: no neighbours on a point's nodes. Slurm is asked how jobs are every `every_s` seconds.

    `executor="local"` is submitit's own stand-in, without Slurm: one job at a time, on this machine.

    Raises RequestError for a parameter that submitit does not have or that the plan owns, and where Slurm is not.
    """

    spans = True

    def __init__(
        self,
        *,
        parameters: Mapping[str, Any] | None = None,
        executor: str = "slurm",
        exclusive: bool = False,
        max_parallel: int | None = None,
        requeues: int = 3,
        every_s: float = 5.0,
    ) -> None:
        if executor not in ("slurm", "local"):
            raise RequestError(f"hydra.launcher.executor={executor}: slurm or local")
        self._parameters = checked(parameters or {})
        self._exclusive, self._requeues = exclusive, requeues
        self._local = executor == "local"
        self._most = 1 if self._local else max_parallel or math.inf
        self._full_until = -math.inf
        if self._local:
            self._queue: SlurmQueue = LocalQueue(LOCAL_EVERY_S)
            self._partition = Partition(read_machine(), 0, LONGEST_MINUTES)
        else:
            self._queue = SlurmQueue(every_s)
            self._partition = read_partition(self._parameters)
        self.machine = self._partition.machine
        self._active: list[SlurmAttempt] = []

    def start(self, work: Work) -> SlurmAttempt | None:
        """None also when the user has as many jobs as the cluster allows. Raises RequestError if Slurm refuses it."""
        self._active = [attempt for attempt in self._active if not attempt.ended]
        if len(self._active) >= self._most or time.monotonic() < self._full_until:
            return None
        folder = work.log.absolute().with_suffix(".slurm")
        id = self._found(folder) or self._submitted(folder, work)
        if id is None:
            return None
        job = submitit.LocalJob[int] if self._local else submitit.SlurmJob[int]
        attempt = SlurmAttempt(job(folder, id), self._queue, work.log)
        self._active.append(attempt)
        return attempt

    def close(self) -> None:
        pass

    def _found(self, folder: Path) -> str | None:
        """The job of a launcher that died. Raises RequestError if Slurm cannot say whether there is one."""
        jobs = self._queue.jobs()
        if jobs is None:
            raise RequestError("Slurm does not answer (squeue), so jobs of an earlier launcher cannot be found")
        return next((job.id for job in jobs.values() if job.name == job_name(folder) and job.living), None)

    def _submitted(self, folder: Path, work: Work) -> str | None:
        parameters = self.job_parameters(work.need, work.timeout_s)
        command = Command(work.argv, work.env, work.log.absolute(), Path.cwd())
        job = SlurmJob(command, save_s=0.8 * parameters["signal_delay_s"])
        try:
            id: str = self._executor(folder, parameters).submit(job).job_id
        except FailedJobError as error:
            if "MaxSubmit" not in str(error):
                raise RequestError(f"Slurm refuses {work.name}: {error}") from error
            self._full_until = time.monotonic() + FULL_S
            return None
        return id

    def _executor(self, folder: Path, parameters: dict[str, Any]) -> submitit.Executor:
        if not self._local:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=self._requeues)
            executor.update_parameters(**parameters, job_name=job_name(folder))
            return executor
        local = submitit.LocalExecutor(folder, max_num_timeout=self._requeues)
        gpus, delay = parameters.get("gpus_per_node", 0), parameters["signal_delay_s"]
        local.update_parameters(timeout_min=parameters["time"], gpus_per_node=gpus, signal_delay_s=delay)
        return local

    def job_parameters(self, need: Need, timeout_s: float | None) -> dict[str, Any]:
        """In submitit's words. What the user says goes before what is derived."""
        if need.pinned:
            raise RequestError(
                f"gpus=[{','.join(need.pinned)}]: Slurm chooses the GPUs; say how many: gpus={need.gpus}"
            )
        partition = self._partition
        derived: dict[str, Any] = {"cpus_per_task": need.cores, "time": partition.minutes, "signal_delay_s": SAVE_S}
        if timeout_s is not None:  # a little more: the sweep itself, which says why, is to be the first
            derived["time"] = min(partition.minutes, math.ceil(timeout_s / 60) + 10)
        if partition.memory_mib > 1 and not {"mem_per_cpu", "mem_per_gpu"} & self._parameters.keys():
            share = need.gpus / len(self.machine.gpus) if need.gpus else need.cores / self.machine.cores
            derived["mem"] = f"{math.floor(SPARE * share * partition.memory_mib)}M"
        if need.gpus:
            derived["gpus_per_node"] = need.gpus
        if self._exclusive:
            derived["exclusive"] = True
        asked = {**derived, **self._parameters, "nodes": need.nodes, "ntasks_per_node": 1}
        # The command runs once, on the first node, and reaches the others itself. From Slurm 22.05 srun does not take
        # over the cores of the job by itself.
        asked["srun_args"] = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={asked['cpus_per_task']}"]
        asked["additional_parameters"] = {"requeue": True, **asked.get("additional_parameters", {})}
        return asked


class SlurmAttempt:
    """A job; see `Attempt`. How it is comes from the queue: submitit would ask Slurm's accounting, if there is one."""

    def __init__(self, job: submitit.Job[int], queue: SlurmQueue, log: Path) -> None:
        self._job, self._queue, self._log = job, queue, log
        self._begun = time.monotonic()
        self._gone: float | None = None
        self._code: int | None = None
        self.where, self.running = f"queued (job {job.job_id})", False

    @property
    def ended(self) -> bool:
        return self._code is not None

    def poll(self) -> int | None:
        return self._poll(soon=False)

    def _poll(self, *, soon: bool) -> int | None:
        if self._code is None and (jobs := self._queue.jobs(since=self._begun, soon=soon)) is not None:
            self._look(jobs.get(self._job.job_id))
        return self._code

    def _look(self, listed: Job | None) -> None:
        if listed is not None and listed.living:
            self.where, self.running, self._gone = listed.where, listed.running, None
            return
        self._gone = self._gone or time.monotonic()
        if self._job.paths.result_pickle.exists():
            self._code = self._result()
        elif (listed and listed.state not in BY_ITSELF) or time.monotonic() - self._gone > RESULT_LAG_S:
            state = listed.state if listed else "lost"
            note(self._log, f"job {self._job.job_id} ended without a result ({state}); see {self._job.paths.stderr}")
            self._code = -signal.SIGKILL

    def _result(self) -> int:
        try:
            code: int = self._job.result()
            return code
        except FailedJobError as error:  # it reached its time limit too often
            note(self._log, str(error))
            return -signal.SIGTERM

    def ask(self) -> None:
        if self.running:
            self._queue.signal(self._job.job_id, ASK)
        else:
            self._queue.cancel(self._job.job_id)

    def stop(self) -> None:
        """Raises TimeoutError if Slurm does not get rid of it."""
        deadline = time.monotonic() + STOP_PATIENCE_S
        if self.running:
            self._queue.signal(self._job.job_id, STOP)
        self._queue.cancel(self._job.job_id)
        while self._poll(soon=True) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {self._job.job_id} does not end after {STOP_PATIENCE_S:g} s")
            time.sleep(0.2)


def checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Raises RequestError for what is not the user's to set."""
    valid = submitit.SlurmExecutor._valid_parameters() - OURS.keys()
    for key, value in parameters.items():
        if key in OURS:
            raise RequestError(f"hydra.launcher.parameters.{key}={value}: {OURS[key]}")
        if key not in valid:
            raise RequestError(
                f"hydra.launcher.parameters.{key}: submitit has no such parameter of Slurm; {nearest(key, valid)}\n"
                "any other option of sbatch: hydra.launcher.parameters.additional_parameters.<option>=<value>"
            )
    if not isinstance(limit := parameters.get("time", 0), int):
        raise RequestError(f"hydra.launcher.parameters.time={limit}: a whole number of minutes")
    return {key: value for key, value in parameters.items() if value is not None}
