"""Where a policy's files are, and what shape and size it has, without loading it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from grpo_lab.config import shelf
from grpo_lab.config.errors import BadModel, RequestError, nearest
from grpo_lab.config.places import ASSETS
from grpo_lab.config.schema import ModelConfig

RANDOM = 2
"""Counted up when grpo_lab.worker.random_weights makes another checkpoint of the same architecture."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What config.json calls the number of experts, by model type and version of transformers."""

# conf/model/path.yaml names a model by the end of its path; without a path the refusal names that.


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, from the fields of its `config.json`."""

    layers: int
    hidden: int
    mlp: int
    """Inner size of the feed-forward layer; in a mixture of experts, of one expert."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int | None
    """Longest sequence, in tokens; None where the checkpoint does not say."""
    tied: bool
    """The output layer is the embedding, and its weights are there once."""
    experts: int = 0
    """In a layer; 0 without a mixture."""
    experts_per_token: int = 0


def shape(model: ModelConfig) -> Shape | None:
    """None where it cannot be known: a hub id that was never downloaded, or a checkpoint with other field names."""
    return shape_of(architecture(model))


def shape_of(architecture: Mapping[str, Any]) -> Shape | None:
    fields = architecture.get("text_config", architecture)  # a multi-modal checkpoint keeps its decoder apart
    try:
        heads, hidden, mlp = fields["num_attention_heads"], fields["hidden_size"], fields["intermediate_size"]
        experts = next((fields[key] for key in EXPERTS if fields.get(key)), 0)
        return Shape(
            layers=fields["num_hidden_layers"],
            hidden=hidden,
            mlp=(experts and fields.get("moe_intermediate_size")) or mlp,
            heads=heads,
            kv_heads=fields.get("num_key_value_heads") or heads,
            head_dim=fields.get("head_dim") or hidden // heads,
            vocab=fields["vocab_size"],
            context=fields.get("max_position_embeddings"),
            tied=fields.get("tie_word_embeddings", True),  # left out of older files where it is transformers' default
            experts=experts,
            experts_per_token=fields.get("num_experts_per_tok") or 0,
        )
    except KeyError:
        return None


def architecture(model: ModelConfig) -> dict[str, Any]:
    """The shape under config.json's own names: from a checkpoint on this machine, else from the YAML, else empty.

    Raises:
        RequestError: where the checkpoint that `model.path` names is not of the YAML's shape.
    """
    folder = _folder(model)
    if folder is None:
        return dict(model.architecture)
    content = _read_json(folder / "config.json")
    given, actual = shape_of(model.architecture), shape_of(content)
    if given and actual:
        pairs = zip(asdict(given).items(), asdict(actual).values(), strict=True)
        for (key, here), there in pairs:
            if here != there and key != "context":
                raise RequestError(
                    f"model.path={model.path} is no {model.name}: {key} is {there}, not {here};"
                    " model=path takes any checkpoint"
                )
    return content


def parameters(model: ModelConfig) -> int | None:
    """From the YAML, else counted in the headers of the checkpoint's safetensors files, else None."""
    folder = _folder(model)
    if model.parameters is not None or folder is None:
        return model.parameters
    known = shape(model)
    return _count(folder, tied=known is not None and known.tied)


def size(model: ModelConfig) -> int | None:
    """Number of parameters as :func:`parameters` gives it, or what the shape comes to where the files do not say."""
    counted, known = parameters(model), shape(model)
    if counted is not None or known is None:
        return counted
    attention = 2 * known.hidden * known.head_dim * (known.heads + known.kv_heads)
    mlp = 3 * known.hidden * known.mlp * max(1, known.experts)
    return known.layers * (attention + mlp) + known.vocab * known.hidden * (1 if known.tied else 2)


def active_parameters(model: ModelConfig) -> int | None:
    """Those that work on a token: all but the experts that it is not sent to. None where unknown."""
    total, known = parameters(model), shape(model)
    if total is None or known is None:
        return None
    if known.experts and architecture(model).get("model_type") not in ("qwen3_moe", "mixtral"):
        return None  # other mixtures have layers or experts of several kinds
    idle = known.experts - known.experts_per_token
    return total - known.layers * idle * 3 * known.hidden * known.mlp


def location(model: ModelConfig) -> str:
    """Folder or hub id to load. `asset:` is inside the package; random weights have a folder in the cache.

    Raises:
        RequestError: an asset that does not exist, or a path that looks local and is not there.
    """
    if model.weights == "random":
        return str(random_folder(model))
    return str(local(model) or model.path)


def random_folder(model: ModelConfig, *, weights: bool = True) -> Path:
    """Cache folder of the random-weights checkpoint of this architecture (made by grpo_lab.worker.random_weights).

    Without weights: of its config and tokenizer alone, for an engine that draws weights itself (load_format=dummy).
    """
    fields = architecture(model)
    if not fields:
        raise RequestError(f"model.weights=random: the architecture of model.path={model.path} is not known here")
    drawn = json.dumps([RANDOM, fields], sort_keys=True, default=str)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    name = f"{model.name}-{hashlib.sha256(drawn.encode()).hexdigest()[:12]}"
    return cache / "grpo-lab" / "random" / (name if weights else f"{name}-shape")


def local(model: ModelConfig) -> Path | None:
    """The folder that `model.path` names; None for a hub id. Raises RequestError as `location` does."""
    if model.path.startswith("asset:"):
        name = model.path.removeprefix("asset:")
        if not (ASSETS / name / "config.json").is_file():
            shipped = [folder.name for folder in ASSETS.iterdir() if folder.is_dir()]
            raise BadModel(f"model.path={model.path}: no such checkpoint in the package; {nearest(name, shipped)}")
        return ASSETS / name
    folder = Path(model.path).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if model.path.startswith(shelf.LOCAL):
        raise shelf.missing(model.path)
    return None


def tokenizer_folder(model: ModelConfig) -> Path | None:
    """The local folder or that of the hub's cache; None where the tokenizer is not on this machine."""
    folder = local(model) or cached(model)
    return folder if folder and (folder / "tokenizer_config.json").is_file() else None


def _folder(model: ModelConfig) -> Path | None:
    """Where the checkpoint's files are on this machine: the local folder, or the hub's cache; None where they are not.

    The cache is asked only for what the YAML does not say.
    """
    folder = local(model)
    if folder or model.architecture:
        return folder
    return cached(model)


def cached(model: ModelConfig) -> Path | None:
    """The hub's cache of a hub id; None where it was never downloaded. Raises BadModel for what is no hub id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except HFValidationError as error:
        raise BadModel(
            f"model.path={model.path}: neither a folder (with a config.json) nor a hub id, which is owner/name;"
            f" {shelf.like(model.path)}"
        ) from error
    return Path(config).parent if isinstance(config, str) else None


def _count(folder: Path, *, tied: bool) -> int | None:
    """Parameters of a checkpoint; None where it is not in safetensors files, or some are missing.

    A tied output layer counts as nothing, though some checkpoints hold a second copy of it.
    """
    index = folder / "model.safetensors.index.json"
    names = set(_read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    files = [folder / name for name in names]
    if not all(file.is_file() for file in files):
        return None
    tensors = {name: tensor for file in files for name, tensor in _header(file).items() if name != "__metadata__"}
    sizes: dict[str, int] = {name: prod(tensor["shape"]) for name, tensor in tensors.items()}
    return sum(sizes.values()) - (sizes.get("lm_head.weight", 0) if tied else 0)


def _header(file: Path) -> dict[str, Any]:
    """The names, types and shapes that a safetensors file begins with: their length in 8 bytes, then JSON."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        text = content.read(min(length, 100_000_000))  # the format's own limit; a damaged file may ask for anything
    return _parse(file, text)


def _read_json(file: Path) -> dict[str, Any]:
    return _parse(file, file.read_bytes())


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise BadModel(f"{file}: damaged ({error}); copy or download the checkpoint again") from error
    assert isinstance(parsed, dict)
    return parsed
