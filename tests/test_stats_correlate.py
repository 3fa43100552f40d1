"""Correlations, against scipy, statsmodels, pingouin's data and what can be done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from bindscope.stats.correlate import (
    Undefined,
    clustered_repeated,
    clustered_spearman,
    columns,
    groups,
    jackknife,
    mixed_slope,
    repeated_measures,
    spearman,
    spearman_of_means,
)

Floats = NDArray[np.float64]

# Bland & Altman 1995, BMJ 310:446: pH and PaCO2 of eight subjects.
PH = [
    [6.68, 6.53, 6.43, 6.33],
    [6.85, 7.06, 7.13, 7.17],
    [7.40, 7.42, 7.41, 7.37, 7.34, 7.35, 7.28, 7.30, 7.34],
    [7.36, 7.33, 7.29, 7.30, 7.35],
    [7.35, 7.30, 7.30, 7.37, 7.27, 7.28, 7.32, 7.32],
    [7.38, 7.30, 7.29, 7.33, 7.31, 7.33],
    [6.86, 6.94, 6.92],
    [7.19, 7.29, 7.21, 7.25, 7.20, 7.19, 6.77, 6.82],
]
PACO2 = [
    [3.97, 4.12, 4.09, 3.97],
    [5.27, 5.37, 5.41, 5.44],
    [5.67, 3.64, 4.32, 4.73, 4.96, 5.04, 5.22, 4.82, 5.07],
    [5.67, 5.10, 5.53, 4.75, 5.51],
    [4.28, 4.44, 4.32, 3.23, 4.46, 4.72, 4.75, 4.99],
    [4.78, 4.73, 5.12, 4.93, 5.03, 4.93],
    [6.85, 6.44, 6.52],
    [5.28, 4.56, 4.34, 4.32, 4.41, 3.69, 6.09, 5.58],
]
SUBJECT = np.repeat(np.arange(8), [len(each) for each in PH])


def panel(seed: int = 0, terms: int = 12, checkpoints: int = 5) -> tuple[Floats, Floats, Floats, Floats]:
    """x, y, term, checkpoint with term levels, a shared rise and ties."""
    rng = np.random.default_rng(seed)
    level, rise = rng.standard_normal((terms, 1)), np.arange(checkpoints) / 2
    x = level + rise + rng.standard_normal((terms, checkpoints))
    y = 0.4 * x - 2 * rng.standard_normal((terms, 1)) + rise**2 + rng.standard_normal((terms, checkpoints))
    term, checkpoint = (a.ravel().astype(float) for a in np.indices(x.shape))
    return x.ravel().round(1), y.ravel().round(1), term, checkpoint


def test_spearman_by_hand_and_as_scipy() -> None:
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24)
    assert spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]).rho == pytest.approx(0.8)
    x, y, *_ = panel()
    found, expected = spearman(x, y), stats.spearmanr(x, y)
    assert (found.rho, found.p, found.n) == (expected.statistic, expected.pvalue, 60)


def test_spearman_of_means_is_spearman_of_a_table_of_means() -> None:
    x, y, term, _ = panel()
    expected = stats.spearmanr(x.reshape(12, 5).mean(1), y.reshape(12, 5).mean(1))
    found = spearman_of_means(x, y, term)
    assert found.rho == pytest.approx(expected.statistic)
    assert found.n == 12


@given(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(0, 5)), min_size=8, max_size=30).filter(
        lambda rows: all(len({row[k] for row in rows}) > 2 for k in range(3))
    ),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_rho_ignores_order_and_monotone_transforms(rows: list[tuple[int, int, int]], random: object) -> None:
    x, y, c = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    order = np.random.default_rng(len(rows)).permutation(len(rows))
    expected = stats.spearmanr(x, y).statistic
    assert spearman(x[order], y[order]).rho == pytest.approx(expected)
    assert spearman(np.exp(x / 10), y**3).rho == pytest.approx(expected)
    assert spearman(-x, y).rho == pytest.approx(-expected)
    try:
        plain = clustered_spearman(x, y, c, draws=50)
    except Undefined:
        return
    assert plain.value == pytest.approx(expected)
    assert clustered_spearman(np.exp(x / 10), y**3, c, draws=50) == pytest.approx(plain)
    assert clustered_spearman(x[order], y[order], c[order], draws=50) == pytest.approx(plain)


@pytest.mark.parametrize("single", [False, True])
def test_clustered_spearman_is_the_bootstrap_written_out(single: bool) -> None:
    x, y, term, _ = panel()
    label = np.arange(len(x)) if single else term.astype(int)
    g = len(set(label))
    drawn = np.random.default_rng(3).multinomial(g, np.full(g, 1 / g), 300)
    by_hand = []
    for times in drawn:
        rows = np.concatenate([np.tile(np.flatnonzero(label == k), count) for k, count in enumerate(times)])
        by_hand.append(stats.spearmanr(x[rows], y[rows]).statistic)
    tail = stats.norm.cdf(stats.t.ppf(0.025, g - 1) * np.sqrt(g / (g - 1)))
    found = clustered_spearman(x, y, label, draws=300, seed=3)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(by_hand, [tail, 1 - tail])))
    assert found.clusters == g


def test_clustered_interval_widens_when_terms_are_copied() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30))
    x10, y10, label = np.repeat(x, 10), np.repeat(y, 10), np.repeat(np.arange(30), 10)
    honest, naive = clustered_spearman(x10, y10, label), clustered_spearman(x10, y10, np.arange(300))
    assert honest.high - honest.low > 2.5 * (naive.high - naive.low)
    assert spearman(x10, y10).rho == pytest.approx(spearman(x, y).rho)


def test_within_checkpoints_a_shared_rise_counts_for_nothing() -> None:
    rng = np.random.default_rng(1)
    noise, other = rng.standard_normal((2, 40, 6))
    rise = 3 * np.arange(6)
    term, checkpoint = (a.ravel() for a in np.indices(noise.shape))
    x, y = (noise + rise).ravel(), (other + rise).ravel()
    assert clustered_spearman(x, y, term).low > 0.8
    inside = clustered_spearman(x, y, term, within=checkpoint)
    assert inside.low < 0 < inside.high
    assert inside.p > 0.05
    ranks = [stats.rankdata(v.reshape(40, 6), axis=0).ravel() for v in (x, y)]
    assert inside.value == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_repeated_measures_gives_bland_and_altmans_value() -> None:
    found = repeated_measures(np.concatenate(PH), np.concatenate(PACO2), SUBJECT)
    assert found.r == pytest.approx(-0.50677, abs=1e-5)
    assert (found.dof, found.n, found.clusters) == (38, 47, 8)
    assert found.p == pytest.approx(0.000847, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((-0.71, -0.23), abs=0.005)


def test_repeated_measures_is_an_analysis_of_covariance() -> None:
    x, y, term, _ = panel()
    dummies = np.eye(12)[term.astype(int)]

    def rest(*more: Floats) -> float:
        design = np.column_stack([dummies, *more])
        return float(((y - design @ np.linalg.lstsq(design, y)[0]) ** 2).sum())

    found = repeated_measures(x, y, term)
    assert found.r**2 == pytest.approx(1 - rest(x) / rest())
    f = (rest() - rest(x)) / (rest(x) / found.dof)
    assert found.p == pytest.approx(stats.f.sf(f, 1, found.dof))


def test_clustered_repeated_is_a_partial_correlation_with_a_jackknife() -> None:
    x, y, term, checkpoint = panel()
    keep = np.ones(len(x), dtype=bool)
    keep[[3, 17, 40]] = False  # unbalanced
    x, y, term, checkpoint = x[keep], y[keep], term[keep], checkpoint[keep]

    def partial(rows: NDArray[np.bool_]) -> float:
        design = np.column_stack([np.eye(12)[term.astype(int)], np.eye(5)[checkpoint.astype(int)]])[rows]
        a, b = (v[rows] - design @ np.linalg.lstsq(design, v[rows])[0] for v in (x, y))
        return float(a @ b / np.sqrt(a @ a * (b @ b)))

    found = clustered_repeated(x, y, term, within=checkpoint)
    assert found.value == pytest.approx(partial(np.ones(len(x), dtype=bool)))
    z = np.arctanh([partial(term != k) for k in range(12)])
    half = stats.t.ppf(0.975, 11) * np.sqrt(11 / 12 * ((z - z.mean()) ** 2).sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.tanh(np.arctanh(found.value) + half * np.array([-1, 1]))))
    assert clustered_repeated(x, y, term).value == pytest.approx(repeated_measures(x, y, term).r)


def test_mixed_slope_is_the_restricted_likelihoods_maximum() -> None:
    x, y, term, checkpoint = panel()
    design = np.column_stack([x, np.eye(5)[checkpoint.astype(int)]])
    same = np.equal.outer(term, term)

    def solved(ratio: float) -> tuple[float, Floats, float]:
        cover = np.eye(len(y)) + ratio * same
        weighed = np.linalg.solve(cover, design)
        gram = design.T @ weighed
        beta = np.linalg.solve(gram, weighed.T @ y)
        left = y - design @ beta
        scale = float(left @ np.linalg.solve(cover, left)) / (len(y) - design.shape[1])
        loss = np.linalg.slogdet(cover)[1] + np.linalg.slogdet(gram)[1] + (len(y) - design.shape[1]) * np.log(scale)
        return float(loss), beta, scale

    ratio = optimize.minimize_scalar(
        lambda r: solved(r)[0], bounds=(0, 50), method="bounded", options={"xatol": 1e-9}
    ).x
    _, beta, scale = solved(ratio)
    found = mixed_slope(y, x, checkpoint, term)
    assert found.slope == pytest.approx(beta[0], rel=1e-4)
    assert found.residual_sd == pytest.approx(scale**0.5, rel=1e-3)
    assert found.term_sd == pytest.approx((ratio * scale) ** 0.5, rel=1e-3)
    cover = scale * (np.eye(len(y)) + ratio * same)
    assert found.se_model == pytest.approx(
        np.linalg.inv(design.T @ np.linalg.solve(cover, design))[0, 0] ** 0.5, rel=1e-3
    )
    without = []
    for k in range(12):
        rows = term != k
        weighed = np.linalg.solve(cover[np.ix_(rows, rows)], design[rows])
        without.append(np.linalg.solve(design[rows].T @ weighed, weighed.T @ y[rows])[0])
    se = np.sqrt(11 / 12 * ((without - np.mean(without)) ** 2).sum())
    assert found.se == pytest.approx(se, rel=1e-3)
    assert (found.n, found.clusters) == (60, 12)


def test_mixed_slope_says_why_it_is_undefined() -> None:
    x, y, term, checkpoint = panel()
    with pytest.raises(Undefined, match="determined by the checkpoint"):
        mixed_slope(y, checkpoint**2, checkpoint, term)
    rng = np.random.default_rng(5)
    flat = rng.standard_normal((12, 5))
    flat -= flat.mean(1, keepdims=True)
    with pytest.raises(Undefined, match="variance between terms is estimated at zero"):
        mixed_slope(flat.ravel(), x, checkpoint, term)
    with pytest.raises(Undefined, match="y is constant"):
        mixed_slope(np.ones(60), x, checkpoint, term)


def test_jackknife_of_a_mean_is_the_t_test() -> None:
    x = np.random.default_rng(0).standard_normal(9) + 0.5
    se, low, high, p = jackknife(float(x.mean()), (x.sum() - x) / 8)
    expected = stats.ttest_1samp(x, 0)
    assert se == pytest.approx(stats.sem(x))
    assert p == pytest.approx(expected.pvalue)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval()))
    with pytest.raises(Undefined, match="depends on that cluster"):
        jackknife(1.0, np.array([1.0, np.nan]))
    with pytest.raises(Undefined, match="no spread"):
        jackknife(1.0, np.array([1.0, 1.0]))


def test_errors_name_the_series_and_what_was_seen() -> None:
    with pytest.raises(ValueError, match=r"y has 2 of 4 values that are not finite"):
        spearman([1, 2, 3, 4], [1, np.nan, np.inf, 2])
    with pytest.raises(ValueError, match="lengths differ: x 3, y 2"):
        spearman([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"x has shape \(2, 2\)"):
        columns(1, x=np.zeros((2, 2)))
    with pytest.raises(Undefined, match="x has 2 values; at least 3"):
        spearman([1, 2], [1, 2])
    with pytest.raises(Undefined, match=r"y is constant \(0.25 in all 4 values\)"):
        spearman([1, 2, 3, 4], [0.25] * 4)
    with pytest.raises(Undefined, match="clusters has 1 group;"):
        clustered_spearman([1, 2, 3], [3, 1, 2], ["a"] * 3)
    with pytest.raises(ValueError, match="one label a value"):
        groups("clusters", ["a"], 3)
    with pytest.raises(Undefined, match="inside every group of `within`"):
        clustered_spearman([1, 1, 2, 2], [1, 2, 3, 4], [0, 1, 0, 1], within=[0, 0, 1, 1])
    with pytest.raises(Undefined, match="redrawn samples are constant"):
        clustered_spearman([1, 1, 2, 2], [1, 1, 3, 3], [0, 0, 1, 1])
    with pytest.raises(Undefined, match="constant inside every subject"):
        repeated_measures([1, 1, 2, 2], [1, 2, 3, 4], [0, 0, 1, 1])
    with pytest.raises(Undefined, match="degrees of freedom"):
        repeated_measures([1, 2, 3], [1, 2, 4], [0, 1, 2])
    with pytest.raises(Undefined, match="does not vary once"):
        clustered_repeated([1, 1, 2, 2, 5, 5], [1, 2, 3, 4, 1, 0], [0, 0, 1, 1, 2, 2])
