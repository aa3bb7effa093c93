"""The config of each point, composed once for all points that make the same choices.

Composing from YAML takes Hydra 65 ms a point; a thousand points mostly differ in values alone. What has been composed
stays in memory, so that a file that changes later changes no point.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict, read_write


class Composer:
    """Composes as `config_loader.load_sweep_config` does; raises Hydra's errors, all on the first use of a choice."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._bases: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
        self._parse = lru_cache(maxsize=None)(self._parsed)
        self._is_group = lru_cache(maxsize=None)(lambda key: bool(loader.get_group_options(key)))

    def whole(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The config of point `number`, `hydra` node included."""
        config = copy.deepcopy(self._base(overrides)[0])
        self._apply(overrides, config)
        self._label(config, overrides, number)
        return config

    def task(self, overrides: Sequence[str]) -> DictConfig:
        """What the application's function gets: the config without the `hydra` node, in half the time."""
        config = copy.deepcopy(self._base(overrides)[1])
        self._apply(overrides, config)
        return config

    def _base(self, overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
        choices = tuple(text for text in overrides if not self._is_value(text))
        if choices not in self._bases:
            whole = self._loader.load_sweep_config(self._master, list(choices))
            self._bases[choices] = (whole, without_hydra(whole))
        return self._bases[choices]

    def _apply(self, overrides: Sequence[str], config: DictConfig) -> None:
        """Hydra 1.3's own last step of composing; private there, hence the test that compares the outcome."""
        values = [self._parse(text) for text in overrides if self._is_value(text)]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)

    def _label(self, config: DictConfig, overrides: Sequence[str], number: int) -> None:
        task = [parsed for parsed in map(self._parse, overrides) if not parsed.is_hydra_override()]
        job = config.hydra.job
        settings = job.config.override_dirname
        with open_dict(config.hydra):
            config.hydra.overrides.task = [override.input_line for override in task]
            job.override_dirname = get_overrides_dirname(
                task, kv_sep=settings.kv_sep, item_sep=settings.item_sep, exclude_keys=settings.exclude_keys
            )
            job.num, job.id = number, f"{job.name}_{number}"

    def _is_value(self, text: str) -> bool:
        """Whether it only changes a value: then Hydra applies it after everything else, whatever was chosen."""
        override = self._parse(text)
        if override.is_hydra_override() or override.package is not None:
            return False
        structural = override.is_delete() or override.is_add() or override.is_force_add()
        return not structural and not self._is_group(override.key_or_group)

    def _parsed(self, text: str) -> Override:
        return OverridesParser.create(config_loader=self._loader).parse_overrides([text])[0]


def without_hydra(whole: DictConfig) -> DictConfig:
    task = copy.deepcopy(whole)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task
