"""Hydra's `--multirun` with our launchers. Hydra imports every module here at each start: nothing heavy at the top.

No `from __future__ import annotations`: Hydra 1.3 runs the module before it is in sys.modules, where dataclasses
look up annotations that are text.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SweepLauncher(Launcher):
    """Points as process trees of their own, on what `_backend` offers."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from grpo_lab.sweep.launching import launch

        return launch(
            self.hydra_context, self.task_function, self.config, job_overrides, initial_job_idx, self._backend
        )

    def _backend(self, settings: Any, gpus: object) -> Any:
        """A `grpo_lab.sweep.launchers.base.Backend` for a `LauncherConfig`. `gpus`: 0 if no point has any."""
        raise NotImplementedError


class LocalLauncher(SweepLauncher):
    """This machine's GPUs, or cores where there are none, shared by the points."""

    def _backend(self, settings: Any, gpus: object) -> Any:
        from grpo_lab.machine.gpus import read_machine
        from grpo_lab.sweep.launchers.local import LocalBackend

        machine = read_machine(gpus)
        return LocalBackend(exclusive=settings.exclusive, max_parallel=settings.max_parallel, machine=machine)


class SlurmLauncher(SweepLauncher):
    """Points as Slurm jobs, through submitit; `parameters` are submitit's for Slurm."""

    def __init__(self, parameters: DictConfig, executor: str, requeues: int) -> None:
        self.parameters: Any = OmegaConf.to_container(parameters, resolve=True)
        self.executor, self.requeues = executor, requeues

    def _backend(self, settings: Any, gpus: object) -> Any:
        from grpo_lab.sweep.launchers.slurm import SlurmBackend

        return SlurmBackend(
            parameters=self.parameters,
            executor=self.executor,
            requeues=self.requeues,
            exclusive=settings.exclusive,
            max_parallel=settings.max_parallel,
        )


class RayLauncher(SweepLauncher):
    """Points as tasks of a Ray cluster. `address`: null takes RAY_ADDRESS or the cluster of this machine."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def _backend(self, settings: Any, gpus: object) -> Any:
        from grpo_lab.sweep.launchers.ray_cluster import RayBackend

        return RayBackend(address=self.address, exclusive=settings.exclusive, max_parallel=settings.max_parallel)


class GridSweeper(BasicSweeper):
    """Every combination, as Hydra's own, with three differences for the sake of our launchers.

    They compose all points before they start any, so it is not done here too; they write sweep.json, so nothing is
    written for a sweep that is refused; and a failed point is raised after the last batch, not after its own.

    And one for the sake of experiments: the command line beats an axis of `params`, in the axis's place, where Hydra
    would refuse a choice that is made twice.
    """

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        axes = {axis.key_or_group: axis for axis in parser.parse_overrides(self._parse_config())}
        asked = parser.parse_overrides(arguments)
        axes |= {override.key_or_group: override for override in asked if override.key_or_group in axes}
        others = [override for override in asked if override.key_or_group not in axes]
        self.overrides = self.split_arguments([*axes.values(), *others], self.max_batch_size)
        returns: list[Sequence[JobReturn]] = []
        while not self.is_done():
            batch = self.get_job_batch()
            returns.append(self.launcher.launch(batch, initial_job_idx=sum(map(len, returns))))
        for point in itertools.chain(*returns):
            _ = point.return_value  # raises what a failed point left
        return returns


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.grpo_lab_launchers.LocalLauncher"


@dataclass
class SlurmLauncherConf:
    _target_: str = "hydra_plugins.grpo_lab_launchers.SlurmLauncher"
    parameters: dict[str, Any] = field(default_factory=dict)
    executor: str = "slurm"
    requeues: int = 3


@dataclass
class RayLauncherConf:
    _target_: str = "hydra_plugins.grpo_lab_launchers.RayLauncher"
    address: str | None = None


@dataclass
class GridSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.grpo_lab_launchers.GridSweeper"


def _open(node: Any, key: str) -> Any:
    """Its `key` takes any name without a `+`."""
    config = OmegaConf.structured(node)
    OmegaConf.set_struct(config[key], False)
    return config


_store = ConfigStore.instance()
_store.store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="grpo_lab")
_slurm = _open(SlurmLauncherConf, "parameters")
_store.store(group="hydra/launcher", name="slurm", node=_slurm, provider="grpo_lab")
_store.store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="grpo_lab")
_store.store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="grpo_lab")
