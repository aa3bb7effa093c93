"""Intervals against values that are known, and their coverage where it can be counted."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from grpo_lab.store import stats
from tools import coverage_table
from tools.coverage_table import Case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "intervals.md"


def test_timing_is_the_median_with_an_interval_around_it() -> None:
    assert stats.timing([3.0, 1.0, 2.0, 100.0, 2.5, 2.5]) == {
        "median": 2.5,
        "ci95": (1.0, 100.0),
        "range": (1.0, 100.0),
        "n": 6,
    }


@pytest.mark.parametrize(("n", "cut"), [(6, 0), (8, 0), (9, 1), (20, 5), (100, 39)])
def test_the_interval_leaves_out_as_many_as_the_sign_test_allows(n: int, cut: int) -> None:
    """Hollander & Wolfe 1999, table A.2: the 40th and the 61st of 100."""
    timing = stats.timing([float(value) for value in range(n)])
    assert timing is not None
    assert timing["ci95"] == (cut, n - 1 - cut)


def test_no_values_no_timing_and_five_values_a_range_only() -> None:
    assert stats.timing([]) is None
    assert stats.timing([1.0]) == {"median": 1.0, "ci95": None, "range": None, "n": 1}
    assert stats.timing([1.0, 5.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "ci95": None, "range": (1.0, 5.0), "n": 5}


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


def test_no_interval_is_a_point() -> None:
    assert stats.paired_difference([0] * 5, [1] * 5)["ci95"] == pytest.approx((0.1959, 1.0), abs=1e-4)
    low, high = stats.mean_share([0.5])["ci95"]
    assert low < 0.2 < 0.8 < high
    low, high = stats.paired_difference([0.25] * 40, [0.25] * 40)["ci95"]
    assert -0.1 < low < 0 < high < 0.1


def test_the_paired_interval_is_bonett_and_price_s() -> None:
    """Of 12 that improve and 4 that worsen among 50: (13 - 5) / 52 +- 1.96 sqrt((18 / 52 - (8 / 52)^2) / 52)."""
    before, after = [0] * 12 + [1] * 4 + [0] * 34, [1] * 12 + [0] * 4 + [0] * 34
    half = 1.959964 * math.sqrt((18 / 52 - (8 / 52) ** 2) / 52)
    assert stats.paired_difference(before, after)["ci95"] == pytest.approx((8 / 52 - half, 8 / 52 + half))


@pytest.mark.parametrize("n", [1, 2, 7, 10, 100, 137, 500, 512, 1319, 5000])
def test_no_interval_excludes_its_own_value_by_rounding(n: int) -> None:
    """Wilson's lower end of 0 of 500 used to be 4e-19."""
    for right in {0, 1, n // 3, n - 1, n} & set(range(n + 1)):
        for share in (stats.proportion([1] * right + [0] * (n - right)), stats.mean_share([right / n] * n)):
            assert 0.0 <= share["ci95"][0] <= share["value"] <= share["ci95"][1] <= 1.0
    for one, other in (([0] * n, [1] * n), ([1] * n, [0] * n), ([0] * n, [0] * n)):
        gain = stats.paired_difference(one, other)
        assert -1.0 <= gain["ci95"][0] <= gain["value"] <= gain["ci95"][1] <= 1.0


@pytest.mark.parametrize("case", coverage_table.cases(), ids=lambda case: f"{case.of}, {case.data}")
def test_every_interval_holds_the_truth_as_often_as_it_states(case: Case) -> None:
    trials = 1500
    error = math.sqrt(case.stated * (1 - case.stated) / trials)
    assert case.coverage(trials, seed=1) >= case.stated - 3 * error


def test_the_cases_are_all_that_stats_offers() -> None:
    offered = {name for name, value in vars(stats).items() if callable(value) and value.__module__ == stats.__name__}
    without = {"Timing", "Proportion", "pass_at_k", "spread", "wilson"}
    assert {case.of.partition(",")[0] for case in coverage_table.cases()} == {
        name for name in offered if not name.startswith("_")
    } - without


def test_wilson_s_interval_holds_on_average_over_shares() -> None:
    mean, least = coverage_table.wilson_over_shares(30, points=199)
    assert mean >= 0.95
    assert least < 0.95


def test_the_page_of_coverages_is_the_one_that_the_tool_makes() -> None:
    rows = re.findall(r"^\| `(.+)` \| (.+) \| ([\d.]+)% \| [\d.]+% \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == {(case.of, case.data, f"{100 * case.stated:.1f}") for case in coverage_table.cases()}


def test_over_seeds_an_interval_is_never_narrower_than_that_of_the_pooled_answers() -> None:
    """Two seeds with 329 of 500 each used to give 0.658 to 0.658."""
    pooled = stats.wilson(329 / 500, 1000)
    low, high = stats.over_runs([329 / 500] * 2, [stats.wilson(329 / 500, 500)] * 2, [500] * 2) or (1.0, 0.0)
    assert low <= pooled[0] < pooled[1] <= high


@pytest.mark.parametrize("runs", [2, 3, 10])
def test_over_seeds_the_pooled_interval_lies_within_for_every_share(runs: int) -> None:
    draw = np.random.default_rng(0)
    for share in np.linspace(0, 1, 21):
        right = draw.binomial(200, share, runs)
        low, high = stats.over_runs([one / 200 for one in right], [stats.wilson(one / 200, 200) for one in right]) or (
            1,
            0,
        )
        pooled = stats.wilson(right.sum() / (200 * runs), 200 * runs)
        assert high - low >= 0.99 * (pooled[1] - pooled[0])


def test_runs_that_are_equal_and_know_nothing_of_themselves_have_no_interval() -> None:
    assert stats.over_runs([4.0, 4.0, 4.0], [None] * 3) is None


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
