"""The card of a policy: the numbers of its run, and what the Hub reads of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from grpo_lab.store import model_card
from grpo_lab.store.folder import Row, Run, save_config
from grpo_lab.store.measures import MEASURES, Measure
from tests.planner.test_plan import asked
from tests.results import make, timing

AFTER = {"value": 0.75, "ci95": [0.5, 0.9], "n": 16}


def run_of(folder: Path, metrics: Row, *words: str) -> Run:
    run = make(folder, metrics=metrics, steps=4, warmup_steps=1)
    save_config(asked(*words), run.config)
    return run


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["data=gsm8k"], ("openai/gsm8k", "gsm8k", "main", "test")),
        (["data=gsm8k", "data.path=/home/me/gsm8k"], ("gsm8k", "gsm8k", None, "test")),
        (["data=arithmetic"], ("arithmetic", "arithmetic", None, None)),
        (["data=mix"], ("mix", "mix", None, None)),
    ],
)
def test_the_hub_shows_the_held_out_accuracy(words: list[str], wanted: tuple[str | None, ...], tmp_path: Path) -> None:
    card = ModelCard(model_card.card(run_of(tmp_path / "mine", {"accuracy_after": AFTER}, *words)))
    (shown,) = card.data.eval_results
    assert (shown.metric_type, shown.metric_value) == ("pass@1", 0.75)
    assert (shown.dataset_type, shown.dataset_name, shown.dataset_config, shown.dataset_split) == wanted
    assert card.data.model_name == "mine"
    assert "grpo" in card.data.tags


def test_a_base_model_of_the_hub_is_named(tmp_path: Path) -> None:
    of_the_hub = ModelCard(model_card.card(run_of(tmp_path / "hub", {}, "model=qwen2.5-0.5b", "peft=lora")))
    assert (of_the_hub.data.base_model, of_the_hub.data.library_name) == ("Qwen/Qwen2.5-0.5B", "peft")
    assert of_the_hub.data.eval_results is None, "nothing was evaluated"
    local = ModelCard(model_card.card(run_of(tmp_path / "local", {})))
    assert (local.data.base_model, local.data.library_name) == (None, "transformers")


def test_the_card_has_the_metrics_that_the_list_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys = (Measure("toys", "toys", card="toys a second"), Measure("dolls", "dolls", card="dolls"))
    monkeypatch.setitem(MEASURES, "train", (*MEASURES["train"], *toys))
    metrics = {"accuracy_after": AFTER, "step_time_s": None, "toys": timing(2.0), "dolls": 3, "mfu": timing(0.5)}
    lines = model_card.card(run_of(tmp_path / "mine", metrics)).splitlines()
    assert lines[lines.index("## Results") + 4 :][:3] == [
        "| held-out pass@1 after training | 0.75 | 0.5 to 0.9 | 16 |",
        "| toys a second | 2 | 1.9 to 2.1 | 8 |",
        "| dolls | 3 |  |  |",
    ]
