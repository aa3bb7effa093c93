"""Numbers that are none, and steps that teach nothing: noticed, said and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoTokenizer

from grpo_lab.config.places import ASSETS
from grpo_lab.store import folder as store
from grpo_lab.store import health
from grpo_lab.store.folder import Run
from tests.conftest import SHORT, cli, failure_message

QUICK = [*SHORT, "eval.enabled=false", "grpo.save_steps=1", "grpo.generation_batch_size=16", "rewards=[]"]

TOKENIZER = AutoTokenizer.from_pretrained(ASSETS / "tiny")


def reward(function: str, **parameters: Any) -> list[str]:
    given = {"_target_": f"tests.faults.rewards.{function}", **parameters}
    return [f"rewards.mine.{key}={value}" for key, value in given.items()]


def test_a_nan_reward_ends_the_run_and_the_checkpoint_before_it_stays(runs: Path) -> None:
    """TRL would take it for None: left out of every mean, with nothing to see."""
    ended = cli(*QUICK, *reward("number", steps="{3:nan}"), f"runs_dir={runs}", "name=nan")
    message = failure_message(Run(runs / "nan"), ended, "nan")
    assert "step 3: reward 'mine' is nan; completion: " in message
    assert sorted(Run(runs / "nan").whole_checkpoints()) == [1, 2]


def test_rewards_that_are_no_numbers_are_counted_where_the_user_goes_on(runs: Path) -> None:
    """And completions without a character, which the only token left, the end, makes of every one."""
    others = sorted(set(range(len(TOKENIZER))) - {TOKENIZER.eos_token_id})
    silent = f"grpo.generation_kwargs={{suppress_tokens:{others}}}".replace(" ", "")
    asked = [*QUICK, *reward("number", steps="{2:nan,3:inf}"), silent, "stop_on_nan=false"]
    ended = cli(*asked, f"runs_dir={runs}", "name=on")
    run = Run(runs / "on")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = run.rows()
    assert [row.get("not_finite/reward") for row in rows] == [None, 1, 1, None]
    assert [row["completions/empty"] for row in rows] == [16] * 4
    assert [row["reward"] for row in rows] == [0.0] * 4
    warnings = store.read_json(run.result)["warnings"]
    assert (warnings["reward_not_finite"]["steps"], warnings["reward_not_finite"]["count"]) == (2, 2)
    assert (warnings["empty_completions"]["steps"], warnings["empty_completions"]["count"]) == (4, 64)
    assert "warning          rewards were NaN or infinite and count as None: in 2 of 4 steps" in ended.stdout
    assert "warning          there were completions without a character: in 4 of 4 steps" in ended.stdout


def test_equal_rewards_and_truncated_completions_are_said_early_and_at_the_end(runs: Path) -> None:
    asked = [*QUICK, *reward("constant"), "grpo.max_completion_length=4", "grpo.max_steps=12", "grpo.save_steps=12"]
    asked += [f"grpo.generation_kwargs={{suppress_tokens:[{TOKENIZER.eos_token_id}]}}"]
    ended = cli(*asked, f"runs_dir={runs}", "name=idle")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = store.read_json(Run(runs / "idle").result)["warnings"]
    assert {name: (sign["steps"], sign["of"]) for name, sign in found.items()} == {
        "equal_rewards": (12, 12),
        "truncated_completions": (12, 12),
    }
    during, _, after = ended.stdout.partition("finished  12 steps")
    for sign in (health.SIGNS["equal_rewards"], health.SIGNS["truncated_completions"]):
        assert during.count(f"warning: step 10: {sign.text}") == 1
        assert f"warning          {sign.text}: in 12 of 12 steps" in after


def test_a_nan_loss_ends_the_run(runs: Path) -> None:
    """The second step on the same completions meets the weights that the first one has ruined. transformers alone
    would log its loss as 0 (logging_nan_inf_filter)."""
    asked = [*QUICK, *reward("lengths"), "grpo.num_iterations=2", "grpo.learning_rate=1e30"]
    ended = cli(*asked, f"runs_dir={runs}", "name=loss")
    run = Run(runs / "loss")
    assert "step 2: loss and grad_norm not finite" in failure_message(run, ended, "nan")
    first, second = run.rows()
    assert first["loss"] is not None
    assert (second["loss"], second["grad_norm"], second["not_finite/grad_norm"]) == (None, None, 1)
    assert second["not_finite/loss"] >= 1
    assert not run.whole_checkpoints()
    assert "loss_not_finite" in store.read_json(run.result)["warnings"]


@pytest.mark.nightly
def test_weights_that_are_no_numbers_are_not_saved(runs: Path) -> None:
    """Loss and gradient of the step are fine; what the optimizer makes of the weights is not."""
    ended = cli(*QUICK, *reward("lengths"), "grpo.learning_rate=1e39", f"runs_dir={runs}", "name=weights")
    run = Run(runs / "weights")
    assert "step 1: weights not finite" in failure_message(run, ended, "nan")
    assert not list(run.checkpoints.glob("checkpoint-*"))


@pytest.mark.nightly
def test_a_poisoned_model_is_a_nan_failure(runs: Path, tmp_path: Path) -> None:
    poisoned = tmp_path / "model"
    poisoned.mkdir()
    for file in (ASSETS / "tiny").iterdir():
        (poisoned / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(poisoned / "model.safetensors")
    name = next(name for name in weights if "norm" in name)
    weights[name] = torch.full_like(weights[name], torch.nan)
    safetensors.torch.save_file(weights, poisoned / "model.safetensors", {"format": "pt"})
    asked = ["model=path", f"model.path={poisoned}", *QUICK, *reward("lengths")]
    ended = cli(*asked, f"runs_dir={runs}", "name=poisoned")
    assert "probabilities are NaN or infinite" in failure_message(Run(runs / "poisoned"), ended, "nan")


@pytest.mark.nightly
def test_steps_without_any_reward_do_not_end_a_run(runs: Path) -> None:
    """None is a function's right: 'does not apply to this completion'."""
    ended = cli(*QUICK, *reward("nothing"), f"runs_dir={runs}", "name=none")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [row["reward"] for row in Run(runs / "none").rows()] == [None] * 4


def test_signs_are_counted_over_the_steps_that_can_show_them() -> None:
    rows = [
        {"step": 1, "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 0.5, "completions/empty": 2},
        {"step": 2},  # the second of two steps on one batch: nothing was generated
        {"step": 3, "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0, "completions/empty": 0},
        {"step": 4, "frac_reward_zero_std": 0.5, "completions/clipped_ratio": 0.0, "completions/empty": 0},
    ]
    found = health.warnings(rows)
    assert {name: (sign["steps"], sign["of"], sign["count"]) for name, sign in found.items()} == {
        "equal_rewards": (2, 3, 2),
    }
    assert health.warnings(rows[3:]) == {}
    assert [name for name, _ in health.shown_by(rows[:1])] == []
