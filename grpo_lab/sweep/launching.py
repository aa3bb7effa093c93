"""What Hydra's launchers do here: compose and freeze the points, run those that need it, give their returns back."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from grpo_lab.conductor.console import screen
from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import BadModel, PointFailed, RequestError
from grpo_lab.config.limits import check_limits
from grpo_lab.config.naming import fixed_overrides
from grpo_lab.config.redaction import redact_command
from grpo_lab.config.schema import Config, LauncherConfig, SweepConfig
from grpo_lab.machine import locks
from grpo_lab.machine.processes import Child
from grpo_lab.store import measures, records
from grpo_lab.store import train as results
from grpo_lab.store.folder import Sweep
from grpo_lab.store.records import Failure, Result
from grpo_lab.sweep import board, job, points
from grpo_lab.sweep.composer import Composer
from grpo_lab.sweep.launchers.base import Backend
from grpo_lab.sweep.points import Point
from grpo_lab.sweep.running import Course
from grpo_lab.sweep.track import Track, state_on_disk, write_result

GRIDS = ("GridSweeper", "BasicSweeper")
"""Sweepers that a failed point ends with an error, after all points. Others search: to them it is a trial without a
value, and hydra-optuna-sweeper 1.3 would end the search if it raised."""
PUBLISH_S = 120.0


def launch(
    context: HydraContext,
    function: TaskFunction,
    master: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    make_backend: Callable[[LauncherConfig, object], Backend],
) -> Sequence[JobReturn]:
    """All points of a batch, to their end. Raises RequestError before anything starts, SystemExit after a signal."""
    setup_globals()
    HydraConfig.instance().set_config(master)
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    composer = Composer(context.config_loader, master)
    task = composer.task(job_overrides[0])
    ours = configuration.from_hydra(task) if points.is_ours(task) else None
    settings = ours.launcher if ours else LauncherConfig()
    searching = not str(master.hydra.sweeper._target_).endswith(GRIDS)
    swept = len({word for words in job_overrides for word in words if word.startswith("gpus=")}) > 1
    gpus = ours.gpus if ours and not swept else "auto"
    sweep, backend = Sweep(Path(str(master.hydra.sweep.dir))), make_backend(settings, gpus)
    if ours:
        direction = str(OmegaConf.select(master, "hydra.sweeper.direction")).rpartition(".")[2]
        check_direction(direction, ours.objective)
        fixed = fixed_overrides(master.hydra.overrides.task, master.hydra.sweeper.get("params"))
        frozen = points.freeze(composer, job_overrides, first, fixed, sweep, backend)
        check(frozen, ours.sweep, searching=searching)
    else:
        frozen = [points.foreign_point(composer, told, first + at) for at, told in enumerate(job_overrides)]
    tracks = {point.name: Track(point, sweep.log(point.name)) for point in frozen}
    if ours and ours.dry_run:
        board.plan(screen(), frozen, sweep.folder, exclusive=settings.exclusive, searching=searching)
        if searching:
            raise SystemExit(0)  # the sweeper would wait for values
    else:
        with locks.held(sweep.lock):
            _carry_out(
                list(tracks.values()),
                sweep,
                backend,
                settings,
                functools.partial(_pack, context, function, composer),
                ours,
            )
    return [_returned(tracks[point.name], point, sweep, searching=searching) for point in frozen]


def _pack(context: HydraContext, function: TaskFunction, composer: Composer, point: Point) -> bytes:
    return job.pack(context, function, points.whole_config(composer, point))


def check_direction(direction: str, objective: str) -> None:
    """Raises RequestError for a search of the worst: Optuna's default is to minimise."""
    wanted = "minimize" if objective in measures.minimized() else "maximize"
    if direction in ("minimize", "maximize") and direction != wanted:
        raise RequestError(f"objective={objective} is to be {wanted}d; hydra.sweeper.direction={wanted}")


def check(frozen: Sequence[Point], asked: SweepConfig, *, searching: bool = False) -> None:
    """Raises RequestError where there is nothing to do but to refuse; a search goes on to other points."""
    check_limits(asked, "sweep")
    if not searching and all(point.refused for point in frozen):
        reasons = "\n".join(dict.fromkeys(str(point.refused) for point in frozen))
        alike = all(point.refused_as == BadModel.failure_class for point in frozen)
        raise (BadModel if alike else RequestError)(reasons)


def settle(tracks: Sequence[Track], asked: SweepConfig, console: Console) -> None:
    """What is left to do after earlier calls, and what cannot be done."""
    for track in tracks:
        _settle(track, asked)
        if track.point.refused:
            board.say(console, f"infeasible: {track.point.name}: {track.point.refused}")


def _settle(track: Track, asked: SweepConfig) -> None:
    point = track.point
    state, failure = ("waiting", None) if asked.force else state_on_disk(point)
    if point.refused and state != "finished":
        refusal = Failure(point.refused_as, point.refused)
        track.end("infeasible", refusal)
        write_result(point, "infeasible", refusal)
    elif state == "finished" or (state == "failed" and asked.retry != "failed"):
        track.end(state, failure)
        track.before = True
    elif asked.force and point.run.config.exists():
        point.run.set_aside()
    else:
        point.run.result.unlink(missing_ok=True)


def _carry_out(
    tracks: list[Track],
    sweep: Sweep,
    backend: Backend,
    settings: LauncherConfig,
    pack: Callable[[Point], bytes],
    ours: Config | None,
) -> None:
    """Freeze, run, sum up. A foreign application speaks for itself."""
    console = screen(quiet=ours is None)
    sweep.jobs.mkdir(exist_ok=True)
    if ours:
        command = redact_command(["python", "-m", f"grpo_lab.{ours.kind}", *sys.argv[1:]])
        experiment = HydraConfig.get().runtime.choices.get("experiment")
        points.write([track.point for track in tracks], sweep, command, experiment)
        settle(tracks, ours.sweep, console)
    stopped = Course(tracks, sweep, backend, settings, pack, board.Board(console)).run()
    board.summary(console, tracks, sweep.folder)
    if ours and ours.tracker.kind != "none":
        _publish(sweep, console)
    if stopped is not None:
        sys.exit(128 + stopped)


def _publish(sweep: Sweep, console: Console) -> None:
    """In a process of its own: a tracker that fails or hangs must not take the sweep's exit code with it."""
    log = sweep.log("summary")
    argv = (sys.executable, "-m", "grpo_lab.sweep.summary", str(sweep.folder))
    with Child(argv, env={}, log=log) as child:
        try:
            code: int | None = child.wait(PUBLISH_S)
        except TimeoutError:
            code = None
    if code != 0:
        board.say(console, f"  the tracker has no summary of this sweep; see {log}")


def _returned(track: Track, point: Point, sweep: Sweep, *, searching: bool) -> JobReturn:
    """What a sweeper gets: None for a point without a value; but if that failed, PointFailed ends a grid."""
    if point.config is None and (given := job.unpack_return(sweep.returned(point.name))) is not None:
        return given
    back = JobReturn(
        overrides=list(point.overrides),
        working_dir=str(point.folder),
        task_name=JobRuntime.instance().get("name"),
    )
    if not searching and track.state in ("failed", "interrupted"):
        back.status = JobStatus.FAILED
        back.return_value = PointFailed(
            f"{point.name}: {board.headline(track.failure) if track.failure else track.state}"
        )
        return back
    back.status = JobStatus.COMPLETED
    if point.config is not None and track.state == "finished":
        result = records.must_read(point.run.result, Result)
        back.return_value = results.objective(result, point.config.objective)
    return back
