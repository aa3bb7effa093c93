"""Where a policy's files are and what shape it has, without loading it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from grpo_lab.config import ModelConfig
from grpo_lab.errors import RequestError, nearest

ASSETS = Path(__file__).resolve().parent / "assets"


def location(model: ModelConfig) -> str:
    """Folder or hub id to load. `asset:` is inside the package; random weights have a folder in the cache.

    Raises:
        RequestError: an asset that does not exist, or a path that looks local and is not there.
    """
    if model.weights == "random":
        return str(random_folder(model))
    if model.path.startswith("asset:"):
        name = model.path.removeprefix("asset:")
        if not (ASSETS / name / "config.json").is_file():
            shipped = [folder.name for folder in ASSETS.iterdir() if folder.is_dir()]
            raise RequestError(f"model.path={model.path}: no such checkpoint in the package; {nearest(name, shipped)}")
        return str(ASSETS / name)
    if model.path.startswith((".", "/", "~")):
        folder = Path(model.path).expanduser()
        if not (folder / "config.json").is_file():
            raise RequestError(f"model.path={model.path}: no checkpoint there (a folder with a config.json)")
        return str(folder.resolve())
    return model.path


def random_folder(model: ModelConfig) -> Path:
    """Cache folder of the random-weights checkpoint of this architecture (made by grpo_lab.random_weights)."""
    if not model.architecture:
        raise RequestError(f"model.weights=random: model '{model.name}' has no model.architecture to draw weights for")
    shape = json.dumps({"architecture": model.architecture, "dtype": model.dtype}, sort_keys=True, default=str)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "grpo-lab" / "random" / f"{model.name}-{hashlib.sha256(shape.encode()).hexdigest()[:12]}"


def architecture(model: ModelConfig) -> dict[str, Any]:
    """The shape under config.json's own names: from the YAML, else from a local checkpoint, else empty (unknown)."""
    if model.architecture:
        return dict(model.architecture)
    config = Path(location(model)) / "config.json"
    return json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
