"""What can be known to be wrong before anything starts: rewards that do not exist, data that cannot be read."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_lab.config import CONF, Config
from grpo_lab.errors import RequestError, nearest
from grpo_lab.plan import data_arguments


def check_targets(config: Config) -> None:
    """The functions of data and rewards exist and take the parameters given.

    Their modules are parsed, not imported: a user's reward may import torch.

    Raises:
        RequestError: naming the key and the nearest valid name.
    """
    _check_call("data", config.data, ours={"_target_", "max_prompt_tokens"})
    _check_rewards(config.rewards)


def _check_rewards(rewards: dict[str, Any]) -> None:
    for name, settings in rewards.items():
        if not isinstance(settings, dict) or "_target_" not in settings:
            shipped = [file.stem for file in (CONF / "rewards").glob("*.yaml")]
            raise RequestError(
                f"rewards.{name} has settings but is not chosen, and has no rewards.{name}._target_;"
                f" choose with rewards=[...]; {nearest(name, shipped)}"
            )
        _check_call(f"rewards.{name}", settings, ours={"_target_", "weight"})
        if not isinstance(settings.get("weight", 1.0), int | float):
            raise RequestError(f"rewards.{name}.weight={settings['weight']!r}: must be a number")


def _check_call(key: str, settings: dict[str, Any], ours: set[str]) -> None:
    """The function that `_target_` names is there and has the other keys as parameters."""
    target = str(settings.get("_target_"))
    definition = _definition(f"{key}._target_", target)
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    known = [argument.arg for argument in (*definition.args.args, *definition.args.kwonlyargs)]
    for parameter in settings.keys() - ours - set(known):
        raise RequestError(f"{key}.{parameter}: {target} has no such parameter; {nearest(parameter, known)}")


def _definition(key: str, target: str) -> ast.AST:
    """The top-level statement of its module that binds the function a dotted path names."""
    module, _, function = str(target).rpartition(".")
    try:
        spec = find_spec(module) if module else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise RequestError(f"{key}={target}: no module '{module}' on the Python path (the working directory is on it)")
    bound = {
        name: node for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body for name in _names(node)
    }
    if function not in bound:
        raise RequestError(f"{key}={target}: '{module}' defines no '{function}'; {nearest(function, bound)}")
    return bound[function]


def _names(node: ast.AST) -> list[str]:
    """The names that a top-level statement binds."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name for alias in names]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case _:
            return []


def check_data(config: Config) -> None:
    """The data function gives rows with a prompt (needs no torch; a hub data set is downloaded here).

    Raises:
        RequestError: naming what is missing.
    """
    target = str(config.data["_target_"])
    module, _, function = target.rpartition(".")
    load = getattr(importlib.import_module(module), function)
    for split in ("train", "test") if config.eval.enabled else ("train",):
        try:
            rows = load(split, **data_arguments(config))
        except (ValueError, TypeError, OSError) as error:
            raise RequestError(f"data: {error}") from error
        if len(rows) == 0:
            raise RequestError(f"data: {target} gives no rows for the split '{split}'")
        if "prompt" not in rows.column_names:
            raise RequestError(f"data: {target} gives no column 'prompt'; it has {', '.join(rows.column_names)}")
    needing = [name for name, reward in config.rewards.items() if reward["_target_"] == "grpo_lab.rewards.accuracy"]
    if needing and "solution" not in rows.column_names:
        raise RequestError(f"data: {target} gives no column 'solution', which rewards.{needing[0]} needs")
