"""Passes of tokens give the gradients that TRL's padded passes give, from fewer positions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from grpo_lab.config.places import ASSETS
from grpo_lab.worker.patches import passes
from tests.planner.test_plan import ON_CPU, QWEN, asked, planned, with_gpus

LOSSES = ("dapo", "dr_grpo", "grpo", "cispo", "sapo", "luspo", "vespo")
PROMPTS = [9, 21, 14, 30, 12, 17, 25, 11, 33, 10, 19, 28, 13, 15, 22, 16]
COMPLETIONS = [3, 40, 17, 40, 9, 40, 25, 31, 6, 40, 12, 40, 21, 5, 40, 28]
"""Lengths as of a small policy on word problems: most short, many cut off."""
PER_PASS, PASSES = 2, 4
STEPS = len(PROMPTS) // (PER_PASS * PASSES)
"""Optimizer steps on one batch of completions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("passes")


def trainer_of(folder: Path, *, sort: bool) -> tuple[Any, passes.Padding]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny", dtype=torch.float64)
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PER_PASS,
        gradient_accumulation_steps=PASSES,
        steps_per_generation=PASSES * STEPS,
        num_generations=4,
        max_completion_length=max(COMPLETIONS),
        beta=0.1,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    rows = datasets.Dataset.from_dict({"prompt": ["1"] * 16})
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    trainer = GRPOTrainer(model, lambda completions, **_: [0.0] * len(completions), args, rows, None, tokenizer)
    model.model.rotary_emb.forward = functools.partial(rotated, model.model.rotary_emb.inv_freq.double())
    padding = passes.attach(trainer, sort)
    trainer._generate_and_score_completions = lambda batch: generated(trainer)
    trainer.current_gradient_accumulation_steps = PASSES
    return trainer, padding


def rotated(frequencies: torch.Tensor, _: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rotary positions in float64: transformers' float32 tells a row that was moved by 1e-6."""
    angles = position_ids[..., None] * torch.cat([frequencies, frequencies])
    return angles.cos(), angles.sin()


@pytest.fixture(scope="module")
def both(folder: Path) -> list[tuple[Any, passes.Padding]]:
    return [trainer_of(folder, sort=sort) for sort in (False, True)]


def generated(trainer: Any) -> dict[str, torch.Tensor]:
    """A batch of completions as TRL pads it, with old log-probabilities from the policy, a little off."""
    torch.manual_seed(1)
    longest_prompt, longest = max(PROMPTS), max(COMPLETIONS)
    prompts, completions = torch.randint(5, 60, (16, longest_prompt)), torch.randint(5, 60, (16, longest))
    prompt_mask = (torch.arange(longest_prompt) >= longest_prompt - torch.tensor(PROMPTS)[:, None]).long()
    mask = (torch.arange(longest) < torch.tensor(COMPLETIONS)[:, None]).long()
    mask[3] = 0  # as grpo.mask_truncated_completions has it
    with torch.no_grad():
        old, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([prompts * prompt_mask, completions * mask], 1),
            torch.cat([prompt_mask, mask], 1),
            longest,
            batch_size=PER_PASS,
        )
    noise = torch.randn(old.shape, dtype=old.dtype)
    return {
        "prompt_ids": prompts * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": completions * mask,
        "completion_mask": mask,
        "advantages": torch.randn(16, dtype=torch.float64),
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": old + 0.2 * noise,
        "ref_per_token_logps": old - 0.3 * noise,
    }


def steps(trainer: Any) -> list[torch.Tensor]:
    """The gradient of each optimizer step on one batch of completions, by the trainer's own passes."""
    torch.manual_seed(2)
    trainer._step, trainer._buffered_inputs, gradients = 0, None, []
    trainer._metrics["train"].clear()
    for _ in range(STEPS):
        trainer.model.zero_grad()
        for _ in range(PASSES):
            trainer.training_step(trainer.model, [], None)
        weights = [weight for weight in trainer.model.parameters() if weight.grad is not None]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    return gradients


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_trl(both: list[Any], loss: str, level: str) -> None:
    """Each rank sorts its own rows and the ranks' gradients are averaged, so this holds for any number of them."""
    for trainer, _ in both:
        trainer.loss_type, trainer.importance_sampling_level = loss, level
    theirs, ours = (steps(trainer) for trainer, _ in both)
    for plain, cut in zip(theirs, ours, strict=True):
        assert plain.norm() > 1e-3
        assert (cut - plain).norm() < 2e-6 * plain.norm()  # the head computes in float32


def test_a_loss_that_depends_on_its_passes_has_other_gradients(both: list[Any]) -> None:
    for trainer, _ in both:
        trainer.loss_type, trainer.importance_sampling_level = "bnpo", "token"
    theirs, ours = (steps(trainer) for trainer, _ in both)
    assert (ours[0] - theirs[0]).norm() > 1e-3 * theirs[0].norm()


def test_fewer_positions_and_means_over_tokens(both: list[Any]) -> None:
    shares = []
    for trainer, padding in both:
        trainer.loss_type, trainer.importance_sampling_level = "dapo", "token"
        padding.lap()
        steps(trainer)
        shares.append(padding.lap())
    assert padding.lap() is None
    tokens = 2 * (sum(PROMPTS) + sum(COMPLETIONS) - COMPLETIONS[3])
    assert shares[0] == pytest.approx(1 - tokens / (2 * 16 * (max(PROMPTS) + max(COMPLETIONS))))
    assert shares[1] < 0.5 * shares[0]
    trainer = both[1][0]
    batch = generated(trainer)
    with torch.no_grad():
        _, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            max(COMPLETIONS),
            compute_entropy=True,
        )
    mask = batch["completion_mask"]
    logged = trainer._metrics["train"]["entropy"]
    tokens_of_steps = [each["completion_mask"].sum() for each in trainer._buffered_inputs]
    weighted = [
        float(sum(logged[first : first + PASSES])) / PASSES * float(sum(tokens_of_steps[first : first + PASSES]))
        for first in range(0, len(logged), PASSES)
    ]
    assert sum(weighted) / float(mask.sum()) == pytest.approx(float((entropy * mask).sum() / mask.sum()), rel=1e-5)


def test_an_optimizer_step_has_the_rows_that_trl_gave_it(both: list[Any]) -> None:
    members = []
    for trainer, _ in both:
        steps(trainer)
        rows = [each["advantages"] for each in trainer._buffered_inputs]
        members.append([set(torch.cat(rows[first : first + PASSES]).tolist()) for first in (0, PASSES)])
    assert members[0] == members[1]


REFUSED = [
    (["algorithm=bnpo"], "divides by the tokens of each pass"),
    (["grpo.top_entropy_quantile=0.2"], "quantile of each pass"),
    (["grpo.entropy_coef=0.01"], "a mean over each pass"),
    (["grpo.torch_compile=true"], "compiles for each width"),
    (["model=qwen3-30b-a3b"], "load-balancing loss"),
    (["algorithm=rloo"], "GRPOTrainer's losses only"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda value: value[0])
def test_rows_where_gradients_depend_on_them(overrides: list[str], message: str) -> None:
    from grpo_lab.config.errors import RequestError

    assert not planned(with_gpus(8), *QWEN, *overrides).sorted_passes
    with pytest.raises(RequestError, match=message):
        planned(with_gpus(8), *QWEN, *overrides, "passes=tokens")


def test_tokens_by_themselves_on_gpus_only() -> None:
    assert planned(with_gpus(1), *QWEN).sorted_passes
    assert not planned(with_gpus(1), *QWEN, "passes=rows").sorted_passes
    assert not planned(ON_CPU).sorted_passes
    assert planned(ON_CPU, "passes=tokens").sorted_passes
    assert asked("passes=tokens").passes == "tokens"
