"""TRL's RLOOTrainer."""

from __future__ import annotations

from collections.abc import Iterator

from grpo_lab.config import upstream
from grpo_lab.config.schema import Config
from grpo_lab.planner.algorithms.base import Algorithm
from grpo_lab.planner.modes import mode


class Rloo(Algorithm):
    kind, card = "rloo", "RLOO"
    config_classes = (*upstream.TRAINER, ("trl", "trainer/rloo_config.py", "RLOOConfig"))
    keeps_completions = False

    def notes(self, config: Config) -> Iterator[str]:
        yield from super().notes(config)
        if mode(config.vllm.mode).engines and config.vllm.check_sync_every:
            yield "algorithm=rloo: TRL compares no log-probabilities, so vLLM's weights are not checked"


ALGORITHM = Rloo()
