"""`python -m grpo_lab.random_weights <run folder>`: the checkpoint of `model.weights=random`, made once a shape.

Speed does not depend on what the weights are, so a timing needs no download. The tokenizer is the tiny policy's with
fillers up to the model's vocabulary, so that every token that random weights can produce is one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from grpo_lab import config as configuration
from grpo_lab.config import ModelConfig
from grpo_lab.policy import ASSETS, random_folder
from grpo_lab.store import Run

SEED = 0


def make(model: ModelConfig) -> Path:
    """Draw the weights into the cache folder, which appears whole or not at all. Returns it."""
    folder = random_folder(model)
    if (folder / "config.json").is_file():
        return folder
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    eos, pad = _tokenizer(draft, int(model.architecture["vocab_size"]))
    _weights(model, draft, eos, pad)
    draft.rename(folder)
    return folder


def _tokenizer(folder: Path, vocabulary: int) -> tuple[int, int]:
    """Write a tokenizer of that many tokens; (end token, padding token)."""
    source = ASSETS / "tiny"
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / file, folder / file)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"]: token["id"] for token in tokenizer["added_tokens"]} | tokenizer["model"]["vocab"]
    used = set(known.values())
    tokenizer["model"]["vocab"] |= {f"filler{number}": number for number in range(vocabulary) if number not in used}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    return known[settings["eos_token"]], known[settings["pad_token"]]


def _weights(model: ModelConfig, folder: Path, eos: int, pad: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"eos_token_id": eos, "pad_token_id": pad, "bos_token_id": None}
    shape = AutoConfig.for_model(**{**model.architecture, **settings})
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        policy = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    policy.generation_config.update(**settings)
    policy.save_pretrained(folder)


if __name__ == "__main__":
    make(configuration.load(Run(Path(sys.argv[1])).config).model)
