"""What can be known to be wrong before anything starts: rewards that do not exist, data that cannot be read."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_lab.config.errors import RequestError, nearest
from grpo_lab.config.places import CONF
from grpo_lab.config.schema import Config
from grpo_lab.planner.layout import prompts_of
from grpo_lab.planner.train import data_arguments
from grpo_lab.rewards import sandbox


def check_targets(config: Config) -> None:
    """The functions of data and rewards exist and take the parameters given.

    Their modules are parsed, not imported: a user's reward may import torch.

    Raises:
        RequestError: naming the key and the nearest valid name.
    """
    _check_call("data", config.data, ours={"_target_", "max_prompt_tokens"})
    for name, part in (config.data.get("parts") or {}).items():
        if isinstance(part, dict) and "_target_" in part:
            _check_call(f"data.parts.{name}", part, ours={"_target_", "weight"})
    _check_rewards(config.rewards)


def _check_rewards(rewards: dict[str, Any]) -> None:
    for name, settings in rewards.items():
        if "_target_" not in settings:
            shipped = [file.stem for file in (CONF / "rewards").glob("*.yaml")]
            raise RequestError(
                f"rewards.{name} has settings but is not chosen, and has no rewards.{name}._target_;"
                f" choose with rewards=[...]; {nearest(name, shipped)}"
            )
        _check_call(f"rewards.{name}", settings, ours={"_target_", "weight"})
        _check_ability(f"rewards.{name}", settings)


def _check_ability(key: str, settings: dict[str, Any]) -> None:
    """What the shipped rewards need beside data: a machine that confines programs, a classifier to ask."""
    target, path, url = settings["_target_"], settings.get("path"), settings.get("url")
    if target == "grpo_lab.rewards.programs.code" and (lacking := sandbox.missing()):
        raise RequestError(
            f"{key}: programs cannot be confined here, so none is run: {lacking}.\nIt takes Linux 5.13 or newer with"
            " Landlock, libseccomp, and a container that blocks neither; or leave this reward out"
        )
    if target == "grpo_lab.rewards.classifier.model":
        if (path is None) == (url is None):
            raise RequestError(f"{key}: set {key}.path= (a sequence classifier) or {key}.url= (a server of one)")
        if str(path).startswith((".", "/", "~")) and not Path(str(path), "config.json").expanduser().is_file():
            raise RequestError(f"{key}.path={path}: no checkpoint there (a folder with a config.json)")
        if url is not None and not str(url).startswith(("http://", "https://")):
            raise RequestError(f"{key}.url={url}: must start with http:// or https://")


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
    """The top-level statement of its module that binds the function a dotted path names.

    An empty one where only an import can tell: lazy modules, star imports, guarded imports, methods of classes.
    """
    module, _, function = str(target).rpartition(".")
    spec = _spec(module)
    if spec is None and _spec(module.partition(".")[0]) is None:
        raise RequestError(f"{key}={target}: no module '{module}' on the Python path (the working directory is on it)")
    bound = _bound(Path(spec.origin)) if spec and spec.origin and spec.origin.endswith(".py") else {}
    if function in bound:
        return bound[function]
    lacking = _import_fails(target)
    if lacking is None:
        return ast.Pass()
    lacking = lacking or f"'{module}' defines no '{function}'; {nearest(function, bound)}"
    raise RequestError(f"{key}={target}: {lacking}")


def _spec(module: str) -> ModuleSpec | None:
    try:
        return find_spec(module) if module else None
    except (ModuleNotFoundError, ValueError):  # ValueError: a module without a spec, as __main__
        return None


@cache
def _import_fails(target: str) -> str | None:
    """Whether another process, which may import torch, finds no function: None, or what it has to say about it."""
    child = subprocess.run(
        (sys.executable, "-c", _IMPORT, target),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return None if child.returncode == 0 else child.stdout.partition(_MARK)[2].strip()


_MARK = "grpo-lab:"
_IMPORT = f"""
import sys, types
from hydra.utils import get_method
if isinstance(get_method(sys.argv[1]), types.BuiltinFunctionType):
    sys.exit(print("{_MARK} a function of Python or C itself, which takes no completions and columns by name") or 1)
"""


@cache
def _bound(file: Path) -> dict[str, ast.AST]:
    """What a module binds at its top level; a sweep asks for the same modules at every point.

    Raises:
        RequestError: where Python cannot read it.
    """
    try:
        statements = ast.parse(file.read_bytes(), str(file)).body  # bytes: Python's own rules of encodings
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise RequestError(f"{file}{where}: Python cannot read this module: {error.msg}") from error
    except ValueError as error:
        raise RequestError(f"{file}: Python cannot read this module: {error}") from error
    return {name: node for node in statements for name in _names(node)}


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


NOT_A_COLUMN = ("prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes to every reward beside the columns of the data."""


def check_data(config: Config) -> dict[str, Any]:
    """The data function gives the rows that training, rewards and evaluation need (no torch; hub sets are downloaded).
    Returns the first of them.

    Raises:
        RequestError: naming what is missing.
    """
    target = str(config.data["_target_"])
    rows = _rows(config, target, "train")
    columns = list(rows.column_names)
    for name, reward in config.rewards.items():
        for column in sorted(_needed(reward) - set(columns)):
            raise RequestError(f"data: {target} gives no column '{column}', which rewards.{name} needs")
    if len(rows) < (needed := prompts_of(config.grpo)):
        raise RequestError(
            f"data: {target} gives {len(rows)} training rows, and one step takes {needed} (grpo.generation_batch_size="
            f"{config.grpo['generation_batch_size']} / grpo.num_generations={config.grpo['num_generations']}): give at"
            f" least {needed} rows, or a smaller grpo.generation_batch_size"
        )
    if config.eval.enabled and "solution" in columns:
        _rows(config, target, "test")
    return dict(rows[0])


def _needed(reward: dict[str, Any]) -> set[str]:
    """Columns: parameters without a default that the YAML does not set and TRL does not pass by itself."""
    definition = _definition("rewards", str(reward["_target_"]))
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    arguments = definition.args
    required = {one.arg for one in arguments.args[: len(arguments.args) - len(arguments.defaults)]}
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required |= {one.arg for one, default in pairs if default is None}
    return required - reward.keys() - {*NOT_A_COLUMN, "completion_ids"}


def _rows(config: Config, target: str, split: str) -> Any:
    """One split, whose columns are checked."""
    module, _, function = target.rpartition(".")
    if not sys.stderr.isatty():
        import_module("datasets").disable_progress_bars()
    try:
        rows = getattr(import_module(module), function)(split, **data_arguments(config))
    except (ValueError, TypeError, OSError) as error:
        raise RequestError(f"data: {error}") from error
    columns = list(rows.column_names)
    if len(rows) == 0:
        raise RequestError(f"data: {target} gives no rows for the split '{split}'")
    if "prompt" not in columns:
        raise RequestError(f"data: {target} gives no column 'prompt'; it has {', '.join(columns)}")
    for taken in set(columns).intersection(NOT_A_COLUMN):
        raise RequestError(f"data: {target} gives a column '{taken}', a name that TRL uses itself; rename it")
    return rows
