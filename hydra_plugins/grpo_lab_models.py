"""Models by their natural name: Hydra finds `model=owner/name` and `model=./folder` as it does conf/model's."""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SCHEME, GROUP = "grpo-lab-models", "model/"


class NaturalModels(ConfigSource):
    """Asked after conf/ and the user's own folders, so that their entries come first."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        from grpo_lab.config import shelf

        config = OmegaConf.create(shelf.entry(_name(config_path)))
        return ConfigResult(config=config, path=f"{SCHEME}://", provider=self.provider, header={"package": None})

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return False

    def is_config(self, config_path: str) -> bool:
        from grpo_lab.config import shelf

        return config_path.startswith(GROUP) and shelf.is_natural(_name(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> "list[str]":
        return []


class NaturalModelsPath(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if "grpo_lab.config.compose" in sys.modules:  # another application's groups are none of ours
            search_path.append("grpo_lab", f"{SCHEME}://")


def _name(config_path: str) -> str:
    return config_path.removeprefix(GROUP).removesuffix(".yaml").rstrip("/")
