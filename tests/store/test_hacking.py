"""Signs of a policy that pleases its rewards: each shows in a run that has it, and in no healthy one.

The runs are written here, with texts and numbers as they were seen: a policy that copies `82-49` into the box, and the
tiny policy's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from grpo_lab.store import folder as store
from grpo_lab.store import hacking, health
from grpo_lab.store.folder import Row, Run

STEPS = 30
HEALTHY: dict[str, tuple[float, float]] = {
    "rewards/accuracy/mean": (0.52, 0.76),
    "reward": (0.7, 0.95),
    "completions/mean_length": (14.0, 15.6),
    "completions/clipped_ratio": (0.0, 0.0),
    "entropy": (0.19, 0.05),
}


def right(step: int, prompt: int) -> str:
    return f"<think>{step}+{prompt}={step + prompt}</think><answer>{step + prompt}</answer>"


def write(folder: Path, text: Callable[[int, int], str] = right, **columns: tuple[float, float]) -> Run:
    """A run of ten prompts a step; `text` of step and prompt, and the first and last value of a column."""
    run, table = Run(folder), []
    for step in range(1, STEPS + 1):
        share = min(1.0, (step - 1) / (STEPS - 5))
        ends = {**HEALTHY, **{key.replace("__", "/"): value for key, value in columns.items()}}
        run.append_metrics({"step": step, **{key: a + share * (b - a) for key, (a, b) in ends.items()}})
        for prompt in range(10):
            asked = [{"role": "user", "content": f"Put the result into a box: {step}+{prompt}=?"}]
            answer = [{"role": "assistant", "content": text(step, prompt)}]
            table.append({"step": step, "prompt": asked, "completion": answer})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), run.completions)
    return run


def early(good: Callable[[int, int], str], bad: Callable[[int, int], str]) -> Callable[[int, int], str]:
    return lambda step, prompt: good(step, prompt) if step <= STEPS // 2 else bad(step, prompt)


def boxed(step: int, prompt: int) -> str:
    return f"\\boxed{{{step}+{prompt}}}"


HACKED: dict[str, dict[str, Any]] = {
    "copied_prompts": {"text": early(right, boxed)},
    "short_completions": {"completions__mean_length": (96.0, 8.0)},
    "one_completion": {"text": early(right, lambda step, prompt: "The answer is 42.")},
    "another_reward": {"reward": (0.0, 0.208), "rewards__accuracy__mean": (0.0, 0.009)},
    "cut_off_completions": {"completions__clipped_ratio": (0.1, 1.0)},
    "entropy_collapse": {"entropy": (0.4, 0.0001)},
}


@pytest.mark.parametrize("name", HACKED)
def test_each_sign_shows_in_a_run_that_has_it_with_a_completion(tmp_path: Path, name: str) -> None:
    found = hacking.warnings(write(tmp_path, **HACKED[name]))
    assert list(found) == [name]
    assert found[name]["sample"]


def test_every_sign_is_tried() -> None:
    assert HACKED.keys() == hacking.SIGNS.keys()


def test_the_copied_question_is_the_sample(tmp_path: Path) -> None:
    sign = hacking.warnings(write(tmp_path, early(right, boxed)))["copied_prompts"]
    assert sign["sample"] == "\\boxed{28+0}"
    assert sign["message"] == "100% of the last answers are copied from the prompt"


LEARNED: dict[str, dict[str, Any]] = {
    "the tiny policy": {},
    "longer reasoning": {"completions__mean_length": (200.0, 900.0), "completions__clipped_ratio": (0.1, 0.6)},
    "to answer without detours": {"completions__mean_length": (150.0, 60.0)},
    "short from the start": {"completions__mean_length": (8.0, 6.0)},
    "certain of its answers": {"entropy": (0.3, 0.02)},
    "a number of the prompt": {"text": lambda step, prompt: f"\\boxed{{{step}}}"},
    "choices as they stand in the prompt": {"text": lambda step, prompt: "\\boxed{result}" + " " * prompt},
    "a half of the prompts alike": {
        "text": lambda step, prompt: f"\\boxed{{{prompt}}}" if prompt % 2 else right(step, prompt)
    },
}


@pytest.mark.parametrize("name", LEARNED)
def test_no_sign_in_a_run_that_learned(tmp_path: Path, name: str) -> None:
    assert hacking.warnings(write(tmp_path, **LEARNED[name])) == {}


def test_a_short_or_damaged_or_silent_run_has_no_signs(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in range(1, 10):
        run.append_metrics({"step": step, "entropy": 0.0})
    assert hacking.warnings(run) == {}
    run.append_metrics({"step": 10})
    run.completions.write_bytes(b"torn")
    assert hacking.warnings(run) == {}


def test_what_is_measured_can_be_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hacking.main(write(tmp_path, early(right, boxed)).folder)
    shown = capsys.readouterr().out
    assert "copied    0.0 -> 1.0" in shown
    assert "warning copied_prompts: " in shown


REWARDS: list[tuple[Row, list[str]]] = [
    ({"rewards/accuracy/mean": 0.0, "rewards/accuracy/std": 0.0, "rewards/format/mean": 1.0}, ["zero_reward/accuracy"]),
    ({"rewards/accuracy/mean": 0.0, "rewards/accuracy/std": 0.5}, []),
    ({"rewards/accuracy/mean": None, "rewards/format/mean": 0.1}, ["silent_reward/accuracy"]),
]


@pytest.mark.parametrize(("row", "names"), REWARDS)
def test_a_reward_that_was_0_or_silent_in_every_step_is_named(tmp_path: Path, row: Row, names: list[str]) -> None:
    run = Run(tmp_path)
    for step in (1, 2):
        run.append_metrics({"step": step, **row})
    assert list(health.examine(run)) == names
    run.append_metrics({"step": 3, "rewards/accuracy/mean": 0.1, "rewards/format/mean": 0.1})
    assert health.examine(run) == {}


@pytest.mark.parametrize(("marks", "warned"), [([None] * 4, True), ([None, 0, None, 1], False), ([], False)])
def test_solutions_none_of_which_can_be_read_are_warned_of(
    tmp_path: Path, marks: list[int | None], warned: bool
) -> None:
    run = Run(tmp_path)
    store.write_json(run.evaluation("before"), marks)
    assert ("unreadable_solutions" in health.examine(run)) is warned
