"""Which model a name means: an entry of conf/model, a folder, or a hub id; and which is nearest to one that is none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from grpo_lab.config.errors import BadModel
from grpo_lab.config.places import CONF

SHELF = CONF / "model"
LOCAL = (".", "/", "~")
"""How a path begins that can be no hub id."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_natural(name: str) -> bool:
    """Whether a name that is no entry of the shelf may be a folder or a hub id."""
    return name.startswith(LOCAL) or _HUB_ID.fullmatch(name) is not None or Path(name).is_dir()


def entry(name: str) -> dict[str, Any]:
    """The `model` section of a folder or hub id; of a hub id that has an entry on the shelf, that entry."""
    if not is_folder(name):
        if name in (known := _by_hub_id()):
            return _read(known[name])
        if Path(name).is_dir() and not name.startswith(LOCAL):
            name = f"./{name}"  # which can be no hub id
    return {"name": Path(name).expanduser().absolute().name, "path": name}


def is_folder(name: str) -> bool:
    return (Path(name).expanduser() / "config.json").is_file()


def missing(path: str) -> BadModel:
    """Says that there is no checkpoint, and what is nearest."""
    folder = Path(path).expanduser()
    has = "no such folder"
    if (folder / "adapter_config.json").is_file():
        has = "an adapter alone; merge it (peft: merge_and_unload, save_pretrained) into its base first"
    elif folder.is_dir():
        has = "this folder has no config.json"
    return BadModel(f"model.path={path}: no checkpoint there ({has}); {like(path)}")


def unknown(name: str) -> str:
    """Message for a name that is neither an entry nor a folder."""
    return f"model={name}: no entry of the shelf (docs/models.md) and no folder here; {like(name)}"


def like(name: str) -> str:
    """The nearest folder, entry or hub id, as a question; otherwise how models are named."""
    entries, ids = (file.stem for file in SHELF.glob("*.yaml")), _by_hub_id()
    known = {text.lower(): text for text in (*_folders(name), *entries, *ids) if text != name}
    wanted = name.lower().removeprefix("./")
    close = difflib.get_close_matches(wanted, [text.removeprefix("./") for text in known], n=1, cutoff=0.6)
    if close:
        return f"did you mean '{known.get(close[0]) or known[f'./{close[0]}']}'?"
    return "a model is an entry of docs/models.md, a folder as save_pretrained leaves it, or owner/name of the hub"


def _folders(name: str) -> Iterator[str]:
    """Checkpoints in the working directory, and beside a path that is not there."""
    beside = Path(name).expanduser().parent
    for place in dict.fromkeys((Path("."), beside)):
        for file in place.glob("*/config.json") if place.is_dir() else ():
            folder = str(file.parent)
            yield folder if folder.startswith(LOCAL) else f"./{folder}"


@cache
def _by_hub_id() -> dict[str, Path]:
    """Hub id -> its entry."""
    texts = {
        file: re.search(r"^path: (\S+/\S+)$", file.read_text(encoding="utf-8"), re.M) for file in SHELF.glob("*.yaml")
    }
    return {match[1]: file for file, match in sorted(texts.items()) if match}


def _read(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content
