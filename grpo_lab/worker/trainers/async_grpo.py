"""TRL's AsyncGRPOTrainer: while it trains, a process of its own asks the server for completions and scores them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import requests

from grpo_lab.config.schema import Config
from grpo_lab.planner.train import Plan
from grpo_lab.worker.patches import trl
from grpo_lab.worker.patches.vllm import whole
from grpo_lab.worker.rewards import BadReward
from grpo_lab.worker.trainers.base import Handling, Trainer, given

TRANSFER = ("init_weight_transfer", "pause", "send_weights", "resume")
"""Methods of its weight transfer, which between them take the time of a synchronisation."""


class ScoringFailed(BadReward):
    """A BadReward in the other process, of which this one has the words."""

    def __init__(self, message: str) -> None:
        RuntimeError.__init__(self, message)


class AsyncGrpo(Handling):
    phases = trl.OVERLAPPING
    tokens_column = "batch/trained_tokens_per_step"

    def build(self, config: Config, plan: Plan, training: datasets.Dataset) -> Trainer:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental import async_grpo

        arguments = given(config, plan, training, weighted=True)
        trainer = async_grpo.AsyncGRPOTrainer(args=async_grpo.AsyncGRPOConfig(**plan.trl), **arguments)
        trl.score_with(trainer, literal(trainer.processing_class))
        return trainer

    def generate(self, trainer: Trainer, prompts: list[Any]) -> list[Any]:
        """One completion a prompt from the server, as chat messages, sampled as the training completions are."""
        args = trainer.args
        request = {
            "model": trainer.model.config.name_or_path,
            "prompt": token_ids(trainer, prompts),
            "max_tokens": args.max_completion_length,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k or -1,
            "repetition_penalty": args.repetition_penalty,
            **({} if args.min_p is None else {"min_p": args.min_p}),
        }
        url = f"{args.vllm_server_base_url}/v1/completions"
        answer = requests.post(url, json=request, timeout=args.request_timeout)
        answer.raise_for_status()
        choices = sorted(whole(answer.json())["choices"], key=lambda choice: choice["index"])
        return [[{"role": "assistant", "content": choice["text"]}] for choice in choices]

    def tokens_needed(self, trainer: Trainer, prompt: Any) -> tuple[int, int]:
        return len(token_ids(trainer, [prompt])[0]), trainer.args.max_completion_length

    def waits(self, trainer: Trainer) -> Iterator[tuple[Any, str, str]]:
        """Where the trainer waits for the others; only rank 0 has anything to wait for."""
        if trainer.rollout_queue is not None:
            yield trainer.rollout_queue, "get", "generate"
        if trainer.weight_transfer is not None:
            yield from ((trainer.weight_transfer, name, "sync") for name in TRANSFER)

    def catch_up(self, trainer: Trainer) -> None:
        """Bring the weights to the server, where `weight_sync_steps` has left them behind."""
        if trainer.state.global_step % trainer.args.weight_sync_steps:
            trl.sync_weights(trainer)

    def cause(self, error: RuntimeError) -> RuntimeError:
        """TRL reports the end of the other process with a cause: a kind, a message and a traceback."""
        if error.__cause__ is None or not str(error).startswith("Rollout worker child has failed"):
            return error
        kind, _, rest = str(error.__cause__).partition(": ")
        message = rest.partition("\nTraceback")[0]
        return ScoringFailed(message) if kind == BadReward.__name__ else RuntimeError(f"{kind}: {message}")


def literal(tokenizer: Any) -> Any:
    """A tokenizer with which TRL gives rewards the text of a completion as it is, as GRPOTrainer does.

    It would take a thinking block out of it, and refuses a chat template that it does not know. A response template
    that cannot be used makes it fall back to the text. The trainer's own tokenizer, which is saved, stays without.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.response_template = {}
    return tokenizer


def token_ids(trainer: Trainer, prompts: list[Any]) -> list[list[int]]:
    """As TRL's rollout loop does it: messages through the chat template."""
    template: Callable[..., Any] = trainer.processing_class.apply_chat_template
    options = trainer.args.chat_template_kwargs or {}
    return template(prompts, add_generation_prompt=True, return_dict=True, **options)["input_ids"]


HANDLING = AsyncGrpo()
