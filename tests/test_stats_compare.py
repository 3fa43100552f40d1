"""Comparisons, against textbook values, scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bindscope.stats.compare import (
    benjamini_hochberg,
    binomial_p,
    cohen_d,
    paired_difference,
    permutation_p,
    stratified_difference,
    welch,
    wilson,
)
from bindscope.stats.correlate import Undefined

# Student's sleep data (Cushny & Peebles 1905): extra hours of sleep with two drugs.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_cohen_d_by_hand() -> None:
    assert cohen_d([2, 4, 6], [1, 3, 5]) == pytest.approx(0.5)  # both variances 4
    assert cohen_d([1, 3, 5], [2, 4, 6, 4]) == pytest.approx(-1 / np.sqrt((2 * 4 + 3 * 8 / 3) / 5))
    with pytest.raises(Undefined, match="a and b are both constant"):
        cohen_d([1, 1], [2, 2])
    with pytest.raises(Undefined, match="b has 1 values"):
        cohen_d([1, 2], [2])


def test_welch_on_students_sleep_data() -> None:
    found = welch(SLEEP_1, SLEEP_2)  # R: t.test(extra ~ group, sleep)
    assert found.t == pytest.approx(-1.8608, abs=5e-5)
    assert found.df == pytest.approx(17.776, abs=5e-4)
    assert found.p == pytest.approx(0.07939, abs=5e-6)
    assert found.difference == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-3.3654832, 0.2054832), abs=1e-6)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_table(k: int, n: int, low: float, high: float) -> None:
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.value == k / n


def test_binomial_by_hand() -> None:
    assert binomial_p(8, 10) == pytest.approx(56 / 1024)
    assert binomial_p(8, 10, alternative="two-sided") == pytest.approx(112 / 1024)
    assert binomial_p(2, 10, alternative="less") == pytest.approx(56 / 1024)
    assert binomial_p(2, 2, 0.25) == pytest.approx(1 / 16)
    with pytest.raises(Undefined, match="no trials"):
        binomial_p(0, 0)
    with pytest.raises(ValueError, match="k=3, n=2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match=r"k=1.5"):
        wilson(1.5, 2)  # type: ignore[arg-type]


def test_benjamini_and_hochbergs_example() -> None:
    # Benjamini & Hochberg 1995, section 4.1: fifteen hypotheses of Neuhaus et al.; four are rejected at 0.05
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    q = benjamini_hochberg(p)
    assert (q <= 0.05).sum() == 4
    assert q[3] == pytest.approx(0.0095 * 15 / 4)
    assert benjamini_hochberg(p[::-1])[::-1] == pytest.approx(q)
    with pytest.raises(ValueError, match=r"run from -0.1 to 0.5"):
        benjamini_hochberg([-0.1, 0.5])
    with pytest.raises(ValueError, match="not finite"):
        benjamini_hochberg([0.1, np.nan])


def test_permutation_p_counts_the_observed_value() -> None:
    assert permutation_p(5, [1, 2, 3, 4]) == 1 / 5
    assert permutation_p(3, [1, 2, 3, 4]) == 3 / 5
    assert permutation_p(1, [1, 2, 3, 4], "less") == 2 / 5
    assert permutation_p(5, [1, 2, 3, 4], "two-sided") == 2 / 5
    assert permutation_p(0.1 + 0.2, [0.3]) == 1.0  # equal up to rounding
    with pytest.raises(ValueError, match="observed is nan"):
        permutation_p(float("nan"), [1])
    with pytest.raises(Undefined, match="null has 0 values"):
        permutation_p(1, [])


def test_paired_difference_of_equal_clusters_is_a_t_test_of_their_means() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 8, 5)) + rng.standard_normal((2, 8, 1))
    found = paired_difference(a.ravel(), b.ravel(), np.repeat(np.arange(8), 5))
    expected = stats.ttest_1samp((a - b).mean(1), 0)
    assert found.value == pytest.approx((a - b).mean())
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.n, found.clusters) == (40, 8)


@given(st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter(order: list[int]) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 12))
    cluster = np.repeat(["x", "y", "z", "w"], 3)
    assert paired_difference(a[order], b[order], cluster[order]) == pytest.approx(paired_difference(a, b, cluster))
    real, strata = np.tile([True, False], 6), np.repeat([0, 1], 6)
    moved = stratified_difference(a[order], real[order], strata[order], cluster[order])
    assert moved[:6] == pytest.approx(stratified_difference(a, real, strata, cluster)[:6])


def test_stratified_difference_by_hand() -> None:
    values = [5, 7, 1, 3, 10, 4, 6, 99]
    real = [1, 1, 0, 0, 1, 0, 0, 1]
    strata = ["two"] * 4 + ["three"] * 3 + ["four"]
    cluster = ["a", "b", "c", "d", "e", "f", "g", "h"]
    found = stratified_difference(values, real, strata, cluster)
    # two tokens: 6 - 2 with two real terms; three: 10 - 5 with one; four has no control
    assert found.value == pytest.approx((2 * 4 + 1 * 5) / 3)
    assert found.unmatched == ("four",)
    assert (found.n, found.clusters) == (7, 7)


def test_stratified_difference_jackknife_written_out() -> None:
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(20), 3)
    real, strata = np.tile([True, False], 10)[cluster], rng.integers(0, 2, 20)[cluster]
    values = rng.standard_normal(60) + real + 3 * strata

    def by_hand(rows: np.ndarray) -> float:
        top = bottom = 0.0
        for s in (0, 1):
            here = rows & (strata == s)
            n = (here & real).sum()
            top += n * (values[here & real].mean() - values[here & ~real].mean())
            bottom += n
        return top / bottom

    found = stratified_difference(values, real, strata, cluster)
    without = np.array([by_hand(cluster != k) for k in range(20)])
    half = stats.t.ppf(0.975, 19) * np.sqrt(19 / 20 * ((without - without.mean()) ** 2).sum())
    assert found.value == pytest.approx(by_hand(np.ones(60, dtype=bool)))
    assert found.high - found.value == pytest.approx(half)
    assert found.low < 1 < found.high  # the difference that was put in, not the strata's


def test_stratified_difference_says_what_is_missing() -> None:
    with pytest.raises(Undefined, match="none of 2 strata"):
        stratified_difference([1, 2, 3, 4], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3])
    with pytest.raises(Undefined, match="depends on that cluster"):
        stratified_difference([1, 2, 3, 4], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="is_real has shape"):
        stratified_difference([1, 2, 3], [1, 0], [0, 0, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="clusters has shape"):
        stratified_difference([1, 2, 3], [1, 0, 0], [0, 0, 0], [0, 1])
