"""`python -m grpo_lab.evaluate` through vLLM, against transformers: the same weights, adapter included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from grpo_lab.config.places import ASSETS
from grpo_lab.store import checkpoints
from grpo_lab.store import folder as store
from grpo_lab.store.folder import Evaluation, Run
from tests.conductor.test_evaluate import evaluate, records, saved_run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

GREEDY = ["evaluate.temperature=0", "evaluate.problems=48"]


def test_vllm_and_transformers_complete_alike(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "lora")
    add_adapter(run, step=3)
    shown = [evaluate(str(run.folder), *GREEDY, *words) for words in ([], ["vllm=off"])]
    for ended in shown:
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "vLLM, tp=1, CPU" in shown[0].stdout
    works = [Evaluation(folder) for folder in (run.folder / "evaluations").iterdir()]
    results = {store.read_json(work.result)["backend"]: work for work in works}
    pairs = list(zip(records(results["vllm"]), records(results["transformers"]), strict=True))
    alike = [ours["completion"] == theirs["completion"] for ours, theirs in pairs]
    assert sum(alike) >= 46  # two near ties may fall otherwise
    assert all(ours["tokens"] == theirs["tokens"] for (ours, theirs), same in zip(pairs, alike, strict=True) if same)
    assert sum(ours["correct"] for ours, _ in pairs) < 24  # greedy, without the adapter, about 36
    assert not results["vllm"].merged.exists()


def add_adapter(run: Run, step: int) -> None:
    """A LoRA adapter as peft saves it, drawn at random: it makes the policy worse, but not mute."""
    shape = json.loads((ASSETS / "tiny" / "config.json").read_text())
    draw, rank, width = np.random.default_rng(0), 4, shape["hidden_size"]
    sizes = {"A": (rank, width), "B": (width, rank)}
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{side}.weight": draw.normal(0, 0.2, size)
        for layer in range(shape["num_hidden_layers"])
        for side, size in sizes.items()
    }
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    weights = {name: values.astype("float32") for name, values in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).symlink_to(ASSETS / "tiny" / file)
    (folder / "trainer_state.json").write_text("{}")
    checkpoints.seal(folder)
