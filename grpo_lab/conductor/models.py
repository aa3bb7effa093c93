"""Whether the policy can be loaded: its files, or the hub's leave to fetch them, seen before anything starts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from grpo_lab.config import model as policy
from grpo_lab.config import shelf
from grpo_lab.config.errors import BadModel
from grpo_lab.config.schema import ModelConfig
from grpo_lab.store.files import read_json

PATIENCE_S = 5.0
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer*", "vocab.*", "spiece.model", "tekken.json")


def check(model: ModelConfig) -> tuple[str, ...]:
    """Notes on what could not be seen.

    Raises:
        BadModel: for a checkpoint that is not there, lacks weights or a tokenizer, or whose tokenizer is another's.
    """
    if model.weights == "random":
        return ()
    folder = policy.local(model)
    if folder is not None:
        check_files(folder)
        return ()
    cached = policy.cached(model)
    if cached is not None and lacking(cached) is None:
        check_files(cached)
        return ()
    return _asked(model.path, model.revision)


def check_files(folder: Path) -> None:
    """Raises BadModel."""
    if (reason := lacking(folder)) is not None:
        raise BadModel(f"{folder}: {reason}; save_pretrained of the model and of its tokenizer writes both")
    rows, tokens = (policy.shape_of(read_json(folder / "config.json")), _tokens(folder))
    if rows is not None and tokens > rows.vocab:
        raise BadModel(
            f"{folder}: the tokenizer has {tokens} tokens and the model {rows.vocab} embeddings, so tokens would be out"
            " of range; take the model's own tokenizer, or save the model after resize_token_embeddings(len(tokenizer))"
        )


def lacking(folder: Path) -> str | None:
    """What a checkpoint has no file of, in words."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        absent = sorted({name for name in read_json(index)["weight_map"].values() if not (folder / name).is_file()})
        if absent:
            return f"{len(absent)} files of weights are missing, {absent[0]} first"
    elif not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return "no weights (*.safetensors)"
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        return "no tokenizer"
    return None


def has_chat_template(model: ModelConfig) -> bool | None:
    """None where its files are not on this machine."""
    if model.weights == "random":
        return True
    if (folder := policy.local(model) or policy.cached(model)) is None:
        return None
    settings = read_json(folder / "tokenizer_config.json") or {}
    return bool(settings.get("chat_template")) or any(folder.glob("*chat_template*"))


def _tokens(folder: Path) -> int:
    """One more than the highest token id; 0 where no tokenizer.json says it."""
    content: dict[str, Any] = read_json(folder / "tokenizer.json") or {}
    vocabulary = content.get("model", {}).get("vocab", {})
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return 1 + max((*ids, *(token["id"] for token in content.get("added_tokens", ()))), default=-1)


@cache
def _asked(path: str, revision: str | None) -> tuple[str, ...]:
    """The hub, about a checkpoint that is not whole on this machine; the points of a sweep ask once."""
    from httpx import HTTPError
    from huggingface_hub import constants, errors, get_hf_file_metadata, get_token, hf_hub_url

    wrong = f"model={path}"
    try:
        get_hf_file_metadata(hf_hub_url(path, "config.json", revision=revision), timeout=PATIENCE_S)
    except errors.GatedRepoError as error:
        ask = f"ask for access at {constants.ENDPOINT}/{path}, then set HF_TOKEN or run `hf auth login`"
        raise BadModel(f"{wrong}: the hub gives it only to who was granted access; {ask}") from error
    except errors.RevisionNotFoundError as error:
        raise BadModel(f"{wrong} model.revision={revision}: the hub has no such revision of it") from error
    except errors.RepositoryNotFoundError as error:
        private = "" if get_token() else "; a private one needs HF_TOKEN"
        raise BadModel(f"{wrong}: no folder here, and the hub has none{private}; {shelf.like(path)}") from error
    except errors.EntryNotFoundError as error:
        raise BadModel(f"{wrong}: on the hub, but without a config.json, so transformers cannot load it") from error
    except errors.OfflineModeIsEnabled as error:
        raise _unreachable(wrong, path, "HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise BadModel(f"{wrong}: the hub refuses the token; set HF_TOKEN or run `hf auth login`") from error
        return (f"{wrong}: the hub answered {status}, so whether it has the model was not seen",)
    except (HTTPError, OSError) as error:
        raise _unreachable(wrong, path, f"the hub cannot be reached ({type(error).__name__})") from error
    return ()


def _unreachable(wrong: str, path: str, reason: str) -> BadModel:
    return BadModel(
        f"{wrong}: not whole on this machine, and {reason}; {shelf.like(path)}\n`hf download {path}` fetches it where"
        " there is a network; model=./FOLDER takes a copy, or HF_HOME= that cache.\nmodel.weights=random measures speed"
        " without it: the architecture with random weights, which learns nothing"
    )
