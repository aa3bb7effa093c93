"""The clock on a made-up trainer, and the names it needs on TRL's."""

from __future__ import annotations

import math
import time

import pytest
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from grpo_lab.worker import clock as phases
from grpo_lab.worker.clock import Clock


def test_sections_nest_and_add_up() -> None:
    clock = Clock()
    clock.lap()
    begun = time.perf_counter()
    with clock.section("train"):
        time.sleep(0.02)
        with clock.section("generate"):
            time.sleep(0.03)
            with clock.section("sync"):
                time.sleep(0.01)
        time.sleep(0.02)
    lap = clock.lap()
    whole = time.perf_counter() - begun
    assert lap["generate"] >= 0.03
    assert lap["sync"] >= 0.01
    assert lap["train"] >= 0.04
    assert math.fsum(lap.values()) == pytest.approx(whole, abs=0.01)
    assert set(lap) == set(phases.PHASES)


def test_a_pause_is_no_part_of_the_step() -> None:
    clock = Clock()
    clock.lap()
    with clock.section("pause"):
        time.sleep(0.05)
    assert math.fsum(clock.lap().values()) < 0.05


def test_a_section_ends_with_an_exception() -> None:
    clock = Clock()
    with pytest.raises(KeyError), clock.section("reward"):
        raise KeyError
    assert clock.inside == "other"


@pytest.mark.parametrize(
    "name",
    [
        "training_step",
        "_generate_and_score_completions",
        "_generate_single_turn",
        "_calculate_rewards",
        "_maybe_log_save_evaluate",
        "_get_per_token_logps_and_entropies",
        "_generate",
        "_tokenize_prompts",
        "_save_checkpoint",
    ],
)
def test_trl_still_has_the_methods_that_are_wrapped_or_called(name: str) -> None:
    assert callable(getattr(GRPOTrainer, name))


def test_trl_still_syncs_through_sync_weights() -> None:
    assert callable(VLLMGeneration.sync_weights)
