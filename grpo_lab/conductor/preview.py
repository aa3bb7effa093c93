"""The first prompt as the policy will see it, shown by a dry run.

A chat template is rendered here as transformers renders it: its import takes a second, which no command of ours takes
before a run.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from grpo_lab.config import model as policy
from grpo_lab.config.errors import RequestError
from grpo_lab.config.schema import Config
from grpo_lab.planner.train import data_arguments

LARGEST = 50_000_000
"""Bytes of data files that a dry run still reads."""


class NotShown(Exception):
    """Why the prompt cannot be shown before the run."""


def prompt(config: Config) -> Iterator[str]:
    """Lines: the first training prompt through the model's chat template, or why it is not shown."""
    try:
        first = _first_prompt(config)
        folder = None if config.model.weights == "random" else policy.tokenizer_folder(config.model)
        if folder is None:
            where = f"the tokenizer of {config.model.path} is not on this machine, so its chat template is not applied"
            lines = [f"\n# first prompt; {where}", *_plain(first)]
        else:
            lines = ["\n# first prompt, as the policy sees it", rendered(folder, first, _options(config))]
    except NotShown as reason:
        lines = [f"\n# first prompt not shown: {reason}"]
    yield from lines


def _options(config: Config) -> Mapping[str, Any]:
    return config.grpo.get("chat_template_kwargs") or {}


def _plain(prompt: Any) -> list[str]:
    return [prompt] if isinstance(prompt, str) else [f"{message['role']}: {message['content']}" for message in prompt]


def _first_prompt(config: Config) -> Any:
    """A text, or chat messages. Raises NotShown."""
    module, _, function = str(config.data["_target_"]).rpartition(".")
    if module != "grpo_lab.data":
        raise NotShown(f"{module}.{function} is not run before the start")
    for part in (config.data, *(config.data.get("parts") or {}).values()):
        _check_source(part)
    import_module("datasets").disable_progress_bars()
    try:
        rows = getattr(import_module(module), function)("train", **data_arguments(config))
    except (ValueError, TypeError, OSError) as error:
        raise NotShown(f"data: {error}") from error
    return rows[0]["prompt"]


def _check_source(data: Mapping[str, Any]) -> None:
    """Hub data and large files are read by the run. Raises NotShown."""
    path = data.get("path")
    if path is None and "hub_id" in data:
        raise NotShown(f"{data['hub_id']} comes from the Hub")
    if path is not None and _bytes(Path(str(path)).expanduser()) > LARGEST:
        raise NotShown(f"data.path={path} holds more than {LARGEST // 10**6} MB")


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    return sum(file.stat().st_size for file in files if file.is_file())


def rendered(folder: Path, prompt: Any, options: Mapping[str, Any]) -> str:
    """The text of the prompt, as transformers 5 writes it with the tokenizer in this folder. Raises NotShown."""
    if isinstance(prompt, str):
        return prompt
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        template = _template(folder, settings)
        if template is None:
            return "\n\n".join(message["content"] for message in prompt) + "\n"
        values = {**_special_tokens(settings), **options}
        return _environment().from_string(template).render(messages=prompt, add_generation_prompt=True, **values)
    except (OSError, ValueError, TemplateError, RequestError) as error:
        raise NotShown(f"the chat template of {folder}: {error}") from error


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    written = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    if isinstance(written, list):  # several, by name
        written = {entry["name"]: entry["template"] for entry in written}.get("default")
    return written and re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", written)  # TRL's marks of what is learned


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and its like, each a text or, in older files, a record."""
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers.utils.chat_template_utils makes it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **more: json.dumps(value, **{"ensure_ascii": False, **more})
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)
