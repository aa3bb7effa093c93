"""Private parts of the trainers of TRL and transformers that the worker calls or replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Trainer = Any
SCORED = {
    "training_step": "train",
    "_generate_and_score_completions": "other",
    "_generate_single_turn": "generate",
    "_calculate_rewards": "reward",
    "_maybe_log_save_evaluate": "pause",
    "_get_per_token_logps_and_entropies": "logprobs",
}
"""Methods of GRPOTrainer and RLOOTrainer -> phase of a step."""
PAIRED = {
    "training_step": "train",
    "_generate": "generate",
    "_calculate_rewards_from_functions": "reward",
    "_maybe_log_save_evaluate": "pause",
    "_forward": "logprobs",
}
"""Methods of OnlineDPOTrainer -> phase of a step."""
OVERLAPPING = {"training_step": "train", "_maybe_log_save_evaluate": "pause"}
"""Methods of AsyncGRPOTrainer, whose completions are made and scored elsewhere -> phase of a step."""


def generate(trainer: Trainer, prompts: list[Any], place: int) -> list[Any]:
    """One completion a prompt, which stands at this place of what the trainer's `_generate` returns."""
    completions = list(trainer._generate(prompts)[place])
    trainer._metrics["eval"].clear()  # generation statistics that would enter the next training log
    return completions


def generate_pairs(trainer: Trainer, prompts: list[Any]) -> Any:
    """Token ids of two completions a prompt: the first of each pair, then the second ones."""
    return trainer._generate(trainer.model_wrapped, prompts)[2]


def prompt_tokens(trainer: Trainer, prompt: Any) -> int:
    return len(trainer._tokenize_prompts([prompt])[0][0])


def bring_weights_again(trainer: Trainer) -> None:
    """Make the next generation send the weights to vLLM, although they are there."""
    if getattr(trainer, "use_vllm", False):
        trainer._last_loaded_step = -1


def sync_weights(trainer: Trainer) -> None:
    """Bring AsyncGRPOTrainer's weights to its server now."""
    trainer._sync_weight()


def score_with(trainer: Trainer, tokenizer: Any) -> None:
    """Give the other process of AsyncGRPOTrainer, which has not started yet, another tokenizer."""
    from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker

    if isinstance(trainer.rollout_worker, AsyncRolloutWorker):
        trainer.rollout_worker._loop_kwargs["processing_class"] = tokenizer


def save_checkpoint(trainer: Trainer) -> None:
    trainer._save_checkpoint(trainer.model, trial=None)


def replace_saving(trainer: Trainer, save: Callable[[Callable[..., None], Any, Any], None]) -> None:
    """Save checkpoints through `save(write, model, trial)`, where `write(model, trial)` is the trainer's own way."""
    write = trainer._save_checkpoint

    def save_checkpoint(model: Any, trial: Any = None) -> None:
        save(write, model, trial)

    trainer._save_checkpoint = save_checkpoint


def train_only_what_is_left(trainer: Trainer) -> None:
    """transformers 5.17 trains one step more when it goes on from the checkpoint of the last one, which a run does
    that ended in its last evaluation. Its state of the random generators is that in which the evaluation began."""
    run_epoch = trainer._run_epoch

    def unless_done(*, resume_from_checkpoint: Any, **given: Any) -> None:
        if trainer.state.global_step < trainer.state.max_steps:
            run_epoch(resume_from_checkpoint=resume_from_checkpoint, **given)
        else:
            trainer._load_rng_state(resume_from_checkpoint)
            trainer.log_completions = False  # with the last log TRL would replace those of the last step by none

    trainer._run_epoch = unless_done
