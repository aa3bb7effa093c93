"""Who generates and who learns is asked of objects: no module compares the name of a mode or of an algorithm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_lab.config.errors import RequestError
from grpo_lab.planner.algorithms import algorithm, kinds
from grpo_lab.planner.modes import MODES, mode
from tests.conftest import ROOT

OWNERS = ("grpo_lab/planner/modes.py", "grpo_lab/planner/algorithms/", "grpo_lab/worker/trainers/")
MEAN_SOMETHING_ELSE = {"role", "fit"}
"""Names whose values are called like a mode: the role of a process, and the choice of `fit`."""
ALGORITHMS = set(kinds())


def modules() -> list[Path]:
    return sorted(path for folder in ("grpo_lab", "hydra_plugins", "tools") for path in (ROOT / folder).rglob("*.py"))


def comparisons(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each comparison, match case or subscripted mapping that has the name of a mode or algorithm."""
    names = ALGORITHMS | MODES.keys()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            others = {last_name(side) for side in sides}
            literals = [item for side in sides for item in ast.walk(side)]
        elif isinstance(node, ast.MatchValue):
            literals, others = [node.value], set()
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            literals, others = [key for key in node.value.keys if key is not None], set()
        else:
            continue
        if any(isinstance(item, ast.Constant) and item.value in names for item in literals) and not (
            others & MEAN_SOMETHING_ELSE
        ):
            yield node.lineno if hasattr(node, "lineno") else 0, ast.unparse(node)


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_compares_a_mode_or_an_algorithm(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    if not place.startswith(OWNERS):
        assert not list(comparisons(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        'config.vllm.mode == "off"',
        'plan["mode"] != "server"',
        'kind in ("rloo", "online_dpo")',
        'result.get("algorithm", "grpo") == "grpo"',
        '{"off": 1, "colocate": 2}[plan.mode]',
        'match mode:\n    case "server":\n        pass',
    ],
)
def test_a_comparison_is_seen(line: str) -> None:
    assert list(comparisons(line))


def test_an_unknown_mode_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(RequestError, match=r"vllm\.mode=colocated: did you mean"):
        mode("colocated")


def test_an_unknown_algorithm_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(RequestError, match=r"algorithm\.kind=ppo: valid: async_grpo, grpo, online_dpo, rloo"):
        algorithm("ppo")


def test_every_algorithm_has_its_name_and_its_trainer() -> None:
    for kind in kinds():
        assert algorithm(kind).kind == kind
        assert algorithm(kind).card
        assert (ROOT / f"grpo_lab/worker/trainers/{kind}.py").is_file()
