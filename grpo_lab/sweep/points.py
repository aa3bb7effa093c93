"""The points of a sweep: composed, planned and written down before the first one starts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from grpo_lab.conductor import job
from grpo_lab.conductor.console import screen
from grpo_lab.config import compose as configuration
from grpo_lab.config.errors import RequestError
from grpo_lab.config.naming import label
from grpo_lab.config.redaction import redact, redact_argument
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.store import records
from grpo_lab.store import train as results
from grpo_lab.store.folder import Run, Sweep
from grpo_lab.store.records import FrozenPoint, FrozenSweep
from grpo_lab.sweep.composer import Composer
from grpo_lab.sweep.launchers.base import Backend, Need


@dataclass(frozen=True)
class Point:
    """One job of a sweep, as it was frozen. Points of one name are the same point."""

    number: int
    name: str
    overrides: tuple[str, ...]
    """All of them, as the sweeper gave them."""
    folder: Path
    config: Config | None = None
    """None for a Hydra application that is not ours: such a point has no run folder and is never skipped."""
    need: Need = field(default_factory=Need)
    refused: str | None = None
    """Why it cannot run on this machine."""
    refused_as: str = RequestError.failure_class

    @property
    def run(self) -> Run:
        return Run(self.folder)


def is_ours(task: DictConfig) -> bool:
    """Whether the application's config is a `Config` of ours; Hydra's launchers serve any application."""
    kind = OmegaConf.get_type(task)
    return isinstance(kind, type) and issubclass(kind, Config)


def foreign_point(composer: Composer, overrides: Sequence[str], number: int) -> Point:
    sweep = composer.whole(overrides, number).hydra.sweep
    return Point(number, label([str(sweep.subdir)]), tuple(overrides), Path(str(sweep.dir)) / str(sweep.subdir))


def freeze(
    composer: Composer,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    fixed: Collection[str],
    sweep: Sweep,
    backend: Backend,
) -> list[Point]:
    """The points in their order, named and planned. `fixed`: overrides that all points have.

    A name that an earlier call, or another point, has given to another config gets the config's identity appended.
    Raises errors of Hydra and OmegaConf for what does not compose or has the wrong type.
    """
    taken = {point.name: point.identity for point in frozen(sweep).points}
    points = []
    for number, overrides in enumerate(job_overrides, first):
        config = configuration.from_hydra(composer.task(overrides))
        identity = configuration.identity(config)
        arguments = [redact_argument(text) for text in overrides if text not in fixed]
        name = label(arguments) if arguments else "point"
        if taken.setdefault(name, identity) != identity:
            name = f"{name}-{identity}"
            taken[name] = identity
        asked = dataclasses.replace(config.sweep, name=sweep.folder.name, overrides=arguments)
        placed = dataclasses.replace(config, runs_dir=str(sweep.folder), name=name, resume=True, sweep=asked)
        points.append(_planned(Point(number, name, tuple(overrides), sweep.folder / name, placed), placed, backend))
    return points


def _planned(point: Point, config: Config, backend: Backend) -> Point:
    try:
        need = need_of(config, backend.machine)
    except RequestError as error:
        return dataclasses.replace(point, refused=str(error), refused_as=error.failure_class)
    if need.nodes > 1 and not backend.spans:
        return dataclasses.replace(
            point, refused=f"nodes={need.nodes}: only hydra/launcher=slurm gives a point several"
        )
    return dataclasses.replace(point, need=need)


def whole_config(composer: Composer, point: Point) -> DictConfig:
    """What Hydra runs a point with: all that was composed and, for a run of ours, its place in the sweep."""
    whole = composer.whole(point.overrides, point.number)
    if point.config is not None:
        with open_dict(whole):
            whole.runs_dir, whole.name, whole.resume = point.config.runs_dir, point.config.name, point.config.resume
            whole.sweep.name, whole.sweep.overrides = point.config.sweep.name, point.config.sweep.overrides
            whole.hydra.sweep.dir, whole.hydra.sweep.subdir = point.config.runs_dir, point.config.name
    return whole


def need_of(config: Config, machine: Machine) -> Need:
    """What the run occupies. Raises RequestError if it cannot run on such a machine."""
    results.check_objective(config.objective)
    share, have = config.launcher.gpus_per_job, len(machine.gpus)
    if share is not None and not 1 <= share <= have:
        raise RequestError(f"launcher.gpus_per_job={share}: this machine has {have} GPUs")
    point = job.of(config, dataclasses.replace(machine, gpus=machine.gpus[:share]))
    point.choose(screen(quiet=True), on_paper=True)
    point.decide(job.NO_PORTS)
    plan = point.plan
    pinned = (*plan.trainer_gpus, *plan.server_gpus) if isinstance(point.config.gpus, list) else ()
    each = plan.gpus_per_node
    cores = machine.cores * each // have if each else plan.devices
    if plan.nodes > 1:
        cores = machine.cores
    return Need(gpus=each, cores=min(max(cores, 1), machine.cores), pinned=pinned, nodes=plan.nodes)


def frozen(sweep: Sweep) -> FrozenSweep:
    """What sweep.json holds; no points for a new sweep."""
    return records.read(sweep.points, FrozenSweep) or FrozenSweep()


def write(points: Sequence[Point], sweep: Sweep, command: str, experiment: str | None = None) -> None:
    """Write sweep.json; points of earlier calls that are not among these stay in it. `experiment`: `experiment=`'s."""
    before = frozen(sweep)
    by_name = {point.name: point for point in (*before.points, *map(_frozen, points))}
    run_id = before.run_id or f"sweep-{os.urandom(4).hex()}"
    record = FrozenSweep(command=command, experiment=experiment, run_id=run_id, points=tuple(by_name.values()))
    records.write(sweep.points, record)


def _frozen(point: Point) -> FrozenPoint:
    assert point.config is not None
    return FrozenPoint(
        number=point.number,
        name=point.name,
        overrides=tuple(point.config.sweep.overrides),
        identity=configuration.identity(point.config),
        gpus=point.need.gpus,
        cores=point.need.cores,
        refused=point.refused,
        config=redact(dataclasses.asdict(point.config)),
    )
