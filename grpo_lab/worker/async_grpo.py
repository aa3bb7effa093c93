"""TRL's AsyncGRPOTrainer: while it trains, a process of its own asks the server for completions and scores them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import requests

from grpo_lab.planner.train import Plan
from grpo_lab.worker.patches import whole
from grpo_lab.worker.rewards import BadReward

TRANSFER = ("init_weight_transfer", "pause", "send_weights", "resume")
"""Methods of its weight transfer, which between them take the time of a synchronisation."""


class ScoringFailed(BadReward):
    """A BadReward in the other process, of which this one has the words."""

    def __init__(self, message: str) -> None:
        RuntimeError.__init__(self, message)


def told(error: RuntimeError) -> RuntimeError:
    """What ended the other process, where TRL reports that (its cause is a kind, a message and a traceback);
    otherwise the error itself."""
    if error.__cause__ is None or not str(error).startswith("Rollout worker child has failed"):
        return error
    kind, _, rest = str(error.__cause__).partition(": ")
    message = rest.partition("\nTraceback")[0]
    return ScoringFailed(message) if kind == BadReward.__name__ else RuntimeError(f"{kind}: {message}")


def build(plan: Plan, given: dict[str, Any]) -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental import async_grpo
    from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker

    trainer = async_grpo.AsyncGRPOTrainer(args=async_grpo.AsyncGRPOConfig(**plan.trl), **given)
    if isinstance(trainer.rollout_worker, AsyncRolloutWorker):
        trainer.rollout_worker._loop_kwargs["processing_class"] = literal(trainer.processing_class)
    return trainer


def literal(tokenizer: Any) -> Any:
    """A tokenizer with which TRL gives rewards the text of a completion as it is, as GRPOTrainer does.

    It would take a thinking block out of it, and refuses a chat template that it does not know. A response template
    that cannot be used makes it fall back to the text. The trainer's own tokenizer, which is saved, stays without.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.response_template = {}
    return tokenizer


def is_one(trainer: Any) -> bool:
    return hasattr(trainer, "rollout_worker")


def waits(trainer: Any) -> Iterator[tuple[Any, str, str]]:
    """Objects, methods and phases where the trainer waits for the others; on rank 0 only is there anything to wait."""
    if trainer.rollout_queue is not None:
        yield trainer.rollout_queue, "get", "generate"
    if trainer.weight_transfer is not None:
        yield from ((trainer.weight_transfer, name, "sync") for name in TRANSFER)


def catch_up(trainer: Any) -> None:
    """Bring the weights to the server, where `weight_sync_steps` has left them behind. On every rank."""
    if trainer.state.global_step % trainer.args.weight_sync_steps:
        trainer._sync_weight()


def generate(trainer: Any, prompts: list[Any]) -> list[Any]:
    """One completion a prompt from the server, as chat messages, sampled as the training completions are."""
    args = trainer.args
    request = {
        "model": trainer.model.config._name_or_path,
        "prompt": token_ids(trainer, prompts),
        "max_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k or -1,
        "repetition_penalty": args.repetition_penalty,
        **({} if args.min_p is None else {"min_p": args.min_p}),
    }
    answer = requests.post(f"{args.vllm_server_base_url}/v1/completions", json=request, timeout=args.request_timeout)
    answer.raise_for_status()
    choices = sorted(whole(answer.json())["choices"], key=lambda choice: choice["index"])
    return [[{"role": "assistant", "content": choice["text"]}] for choice in choices]


def token_ids(trainer: Any, prompts: list[Any]) -> list[list[int]]:
    """As TRL's rollout loop does it: messages through the chat template."""
    template: Callable[..., Any] = trainer.processing_class.apply_chat_template
    options = trainer.args.chat_template_kwargs or {}
    return template(prompts, add_generation_prompt=True, return_dict=True, **options)["input_ids"]
