"""Rewards that are coroutines work at the same time, in whatever way a trainer calls them, and fail by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from grpo_lab.worker.rewards import BadReward, Reward, build

MEETING = """
import asyncio
meeting = asyncio.Barrier(2)

async def first(completions, **columns):
    await asyncio.wait_for(meeting.wait(), 5)
    return [1.0 for _ in completions]

async def second(completions, share, **columns):
    await asyncio.wait_for(meeting.wait(), 5)
    return [share for _ in completions]

async def failing(completions, **columns):
    raise ValueError("no judge")

def plain(completions, **columns):
    return [0.0 for _ in completions]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"meeting_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MEETING)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def built(module: str, *names: str) -> list[Reward]:
    settings = {
        name: {"_target_": f"{module}.{name}", **({"share": 0.5} if name == "second" else {})} for name in names
    }
    return [reward for reward in build(settings) if isinstance(reward, Reward)]


@pytest.mark.parametrize("passed_on", [lambda rewards: rewards, lambda rewards: pickle.loads(pickle.dumps(rewards))])
def test_they_wait_for_each_other(passed_on: object, module: str) -> None:
    rewards = passed_on(built(module, "first", "plain", "second"))  # type: ignore[operator]
    for step in range(3):
        completions = [f"{step}", "b"]
        assert [reward(completions) for reward in rewards] == [[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]


def test_calls_for_other_completions_come_in_between(module: str) -> None:
    one, other = built(module, "first", "second")
    left, right = ["a"], ["b", "c"]
    assert (one(left), one(right)) == ([1.0], [1.0, 1.0])
    assert (other(left), other(right)) == ([0.5], [0.5, 0.5])


def test_the_one_that_fails_is_named(module: str) -> None:
    *others, failing = built(module, "first", "second", "failing")
    completions = ["a"]
    assert [reward(completions) for reward in others] == [[1.0], [0.5]]
    with pytest.raises(BadReward, match=r"reward 'failing' raised ValueError\('no judge'\); completion: 'a'"):
        failing(completions)
