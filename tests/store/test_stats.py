"""Intervals against values that are known, and their coverage where it can be counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grpo_lab.store import stats


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


@pytest.mark.parametrize(
    ("samples", "right", "k", "expected"),
    [(4, 0, 4, 0.0), (4, 1, 1, 0.25), (4, 1, 4, 1.0), (5, 2, 3, 0.9), (10, 3, 5, 11 / 12), (200, 1, 100, 0.5)],
)
def test_pass_at_k_is_the_share_of_draws_with_one_right(samples: int, right: int, k: int, expected: float) -> None:
    """Chen et al. 2021, eq. 1: of all ways to draw k of the samples; (5, 2, 3): 1 of 10 draws misses both."""
    assert stats.pass_at_k(samples, right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of 6 samples, each right with chance 0.3, it is 1 - 0.7^4 on average."""
    chance = [math.comb(6, right) * 0.3**right * 0.7 ** (6 - right) for right in range(7)]
    expected = math.fsum(weight * stats.pass_at_k(6, right, 4) for right, weight in enumerate(chance))
    assert expected == pytest.approx(1 - 0.7**4, abs=1e-12)


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="pass@5"):
        stats.pass_at_k(4, 1, 5)


def test_the_mean_of_shares_has_an_interval_over_problems() -> None:
    shares = stats.mean_share([0.25, 0.5, 0.75, 1.0] * 10)
    assert shares["value"] == 0.625
    assert 0.5 < shares["ci95"][0] < 0.625 < shares["ci95"][1] < 0.75
    assert stats.mean_share([1.0] * 10)["ci95"][0] < 0.75  # ten of ten prove no certainty
