"""Experiments of published programs, field by field; what differs from the source is named here and in a README."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.config.schema import Config
from tests.conftest import ROOT
from tests.planner.test_plan import asked, planned, with_gpus

GRPO_2025 = {
    "learning_rate": 1e-6,
    "temperature": 1.0,
    "beta": 0.0,
    "num_generations": 8,
    "per_device_train_batch_size": 8,
}
"""TRL's defaults when the three programs were published, and today."""

SOURCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "numina_colab": (
        {
            "model.path": "Qwen/Qwen2-0.5B-Instruct",
            "data._target_": "grpo_lab.data.numina",
            "data.hub_id": "AI-MO/NuminaMath-TIR",
            "data.train": "train[:10%]",
            "data.test": "test[:10%]",
            "data.system_prompt": "r1",
            "data.max_prompt_tokens": 512,
            "rewards": ["accuracy", "format"],
            "rewards.accuracy.weight": 1.0,
            "rewards.format.weight": 1.0,
            "peft.kind": "lora",
            "peft.options": {
                "r": 8,
                "lora_alpha": 32,
                "lora_dropout": 0.1,
                "target_modules": ["q_proj", "v_proj"],
            },
            "grpo": GRPO_2025
            | {
                "learning_rate": 1e-5,
                "max_steps": -1,
                "num_train_epochs": 1,
                "gradient_accumulation_steps": 16,
                "max_completion_length": 512,
                "save_steps": 10,
            },
            "tracker.kind": "trackio",
            "tracker.project": None,
            "publish.repo_id": "pushed",
        },
        {"publish.repo_id": None, "model.dtype": "bfloat16", "vllm.mode": "colocate"},
    ),
    "deepmath_qwen3": (
        {
            "model.path": "Qwen/Qwen2.5-0.5B-Instruct",
            "data._target_": "grpo_lab.data.deepmath",
            "data.hub_id": "trl-lib/DeepMath-103K",
            "data.train": "train",
            "data.system_prompt": "none",
            "rewards": ["accuracy"],
            "rewards.accuracy.weight": 1.0,
            "peft.kind": "none",
            "model.dtype": "float32",
            "grpo": GRPO_2025
            | {"max_steps": -1, "gradient_accumulation_steps": 1, "max_completion_length": 256, "save_steps": 500},
        },
        {
            "model.path": "Qwen/Qwen3-1.7B",
            "vllm.mode": "colocate",
            "data.max_prompt_tokens": 512,
            "grpo": {
                "max_steps": 100,
                "gradient_accumulation_steps": 8,
                "max_completion_length": 2048,
                "save_steps": 50,
            },
        },
    ),
    "quickstart_tldr": (
        {
            "model.path": "Qwen/Qwen2.5-7B",
            "data._target_": "grpo_lab.data.tldr",
            "data.hub_id": "trl-lib/tldr",
            "data.train": "train",
            "data.system_prompt": None,
            "data.max_prompt_tokens": 512,
            "rewards": ["unique_chars"],
            "rewards.unique_chars.weight": 1.0,
            "peft.kind": "none",
            "vllm.mode": "server",
            "vllm.tp": 2,
            "vllm.dp": 2,
            "trainer_gpus": 4,
            "grpo": GRPO_2025
            | {"max_steps": -1, "gradient_accumulation_steps": 1, "max_completion_length": 256, "save_steps": 500},
        },
        {"model.dtype": "bfloat16", "grpo": {"max_steps": 100, "save_steps": 50}},
    ),
}
"""Experiment -> fields of its source, and what is ours instead or beside it. Addresses are in the READMEs."""


def value(config: Config, key: str) -> Any:
    if key == "rewards":
        return list(config.rewards)
    at: Any = config
    for part in key.split("."):
        at = at[part] if isinstance(at, dict) else getattr(at, part)
    return at


@pytest.mark.parametrize("experiment", SOURCES)
def test_an_experiment_is_its_source(experiment: str) -> None:
    published, ours = SOURCES[experiment]
    config = asked(f"experiment={experiment}")
    expected = {**published, **ours, "grpo": {**published["grpo"], **ours.get("grpo", {})}}
    options = expected.pop("grpo")
    assert {key: value(config, key) for key in expected} == expected
    trained = planned(with_gpus(8 if experiment == "quickstart_tldr" else 1), f"experiment={experiment}").trl
    assert {key: trained[key] for key in options} == options
    assert config.grpo.keys() - options.keys() <= {"generation_batch_size"}  # nothing else departs from TRL's defaults


@pytest.mark.parametrize("experiment", SOURCES)
def test_its_readme_names_what_differs(experiment: str) -> None:
    page = (ROOT / "experiments" / experiment / "README.md").read_text(encoding="utf-8")
    _, ours = SOURCES[experiment]
    for key in [*(key for key in ours if key != "grpo"), *(f"grpo.{key}" for key in ours.get("grpo", {}))]:
        assert f"`{key}" in page, key


def test_the_defaults_of_trl_are_still_those() -> None:
    """What the sources leave to TRL: of its config class as it is installed."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "trainer" / "grpo_config.py").read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GRPOConfig"]
    defaults = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            given = [word.value for word in node.value.keywords if word.arg == "default"]
            defaults[node.target.id] = ast.literal_eval(given[0]) if given else None
    shared = defaults.keys() & GRPO_2025.keys()
    assert len(shared) >= 4
    assert {key: defaults[key] for key in shared} == {key: GRPO_2025[key] for key in shared}
