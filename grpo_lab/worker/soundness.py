"""Numbers that are none: NaN and infinity in loss, gradient, rewards and weights; and completions without a character.

Neither transformers 5.17 nor TRL 1.16 lets them be seen: the first logs a NaN loss as 0 (`logging_nan_inf_filter`), the
second takes a NaN reward for None and leaves it out of every mean, and an infinite one makes all advantages of its
group 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from grpo_lab.store.folder import Row
from grpo_lab.store.health import EMPTY, NOT_FINITE
from grpo_lab.worker.rewards import RewardFunction, text_of
from grpo_lab.worker.trainers import Trainer, handling

BROKEN_SAMPLING = "probability tensor contains either `inf`, `nan`"
"""What torch says when it samples from the logits of broken weights."""


class NotANumber(RuntimeError):
    """Loss, gradient, reward or weight is NaN or infinite."""


class Soundness:
    """Counts of the step at hand. With `stop` the first NaN raises NotANumber."""

    def __init__(self, trainer: Trainer, *, stop: bool) -> None:
        self.trainer, self.stop = trainer, stop
        self._losses: torch.Tensor | int = 0
        self._counts: Counter[str] = Counter()
        self._watch_loss()
        if "reward" in handling(trainer).phases.values():  # else another process scores, and a NaN is seen in the loss
            self._watch_completions()
            self._watch_rewards()

    def _watch_loss(self) -> None:
        method = self.trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            loss = method(*args, **kwargs)
            self._losses = self._losses + (~torch.isfinite(loss)).sum()  # stays on its device: nothing waits for it
            return loss

        self.trainer.training_step = training_step

    def _watch_completions(self) -> None:
        name = next(name for name, phase in handling(self.trainer).phases.items() if phase == "reward")
        method = getattr(self.trainer, name)

        def calculate_rewards(*args: Any, **kwargs: Any) -> torch.Tensor:
            completions = kwargs["completions"] if "completions" in kwargs else args[2]
            self._counts[EMPTY] += sum(not text_of(completion) for completion in completions)
            return method(*args, **kwargs)

        setattr(self.trainer, name, calculate_rewards)

    def _watch_rewards(self) -> None:
        functions = self.trainer.reward_funcs
        for at, name in enumerate(self.trainer.reward_func_names):
            if isinstance(functions[at], torch.nn.Module):
                functions[at].register_forward_hook(self._on_scores(name))
            else:
                functions[at] = self._checked(name, functions[at])

    def _checked(self, name: str, function: RewardFunction) -> RewardFunction:
        """The function with None for what is not finite."""

        def reward(completions: list[Any], **columns: Any) -> list[float | None]:
            values = list(function(completions=completions, **columns))
            for at, value in enumerate(values):
                if value is not None and not math.isfinite(value):
                    self._count_reward(name, value, f"; completion: {text_of(completions[at])[:500]!r}")
                    values[at] = None
            return values

        reward.__name__ = name
        return reward

    def _on_scores(self, name: str) -> Callable[..., None]:
        """For a classifier: NaN for what is not finite, which TRL takes for None."""

        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            finite = torch.isfinite(output.logits)
            for value in output.logits[~finite].tolist():
                self._count_reward(name, value, "")
            output.logits = torch.where(finite, output.logits, torch.nan)

        return hook

    def _count_reward(self, name: str, value: float, shown: str) -> None:
        self._counts[NOT_FINITE["reward"]] += 1
        if self.stop:
            raise NotANumber(f"step {self.trainer.state.global_step + 1}: reward '{name}' is {value}{shown}")

    def end_step(self, logs: Row) -> Row:
        """What the row of the step gets: counts, and None for the numbers that are none. Every rank must call it."""
        keys = (*NOT_FINITE.values(), EMPTY)
        self._counts[NOT_FINITE["loss"]] = int(self._losses)
        self._counts[NOT_FINITE["grad_norm"]] = self._broken_gradient(logs)
        mine = torch.tensor([self._counts[key] for key in keys], device=self.trainer.args.device)
        self._losses, self._counts = 0, Counter()
        counts = dict(zip(keys, self.trainer.accelerator.reduce(mine, "sum").tolist(), strict=True))
        none = {key: None for key in ("loss", "grad_norm") if counts[NOT_FINITE[key]]}
        return {key: count for key, count in counts.items() if count or key == EMPTY} | none

    def _broken_gradient(self, logs: Row) -> int:
        """All ranks have the same norm. A scaler of float16 gradients skips a step whose gradient overflows and goes
        on with a smaller scale."""
        counts = self.trainer.is_world_process_zero() and self.trainer.accelerator.scaler is None
        return int(counts and not math.isfinite(logs.get("grad_norm", 0.0)))

    def judge(self, found: Row) -> None:
        """Raises NotANumber for what `end_step` has found."""
        broken = [key for key in ("loss", "grad_norm") if NOT_FINITE[key] in found]
        if broken and self.stop:
            raise NotANumber(f"step {self.trainer.state.global_step}: {' and '.join(broken)} not finite")

    def check_weights(self) -> None:
        """Before they are saved: one pass over this rank's part of them. Raises NotANumber."""
        weights = [getattr(one, "_local_tensor", one).detach() for one in self.trainer.model.parameters()]
        weights = [weight for weight in weights if weight.is_floating_point() and weight.numel()]
        norms = [norm.float() for norm in torch._foreach_norm(weights, float("inf"))] if weights else []
        if self.stop and norms and not torch.isfinite(torch.stack(norms)).all():
            raise NotANumber(f"step {self.trainer.state.global_step}: weights not finite")
