"""Held-out answers are judged by the run's own reward for accuracy: in training, between steps and in `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_lab.rewards.held_out import accuracy_rule, rule_text
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Run
from grpo_lab.worker.rewards import held_out_rule, right
from tests.conductor.test_evaluate import ASKED as EVALUATION
from tests.conductor.test_evaluate import evaluate, only_evaluation
from tests.conftest import SHORT, cli

ACCURACY = "grpo_lab.rewards.accuracy"
GAME = {"prompt": [{"role": "user", "content": "?"}], "solution": "(25 - 5) * 3", "numbers": [3, 5, 25], "target": 60}


def every_one(completions: list[Any], level: float = 1.0, **columns: Any) -> list[float]:
    """A user's own rule."""
    assert all(isinstance(completion, list) for completion in completions)  # as rewards see a chat
    assert len(columns["solution"]) == len(completions)
    return [level] * len(completions)


def test_training_and_evaluate_follow_the_run_s_own_accuracy(runs: Path) -> None:
    own = ["rewards.accuracy={_target_:tests.worker.test_accuracy_rule.every_one,level:1.0}", "rewards=[format]"]
    asked = [*SHORT, *own, "grpo.max_steps=3", "eval.problems=16", "eval.every=2", f"runs_dir={runs}", "name=own"]
    ended = cli(*asked)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = Run(runs / "own")
    result = store.read_json(run.result)
    assert result["metrics"]["accuracy_before"]["value"] == result["metrics"]["accuracy_after"]["value"] == 1.0
    assert [row["eval/accuracy"] for row in run.rows() if "eval/accuracy" in row] == [1.0]
    assert result["accuracy_rule"] == "tests.worker.test_accuracy_rule.every_one(level=1.0)"

    ended = evaluate(str(run.folder), *EVALUATION)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = store.read_json(only_evaluation(run.folder).result)
    assert result["metrics"]["pass@1"]["value"] == 1.0
    assert result["accuracy_rule"] == "tests.worker.test_accuracy_rule.every_one(level=1.0)"


@pytest.mark.parametrize(
    ("rewards", "rule", "text"),
    [
        ({}, ("accuracy", {"_target_": ACCURACY, "step_timeout_s": None}), "accuracy"),
        (
            {"format": {"_target_": "x"}, "accuracy": {"_target_": ACCURACY, "weight": 1.0, "extract": "anywhere"}},
            ("accuracy", {"_target_": ACCURACY, "extract": "anywhere", "step_timeout_s": None}),
            "accuracy(extract=anywhere)",
        ),
        (
            {"number_match": {"_target_": "grpo_lab.rewards.matching.number_match", "simplified": False}},
            ("number_match", {"_target_": "grpo_lab.rewards.matching.number_match", "simplified": False}),
            "number_match(simplified=false)",
        ),
        (
            {"length_cosine": {"_target_": "grpo_lab.rewards.lengths.cosine", "max_len": 9, "extract": "anywhere"}},
            ("accuracy", {"_target_": ACCURACY, "extract": "anywhere", "step_timeout_s": None}),
            "accuracy(extract=anywhere)",
        ),
        ({"accuracy": {"_target_": "mine.f"}}, ("accuracy", {"_target_": "mine.f"}), "mine.f"),
        ({"accuracy": None}, ("accuracy", {"_target_": ACCURACY, "step_timeout_s": None}), "accuracy"),
    ],
)
def test_which_reward_is_the_rule(rewards: dict[str, Any], rule: tuple[str, dict[str, Any]], text: str) -> None:
    assert accuracy_rule(rewards) == rule
    assert rule_text(rewards) == text


def test_the_parameters_of_the_rule_decide() -> None:
    rows = [{"prompt": "?", "solution": "18"}] * 3
    texts = ["so it is 18", r"\boxed{9+9}", r"\boxed{18}"]

    def marks(**settings: Any) -> list[bool | None]:
        return right(held_out_rule({"accuracy": {"_target_": ACCURACY, "weight": 0.5, **settings}}), texts, rows)

    assert marks() == [False, False, True]
    assert marks(extract="anywhere") == [True, False, True]
    assert marks(simplified=False) == [False, True, True]


def test_countdown_is_judged_by_its_own_rules() -> None:
    rewards = {"countdown": {"_target_": "grpo_lab.rewards.countdown.countdown", "format_score": 0.1}}
    answers = ["<answer>(25-5)*3</answer>", "<answer>60</answer>", "60"]
    assert right(held_out_rule(rewards), answers, [GAME] * 3) == [True, False, False]
