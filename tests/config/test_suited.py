"""Settings `auto`: what a run asks fits what it rewards, how it trains fits the size of the policy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.config import compose as configuration
from grpo_lab.config.places import ASSETS
from grpo_lab.config.suited import SIZES, system_prompt
from tests.conftest import ROOT, cli
from tests.planner.test_plan import asked, planned, with_gpus

REAL = "model=qwen2.5-0.5b"


@pytest.mark.parametrize(
    ("overrides", "prompt"),
    [
        ([], "r1"),
        (["rewards=[accuracy]"], "boxed"),
        (["rewards=[accuracy,boxed]"], "boxed"),
        (["rewards=[length_cosine,repetition]"], "boxed"),
        (["rewards=[exact_match]"], "boxed"),
        (["rewards=[exact_match]", "rewards.exact_match.extract=all"], "plain"),
        (["rewards=[format]"], "r1"),
        (["rewards=[accuracy,tag_count]"], "r1"),
        (["rewards=[reasoning_accuracy]"], "r1"),
        (["rewards=[countdown]", "data=countdown"], "r1"),
        (["rewards=[accuracy]", "rewards.accuracy.extract=anywhere"], "plain"),
        (["rewards=[number_match]"], "plain"),
        (["rewards=[number_match,boxed]"], "boxed"),
        (["rewards=[unique_chars]", "data=tldr"], None),
        (["rewards=[code]"], None),
        (["data.system_prompt=plain"], "plain"),
        (["data.system_prompt=null"], None),
        (["data.system_prompt=none"], "none"),
        (["model=tiny"], None),
        (["model=tiny", "data=gsm8k"], None),
        (["model.weights=random"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_system_prompt_tells_what_the_rewards_look_for(overrides: list[str], prompt: str | None) -> None:
    assert asked(REAL, *overrides).data["system_prompt"] == prompt


def test_parts_of_a_mixture_are_asked_alike() -> None:
    parts = asked(REAL, "data=mix", "rewards=[countdown]", "data.parts.countdown.system_prompt=plain").data["parts"]
    assert {name: part["system_prompt"] for name, part in parts.items()} == {"arithmetic": "r1", "countdown": "plain"}


def test_a_reward_that_yaml_gives_no_settings_is_read_with_its_defaults() -> None:
    assert system_prompt({"mine": {"_target_": "grpo_lab.rewards.accuracy"}}) == "boxed"
    assert system_prompt({"mine": {"_target_": "my_rewards.short"}}) is None


def _notes(*overrides: str) -> list[str]:
    return [note for note in planned(with_gpus(1), *overrides).notes if note.startswith("rewards.")]


def test_a_reward_that_no_instruction_asks_for_is_a_note() -> None:
    (note,) = _notes(REAL, "rewards=[accuracy]", "data.system_prompt=none")
    assert "rewards.accuracy looks for \\boxed or <answer>, which data.system_prompt=none does not ask for" in note
    (note,) = _notes(REAL, "rewards=[format,boxed]")
    assert note.startswith("rewards.format ") or note.startswith("rewards.boxed ")
    assert not _notes(REAL, "rewards=[accuracy]", "data.system_prompt='Put it in \\boxed{}, please.'")
    assert not _notes(REAL) + _notes("model=tiny") + _notes(REAL, "rewards=[number_match]", "data.system_prompt=none")


@pytest.mark.parametrize(
    ("overrides", "numbers"),
    [
        (["model=smollm2-135m"], (200, 1e-5, 256)),
        (["model=qwen2.5-0.5b"], (200, 5e-6, 512)),
        (["model=qwen2.5-0.5b", "peft=lora"], (200, 5e-5, 512)),
        (["model=qwen2.5-3b"], (200, 2e-6, 512)),
        (["model=qwen2.5-7b"], (200, 1e-6, 512)),
        (["model=path", "model.path=no/body"], (200, 1e-6, 512)),
        (["model=path", f"model.path={ASSETS / 'tiny'}"], (100, 1.5e-4, 64)),
        (["model=qwen2.5-7b", "grpo.learning_rate=3e-6", "grpo.max_steps=7"], (7, 3e-6, 512)),
        (["model=tiny"], (100, 1.5e-4, 32)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_numbers_suit_the_size(overrides: list[str], numbers: tuple[int, float, int]) -> None:
    grpo = asked(*overrides).grpo
    assert (grpo["max_steps"], grpo["learning_rate"], grpo["max_completion_length"]) == numbers


def test_a_checkpoint_without_countable_weights_has_the_size_of_its_shape(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"num_attention_heads": 9, "hidden_size": 576, "intermediate_size": 1536, "head_dim": 64}
    fields |= {"num_hidden_layers": 30, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "max_position_embeddings": 100}))
    grpo = asked("model=path", f"model.path={tmp_path}").grpo
    assert (grpo["learning_rate"], grpo["max_completion_length"]) == (1e-5, 50)


def test_what_refers_to_a_number_gets_it() -> None:
    config = asked("model=smollm2-135m", "rewards=[length_cosine]")
    assert config.rewards["length_cosine"]["max_len"] == 256


def test_a_run_with_its_settings_written_out_is_the_same_run() -> None:
    """Configs of before had them so."""
    written = [
        "data.system_prompt=r1",
        "grpo.max_steps=200",
        "grpo.learning_rate=5e-6",
        "grpo.max_completion_length=512",
    ]
    assert configuration.identity(asked(REAL)) == configuration.identity(asked(REAL, *written))


def test_the_page_holds_the_table() -> None:
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (\d+) \| ([\d.e-]+) \| (\d+) \|$", page, re.MULTILINE)
    table = [(size.max_steps, size.learning_rate, size.max_completion_length) for size in SIZES]
    assert [(int(steps), float(rate), int(tokens)) for steps, rate, tokens in rows] == table


def test_a_dry_run_shows_the_prompt_and_the_numbers(tmp_path: Path) -> None:
    """The card's own command asks for the format that it rewards."""
    shown = cli("vllm=colocate", REAL, "dry_run=true", cwd=tmp_path).stdout
    assert "<answer> answer here </answer>" in shown
    assert "the tokenizer of Qwen/Qwen2.5-0.5B is not on this machine" in shown
    assert "200 steps, learning rate 5e-06, completions of at most 512 tokens, temperature 1" in shown
    assert shown.endswith("user: 25+57=?\n")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_why_it_shows_no_prompt(tmp_path: Path) -> None:
    assert "# first prompt not shown: openai/gsm8k comes from the Hub" in cli("dry_run=true", "data=gsm8k").stdout
    own = cli("dry_run=true", "data=custom", "data._target_=tests.rows.empty").stdout
    assert "# first prompt not shown: tests.rows.empty is not run before the start" in own
    assert "# first prompt not shown: data: difficulty=99" in cli("dry_run=true", "data.difficulty=99").stdout
