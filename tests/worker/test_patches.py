"""The list of what is touched of other libraries: each name is there in the installed versions, and none is missing."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from grpo_lab.worker.patches import TOUCHED, Touched
from tests.conftest import ROOT

DOCUMENTED = {"_", "_exit", "_fields", "_target_"}
"""Names of Python and Hydra that only look private."""
OUR_OWN = {"meter._peaks", "instance._ask"}
"""Private attributes of our classes, of other objects than `self`."""
NAMES = [
    pytest.param(name, marks=[pytest.mark.vllm] if "vllm" in name else [])
    for name in dict.fromkeys(name for touched in TOUCHED for name in touched.names)
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there(name: str) -> None:
    if find_spec(name.partition(".")[0]) is None:
        pytest.skip("not installed")
    assert exists(name)


def exists(path: str) -> bool:
    """Whether an importable path, or an attribute that a class gives its instances, is in the installed version."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:-1]:
            owner = getattr(owner, name, None)
        return hasattr(owner, parts[-1]) or is_assigned(owner, parts[-1])
    return False


def is_assigned(owner: Any, name: str) -> bool:
    classes = inspect.getmro(owner) if inspect.isclass(owner) else ()
    return any(f"self.{name}" in inspect.getsource(each) for each in classes if each.__module__ != "builtins")


def test_a_name_that_is_gone_is_seen() -> None:
    assert not exists("trl.GRPOTrainer._no_such_method")
    assert not exists("trl.no_such_module.name")
    assert exists("trl.GRPOTrainer._metrics")


@pytest.mark.parametrize("touched", TOUCHED, ids=lambda touched: f"{touched.library} in {touched.place}")
def test_place_and_test_exist(touched: Touched) -> None:
    file, _, test = touched.test.partition("::")
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    assert test in {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    source = (ROOT / touched.place).read_text(encoding="utf-8")
    for name in touched.names:
        assert name.rpartition(".")[2] in source, f"{touched.place} no longer touches {name}"


def listed(place: str) -> set[str]:
    """Parts of the names that a module may touch."""
    return {part for touched in TOUCHED if touched.place == place for name in touched.names for part in name.split(".")}


def modules() -> list[str]:
    paths = (path for folder in ("grpo_lab", "hydra_plugins", "tools") for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@pytest.mark.parametrize("place", modules())
def test_nothing_private_is_touched_that_is_not_listed(place: str) -> None:
    used = set(private(Path(ROOT / place).read_text(encoding="utf-8")))
    assert {text for text, name in used if name not in listed(place)} <= OUR_OWN


def private(source: str) -> Iterator[tuple[str, str]]:
    """Each use of a private name of something else than `self`: (as written, the name)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value) not in ("self", "cls"):
                yield ast.unparse(node), node.attr
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("grpo_lab"):
            for name in (*str(node.module).split("."), *(alias.name for alias in node.names)):
                if is_private(name):
                    yield ast.unparse(node), name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            for item in node.args[1:2]:
                if isinstance(item, ast.Constant) and is_private(str(item.value)):
                    yield ast.unparse(node), str(item.value)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


@pytest.mark.parametrize(
    "line", ["trainer._generate(prompts)", "trainer._run_epoch = 1", "from trl._x import y", "getattr(trainer, '_x')"]
)
def test_a_private_name_is_seen(line: str) -> None:
    assert list(private(line))
