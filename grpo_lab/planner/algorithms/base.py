"""What a plan asks about a trainer. The answers here are GRPOTrainer's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.config.model import Shape
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine

PRINTS = ("num_generations_eval", "log_completions", "num_completions_to_print")
"""Fields that the plan sets for trainers which keep completions."""


class Algorithm:
    kind: str
    """`algorithm.kind`, the name of the module."""
    card: str
    """What a model card calls the algorithm."""
    config_classes: tuple[tuple[str, str, str], ...]
    """Package, file and name of the classes whose fields `grpo` holds, the trainer's own config last."""
    choices: Mapping[str, tuple[Any, ...]] = {}
    """Valid values of fields that mean something else in GRPOConfig."""
    renamed: Mapping[str, str | None] = {}
    """Options that every algorithm has here -> their names in the trainer's config; None where it has no such field."""
    owned: Mapping[str, str] = {}
    """Fields of this trainer's config that follow from the plan -> the key to set instead."""
    absent: tuple[str, ...] = ()
    """What the plan sets for other trainers, and this one's config has no field for."""
    together = 1
    """How many completions a pass must take whole."""
    keeps_completions = True
    """Whether the trainer writes completions.parquet."""
    sends_key = True
    """Whether all that asks the run's server can send its key."""

    def passed_on(self, config: Config) -> dict[str, Any]:
        """What the user set in `grpo`, under the names of the trainer's config."""
        names = {key: key for key in config.grpo} | dict(self.renamed)
        return {name: value for key, value in config.grpo.items() if (name := names[key]) is not None}

    def arguments(self, planned: dict[str, Any]) -> dict[str, Any]:
        """The plan's arguments as the trainer's config takes them."""
        return {key: value for key, value in planned.items() if key not in self.absent}

    def served_names(self, own: str, model_path: str) -> str | list[str]:
        """What the run's server answers to; the run knows it by the first name."""
        return own

    def check_options(self, config: Config) -> None:
        """Raises RequestError for an option of `grpo` that the trainer does not have or the plan owns."""
        for key in self.owned.keys() & config.grpo.keys():
            raise RequestError(f"grpo.{key} follows from the plan; set {self.owned[key]}")
        upstream.check_options("grpo", self.passed_on(config), *self.config_classes, choices=self.choices)

    def check(self, config: Config, machine: Machine, *, on_gpu: bool) -> None:
        """Raises RequestError for what the trainer cannot do."""

    def check_prompts(self, config: Config, *, in_plain_text: bool) -> None:
        """Raises RequestError for prompts that the trainer does not take."""

    def grouped(self, config: Config, shape: Shape | None) -> str | None:
        """Key and reason why gradients depend on which completions share a pass, or may; None where they do not."""
        return f"algorithm={self.kind}: passes by length were tried with GRPOTrainer's losses only"

    def notes(self, config: Config) -> Iterator[str]:
        """What a run of this algorithm will not have, or TRL warns of."""
        if not self.keeps_completions:
            yield f"algorithm={self.kind}: TRL writes no completions, so there will be no completions.parquet"

    def banner(self, grpo: Mapping[str, Any]) -> str | None:
        """The algorithm in the banner of a run; None for plain GRPO."""
        return self.kind

    def suffix(self) -> str:
        """What follows the number of steps in the summary of a run."""
        return f" of {self.kind}"
