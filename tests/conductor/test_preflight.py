"""Functions of rewards are found wherever Python finds them, and one line says where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_lab.conductor import preflight
from grpo_lab.config.errors import RequestError
from grpo_lab.worker.rewards import Reward
from tests.planner.test_plan import asked

SCORE = "def score(completions, **columns):\n    return [0.5 for _ in completions]\n"
MODULES = {
    "pre_impl": SCORE.encode(),
    "pre_star": b"from pre_impl import *\n",
    "pre_guarded": b"try:\n    from pre_impl import score\nexcept ImportError:\n    score = None\n",
    "pre_pair": b"from pre_impl import score as _score\nscore, other = _score, 1\n",
    "pre_class": b"class Judge:\n    @staticmethod\n    def score(completions, **columns):\n        return [0.5]\n",
    "pre_lazy": b"def __getattr__(name):\n    import pre_impl\n    return getattr(pre_impl, name)\n",
    "pre_mark": b"\xef\xbb\xbf" + SCORE.encode(),
    "pre_latin": b"# -*- coding: latin-1 -*-\n# caf\xe9\n" + SCORE.encode(),
    "pre_typo": b"x = 1\ndef score(completions:\n    return 1\n",
    "pre_async": b"import asyncio\nasync def score(completions, solution):\n    return await asyncio.sleep(0, [1.0])\n",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_bytes(source)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    "target",
    [
        *(f"pre_{kind}.score" for kind in ("star", "guarded", "pair", "lazy", "mark", "latin", "async")),
        "pre_class.Judge.score",
    ],
)
def test_found_where_python_finds_it(target: str) -> None:
    preflight.check_targets(asked(f"rewards.p._target_={target}"))


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("pre_typo.score", "pre_typo.py, line 2: Python cannot read this module: "),
        ("pre_star.scor", "'pre_star' defines no 'scor'"),
        ("pre_class.Judge.scor", "'pre_class.Judge' defines no 'scor'"),
        ("pre_nowhere.score", "no module 'pre_nowhere'"),
        ("math.sqrt", "a function of Python or C itself"),
        ("builtins.len", "a function of Python or C itself"),
    ],
)
def test_one_line_where_there_is_no_such_function(target: str, reason: str) -> None:
    with pytest.raises(RequestError) as refused:
        preflight.check_targets(asked(f"rewards.p._target_={target}"))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("modules")
def test_a_coroutine_is_a_reward() -> None:
    reward = Reward("judge", {"_target_": "pre_async.score"})
    assert [reward(["a"], solution=["1"]) for _ in range(2)] == [[1.0], [1.0]]
