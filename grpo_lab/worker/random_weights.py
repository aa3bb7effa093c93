"""`python -m grpo_lab.worker.random_weights <run folder> [shape]`: the checkpoint of `model.weights=random`, made once.

With `shape` only its config and tokenizer, from which vLLM's `load_format=dummy` makes weights in the GPUs' memory.

Speed does not depend on what the weights are, so a timing needs no download; but a random router spreads the tokens
over the experts of a mixture more evenly than a trained one may. The tokenizer is the tiny policy's with
fillers up to the model's vocabulary, so that every token that random weights can produce is one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_lab.config import compose as configuration
from grpo_lab.config.model import architecture, random_folder
from grpo_lab.config.places import ASSETS
from grpo_lab.config.schema import ModelConfig
from grpo_lab.machine.locks import held
from grpo_lab.store.folder import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEED = 0
PATIENCE_S = 3600.0
"""How long to wait for another run that draws the same weights."""


def make(model: ModelConfig, *, weights: bool = True) -> Path:
    """Draw the weights into the cache folder, which appears whole or not at all. Returns it.

    Of runs that start together one draws, and the others wait for it.
    """
    folder, fields = random_folder(model, weights=weights), architecture(model)
    draft = folder.with_name(f".{folder.name}.draft")
    with held(folder.with_name(f".{folder.name}.lock"), patience_s=PATIENCE_S):
        if not (folder / "config.json").is_file():
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            eos, pad = _tokenizer(draft, int(fields["vocab_size"]))
            _policy(fields, draft, eos, pad, weights=weights)
            draft.rename(folder)
    return folder


def _tokenizer(folder: Path, vocabulary: int) -> tuple[int, int]:
    """Write a tokenizer of that many tokens; (end token, padding token)."""
    source = ASSETS / "tiny"
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / file, folder / file)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"]: token["id"] for token in tokenizer["added_tokens"]} | tokenizer["model"]["vocab"]
    fillers = {f"filler{number}": number for number in set(range(vocabulary)) - set(known.values())}
    # With the added tokens: those that the model's own vocabulary leaves out are numbered anew, behind it.
    tokenizer["model"]["vocab"] = known | fillers
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    return known[settings["eos_token"]], known[settings["pad_token"]]


def _policy(fields: dict[str, Any], folder: Path, eos: int, pad: int, *, weights: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"eos_token_id": eos, "pad_token_id": pad, "bos_token_id": None}
    shape = AutoConfig.for_model(**{**fields, **settings})

    def build(device: str) -> PreTrainedModel:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)

    empty = build("meta")
    if not weights:
        empty.config.architectures = [type(empty).__name__]
        empty.config.save_pretrained(folder)
        return
    need = empty.num_parameters() * torch.bfloat16.itemsize
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    torch.manual_seed(SEED)
    policy = build("cuda" if need < free else "cpu")
    policy.generation_config.update(**settings)
    policy.save_pretrained(folder)


if __name__ == "__main__":
    make(configuration.load(Run(Path(sys.argv[1])).config).model, weights="shape" not in sys.argv[2:])
