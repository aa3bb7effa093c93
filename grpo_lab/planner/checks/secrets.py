"""Credentials in a request. They are kept out of every file, so a process that reads the file would lack them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from grpo_lab.config.errors import RequestError
from grpo_lab.config.redaction import redact
from grpo_lab.config.schema import Config
from grpo_lab.server.key import KEY

_READ_FROM_MEMORY = ("vllm.env", "sweep.overrides")
"""Keys that no child reads from a file: its environment, which the conductor passes on, and the overrides."""


def check_secrets(config: Config) -> None:
    """Raises RequestError, without the value, for a secret anywhere but in the environment."""
    asked = asdict(config)
    for key in _changed(asked, redact(asked), ""):
        if not key.startswith(_READ_FROM_MEMORY):
            raise RequestError(
                f"{key} holds a secret, which is not written to the run's files, so the worker could not have it;"
                " pass it in an environment variable (NAME=... before the command, or vllm.env.NAME=)"
            )
    if KEY in config.vllm.env:
        raise RequestError(f"vllm.env.{KEY}: set it before the command; whatever asks the server reads it there")


def _changed(before: Any, after: Any, key: str) -> Iterator[str]:
    if isinstance(before, dict):
        for name, value in before.items():
            yield from _changed(value, after[name], f"{key}.{name}".lstrip("."))
    elif isinstance(before, list | tuple):
        for index, value in enumerate(before):
            yield from _changed(value, after[index], f"{key}[{index}]")
    elif isinstance(before, str) and before != after:
        yield key
