"""Intervals against values that are known, and their coverage where it can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_lab import stats


def test_timing_is_the_median_with_an_interval_around_it() -> None:
    timing = stats.timing([3.0, 1.0, 2.0, 100.0, 2.5])
    assert timing is not None
    assert timing["median"] == 2.5
    assert timing["n"] == 5
    assert timing["ci95"] is not None
    assert 1.0 <= timing["ci95"][0] <= 2.5 <= timing["ci95"][1] <= 100.0


def test_no_values_no_timing_and_two_values_no_interval() -> None:
    assert stats.timing([]) is None
    two = stats.timing([1.0, 2.0])
    assert two is not None
    assert two["ci95"] is None


def test_wilson_interval_of_a_textbook_case() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    share = stats.proportion([1] * 81 + [0] * 182)
    assert share["ci95"] == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_interval_of_none_right_stays_in_range() -> None:
    assert stats.proportion([0] * 10)["ci95"] == pytest.approx((0.0, 0.2775), abs=5e-5)


def test_the_paired_difference_is_sharper_than_two_intervals() -> None:
    before = [1, 0] * 100
    after = [1, 0] * 90 + [1, 1] * 10
    gain = stats.paired_difference(before, after)
    assert gain["value"] == pytest.approx(0.05)
    assert gain["ci95"][0] > 0


def test_unequal_lengths_are_not_the_same_problems() -> None:
    with pytest.raises(ValueError, match="not the same problems"):
        stats.paired_difference([1], [1, 0])


def test_the_bootstrap_interval_covers_the_truth_about_95_times_in_100() -> None:
    draw = np.random.default_rng(1)
    samples = (draw.normal(10.0, 1.0, size=40) for _ in range(200))
    intervals = [timing["ci95"] for sample in samples if (timing := stats.timing(list(sample)))]
    covered = sum(low <= 10.0 <= high for low, high in filter(None, intervals))
    assert 175 <= covered <= 200
