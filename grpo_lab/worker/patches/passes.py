"""Tokens, not rows, to a pass: a step's completions sorted by length, and each pass as wide as its own longest row.

TRL 1.16 pads every row to the longest prompt and the longest completion of the whole generation batch, shuffles, and
splits (trl issue 7179). Here the rows of an optimizer step are sorted by length before they are split, and within a
pass they stand at the left without padding before or between: causal attention then needs no mask, which lets PyTorch
take its kernel for causal attention (and, with grouped heads, without copies of keys and values).

All passes keep the same number of rows. Loss weights, the number of backward passes of each rank and the most tokens
that a pass can hold are therefore TRL's, whatever the lengths; passes of equal tokens would change the first, and save
only what a predictor, which must count on the longest, could not use. Which completions share an optimizer step is left
to TRL's shuffling: several steps on one batch see lengths alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Trainer = Any
Pass = dict[str, Any]
"""A pass in TRL's buffer: name -> tensor with a row for each completion, or one for all."""

WIDTHS = 8
"""Widths are multiples of it, which matrix units want in bf16."""
TOKEN_MEANS = ("entropy", "kl")
"""What TRL logs for a pass as a mean over its tokens, and for a step as the mean of its passes."""
RATIO_MEANS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "cispo_clip_ratio")
"""The same, where the ratios are of tokens and not of sequences."""
_WEIGHT = "pass_weight"
"""Key of a pass: its tokens over the mean of its optimizer step's passes, on all ranks."""


@dataclass
class Padding:
    """Token positions that the trainer's passes computed on this rank, and those that held a token."""

    computed: int = 0
    _real: list[Tensor] = field(default_factory=list)

    def add(self, computed: int, attention_mask: Tensor) -> None:
        self.computed += computed
        self._real.append(attention_mask.sum())

    def lap(self) -> float | None:
        """Share of padding since the last lap, 0 to 1; None where nothing was computed."""
        computed, real = self.computed, sum(int(count) for count in self._real)
        self.computed, self._real = 0, []
        return 1 - real / computed if computed else None


def attach(trainer: Trainer, by_length: bool) -> Padding:
    """Sort and cut the passes of a GRPOTrainer, or leave them; either way count their padding."""
    padding = Padding()
    if by_length:
        install(trainer, padding)
    elif hasattr(trainer, "_get_per_token_logps_and_entropies"):
        watch(trainer, padding)
    return padding


def watch(trainer: Trainer, padding: Padding) -> None:
    """Count the padding of TRL's own passes, which are as wide as the generation batch."""
    compute = trainer._get_per_token_logps_and_entropies

    def counted(model: Any, input_ids: Tensor, attention_mask: Tensor, *others: Any, **options: Any) -> Any:
        padding.add(input_ids.numel(), attention_mask)
        return compute(model, input_ids, attention_mask, *others, **options)

    trainer._get_per_token_logps_and_entropies = counted


def install(trainer: Trainer, padding: Padding) -> None:
    """Sort the passes of a GRPOTrainer by length and cut each.

    Raises:
        ValueError: for a model whose result depends on more than the order of its tokens.
    """
    _check(trainer)
    _cut(trainer, padding)
    _sort(trainer)
    _weigh(trainer)


def _check(trainer: Trainer) -> None:
    name = type(trainer.model).__name__
    if trainer.aux_loss_enabled:
        raise ValueError(f"passes=tokens: the load-balancing loss of {name} depends on its passes; passes=rows")
    decoder = trainer.model.config.get_text_config()
    if not (hasattr(decoder, "rope_parameters") or hasattr(decoder, "rope_theta")):
        raise ValueError(f"passes=tokens: TRL's padding shifts the absolute positions of {name}; passes=rows")


def _cut(trainer: Trainer, padding: Padding) -> None:
    def compute(
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Log-probabilities and entropies of the completions, as TRL's: (rows, logits_to_keep), zero at padding."""
        lengths = attention_mask.sum(1)
        order = lengths.argsort(descending=True, stable=True)
        parts = []
        for rows in order.split(batch_size or len(order)):
            ids, mask = input_ids[rows], attention_mask[rows]
            packed = Packed.of(ids, mask, logits_to_keep)
            padding.add(packed.ids.numel(), mask)
            with trainer.accelerator.autocast():
                scored = model(input_ids=packed.ids, labels=packed.labels, fused_lm_head=True)
            values = [scored.log_probs, scored.entropy] if compute_entropy else [scored.log_probs]
            parts.append([packed.unpack(value) for value in values])
        back = order.argsort()
        whole = [torch.cat(part)[back] for part in zip(*parts, strict=True)]
        return whole[0], whole[1] if compute_entropy else None, None

    trainer._get_per_token_logps_and_entropies = compute


@dataclass(frozen=True)
class Packed:
    """Rows of a batch moved to the left, as wide as the longest of them."""

    ids: Tensor
    """(rows, width). What follows a row's last token is any token: causal attention never looks at it."""
    labels: Tensor
    """The same where a completion's token stands, -100 elsewhere."""
    prompts: Tensor
    """Lengths, (rows, 1)."""
    mask: Tensor
    """Where the batch has a completion's token: (rows, logits_to_keep), bool."""

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int) -> Packed:
        lengths, starts = attention_mask.sum(1, keepdim=True), attention_mask.argmax(1, keepdim=True)
        width, whole = -(-int(lengths.max()) // WIDTHS) * WIDTHS, input_ids.size(1)
        offsets = torch.arange(width, device=input_ids.device)
        prompts = whole - logits_to_keep - starts
        ids = input_ids.gather(1, (starts + offsets).clamp(max=whole - 1))
        scored = (offsets >= prompts) & (offsets < lengths)
        return cls(ids, ids.masked_fill(~scored, -100), prompts, attention_mask[:, -logits_to_keep:].bool())

    def unpack(self, values: Tensor) -> Tensor:
        """Values of all positions but the first, (rows, width - 1), at the completions' places in the batch."""
        offsets = torch.arange(self.mask.size(1), device=values.device)
        placed = values.gather(1, (self.prompts + offsets - 1).clamp(0, values.size(1) - 1))
        return torch.where(self.mask, placed, 0)


def _sort(trainer: Trainer) -> None:
    prepare, args = trainer._prepare_inputs, trainer.args
    window = min(args.steps_per_generation, args.gradient_accumulation_steps)

    def sorted_when_fresh(generation_batch: Any) -> Any:
        before = trainer._buffered_inputs
        inputs = prepare(generation_batch)
        if trainer._buffered_inputs is before:
            return inputs
        fresh = trainer._buffered_inputs
        windows = [by_length(fresh[first : first + window]) for first in range(0, len(fresh), window)]
        trainer._buffered_inputs = [each for passes in windows for each in _with_weights(trainer, passes)]
        return trainer._buffered_inputs[trainer._step % args.steps_per_generation]

    trainer._prepare_inputs = sorted_when_fresh


def by_length(passes: Sequence[Pass]) -> list[Pass]:
    """The same rows in as many passes of as many rows, longest first: what needs most memory fails or fits at once."""
    rows = len(passes[0]["prompt_mask"])
    whole = {name: _joined([each[name] for each in passes]) for name in passes[0]}
    lengths = whole["prompt_mask"].sum(1) + whole["completion_mask"].sum(1)
    order = lengths.argsort(descending=True, stable=True)
    return [
        {name: value[chosen] if _has_rows(value) else value for name, value in whole.items()}
        for chosen in order.split(rows)
    ]


def _joined(values: list[Any]) -> Any:
    return torch.cat(values) if _has_rows(values[0]) else values[0]


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _weigh(trainer: Trainer) -> None:
    """Make what TRL logs of a step the mean over its tokens. Passes of sorted lengths differ in tokens, and TRL takes
    the mean of their means."""
    compute = trainer._compute_loss
    names = TOKEN_MEANS + (RATIO_MEANS if trainer.importance_sampling_level == "token" else ())

    def weighed(model: Any, inputs: Pass) -> Tensor:
        loss: Tensor = compute(model, inputs)
        logged = trainer._metrics["train"]
        for name in names:
            if _WEIGHT in inputs and logged.get(name):
                logged[name][-1] *= inputs[_WEIGHT]
        return loss

    trainer._compute_loss = weighed


def _with_weights(trainer: Trainer, passes: list[Pass]) -> list[Pass]:
    tokens = torch.stack([_loss_mask(each).sum() for each in passes]).float()
    tokens = trainer.accelerator.reduce(tokens, reduction="sum").clamp(min=1.0)
    weights = (tokens / tokens.mean()).tolist()
    return [{**each, _WEIGHT: weight} for each, weight in zip(passes, weights, strict=True)]


def _loss_mask(inputs: Pass) -> Tensor:
    mask: Tensor = inputs["completion_mask"] * inputs.get("tool_mask", 1)
    return mask
