"""TRL's experimental OnlineDPOTrainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grpo_lab.config import upstream
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.machine.gpus import Machine
from grpo_lab.planner.algorithms.base import PRINTS, Algorithm
from grpo_lab.planner.modes import mode

PAIR = 2
"""Completions of a prompt."""
UNSHARDED = {
    "zero3": "it copies the model as its reference, which TRL refuses under ZeRO-3",
    "fsdp2": "it generates through FSDP1's summon_full_params",
}


class OnlineDpo(Algorithm):
    kind, card = "online_dpo", "online DPO"
    config_classes = (*upstream.TRAINER, ("trl", "experimental/online_dpo/online_dpo_config.py", "OnlineDPOConfig"))
    renamed = {"max_completion_length": "max_new_tokens", "num_generations": None, "generation_batch_size": None}
    owned = {
        "max_new_tokens": "grpo.max_completion_length=",
        "max_length": "nothing: a prompt that does not fit the model is refused, not cut",
        "reward_model_path": "rewards=[model] rewards.model.path=",
    }
    choices = {"loss_type": ("sigmoid", "ipo")}
    absent = PRINTS
    together = PAIR
    keeps_completions = False

    def arguments(self, planned: dict[str, Any]) -> dict[str, Any]:
        """It counts prompts where the others count completions, would cut long prompts, and would spread the model
        over all GPUs."""
        arguments = super().arguments(planned)
        arguments["per_device_train_batch_size"] //= PAIR
        arguments["max_length"] = 2**31 - 1
        arguments["model_init_kwargs"] = {"device_map": None, **arguments["model_init_kwargs"]}
        return arguments

    def check(self, config: Config, machine: Machine, *, on_gpu: bool) -> None:
        if (asked := config.grpo.get("num_generations")) != PAIR:
            raise RequestError(
                f"grpo.num_generations={asked}: algorithm=online_dpo compares two completions of a prompt;"
                f" grpo.num_generations={PAIR}"
            )
        if mode(config.vllm.mode).engines:
            raise RequestError(
                f"vllm={config.vllm.mode}: TRL's OnlineDPOTrainer starts and feeds vLLM by itself, without the run's"
                " seed, lengths, engine options or a check of its weights; vllm=off, or algorithm=rloo"
            )
        if reason := UNSHARDED.get(config.distributed.kind):
            raise RequestError(f"distributed={config.distributed.kind}: not with algorithm=online_dpo: {reason}; zero2")
        if config.peft.kind == "qlora":
            raise RequestError("peft=qlora: OnlineDPOTrainer takes no quantization config; peft=lora")

    def notes(self, config: Config) -> Iterator[str]:
        yield from super().notes(config)
        yield "algorithm=online_dpo: TRL counts no completion tokens, so there will be no tokens per second"


ALGORITHM = OnlineDpo()
