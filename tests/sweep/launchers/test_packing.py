"""GPUs and cores shared by points of different size: never twice at a time, and full as long as there is work."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_lab.sweep.launchers.base import Need
from grpo_lab.sweep.launchers.packing import Pool, largest_first


def test_neighbours_and_their_cores() -> None:
    pool = Pool(["0", "1", "2", "3"], range(8))
    first, second = pool.take(Need(gpus=2)), pool.take(Need(gpus=1))
    assert first is not None
    assert second is not None
    assert (first.gpus, first.cores) == (("0", "1"), (0, 1, 2, 3))
    assert (second.gpus, second.cores) == (("2",), (4, 5))
    assert pool.take(Need(gpus=2)) is None
    pool.give(first)
    assert pool.take(Need(gpus=3)) is not None


def test_gpus_that_were_asked_for() -> None:
    pool = Pool(["0", "1", "2"], range(2))
    slots = pool.take(Need(gpus=2, pinned=("2", "0")))
    assert slots is not None
    assert slots.gpus == ("2", "0")
    assert pool.take(Need(gpus=1, pinned=("0",))) is None
    assert pool.take(Need(gpus=1)) is not None


def test_fewer_cores_than_gpus() -> None:
    pool = Pool(["0", "1", "2", "3"], [5, 7])
    taken = [pool.take(Need(gpus=1, cores=1)) for _ in range(4)]
    assert [slots.cores for slots in taken if slots] == [(5,), (5,), (7,), (7,)]


def test_cores_where_there_are_no_gpus() -> None:
    pool = Pool([], [0, 1, 2])
    assert pool.take(Need(cores=2)) is not None
    assert pool.take(Need(cores=2)) is None
    assert pool.take(Need(cores=1)) is not None


@given(st.lists(st.integers(1, 4), max_size=30), st.randoms())
def test_no_gpu_is_held_twice(sizes: list[int], luck: random.Random) -> None:
    pool, held = Pool(["a", "b", "c", "d"], range(4)), []
    for size in sizes:
        while (slots := pool.take(Need(gpus=size))) is None:
            pool.give(held.pop(luck.randrange(len(held))))
        held.append(slots)
        together = [gpu for one in held for gpu in one.gpus]
        assert len(slots.gpus) == size
        assert len(together) == len(set(together)) <= 4


def makespan(jobs: list[tuple[int, float]]) -> float:
    """Of jobs of (GPUs, duration) on four GPUs, started in our order as soon as there is room."""
    pool, now, ends = Pool(["0", "1", "2", "3"], range(4)), 0.0, []
    waiting = largest_first([(Need(gpus=gpus), (gpus, duration)) for gpus, duration in jobs])
    while waiting or ends:
        for job in list(waiting):
            if (slots := pool.take(Need(gpus=job[0]))) is not None:
                waiting.remove(job)
                heapq.heappush(ends, (now + job[1], slots.gpus, slots))
        now, _, slots = heapq.heappop(ends)
        pool.give(slots)
    return now


@pytest.mark.parametrize("seed", range(20))
def test_close_to_the_best_packing(seed: int) -> None:
    """64 jobs of 1, 2 and 4 GPUs, durations unknown to the packing: within 5% of what no packing can beat."""
    luck = random.Random(seed)
    jobs = [(luck.choice((1, 2, 4)), luck.uniform(1.0, 2.0)) for _ in range(64)]
    bound = sum(gpus * duration for gpus, duration in jobs) / 4
    assert makespan(jobs) <= 1.05 * bound


def test_equal_needs_keep_their_order() -> None:
    assert largest_first([(Need(gpus=1), "a"), (Need(gpus=2), "b"), (Need(gpus=1), "c")]) == ["b", "a", "c"]
