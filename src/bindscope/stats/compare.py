"""Compares two sets of values: the published tests, and matched, paired and clustered ones."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bindscope.stats.correlate import Clustered, Floats, Undefined, columns, groups, jackknife

Alternative = Literal["two-sided", "greater", "less"]


class Welch(NamedTuple):
    """The result of `welch`.

    t, df, p: the statistic, its degrees of freedom, two-sided p
    difference: mean(a) - mean(b), in units of the values
    low, high: its interval
    """

    t: float
    df: float
    p: float
    difference: float
    low: float
    high: float


class Proportion(NamedTuple):
    """A proportion k / n.

    value: k / n
    low, high: its interval
    n: number of trials
    """

    value: float
    low: float
    high: float
    n: int


class Stratified(NamedTuple):
    """The result of `stratified_difference`.

    value: mean difference over the strata with both kinds, in units of the values
    low, high, p: its interval and two-sided p
    n: number of values in these strata
    clusters: number of clusters
    unmatched: strata that are left out because they have only one kind
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    unmatched: tuple[str, ...]


def cohen_d(a: ArrayLike, b: ArrayLike) -> float:
    """(mean a - mean b) / pooled standard deviation with n_a + n_b - 2 in its denominator (Cohen 1988). No units.

    Undefined with fewer than two values on a side or no spread on either.
    """
    (x,), (y,) = columns(2, a=a), columns(2, b=b)
    pooled = ((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / (len(x) + len(y) - 2)
    if pooled <= 1e-24 * max(np.abs(x).max(), np.abs(y).max()) ** 2:
        raise Undefined(f"a and b are both constant ({x[0]:g} and {y[0]:g}): the pooled standard deviation is 0")
    return float((x.mean() - y.mean()) / np.sqrt(pooled))


def welch(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Welch:
    """Welch's t-test of equal means without equal variances (Welch 1947; scipy.stats.ttest_ind), as published.

    It assumes that all values are independent. Undefined where `cohen_d` is.
    """
    cohen_d(a, b)
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    test = stats.ttest_ind(x, y, equal_var=False)
    low, high = test.confidence_interval(level)
    return Welch(
        t=float(test.statistic),
        df=float(test.df),
        p=float(test.pvalue),
        difference=float(x.mean() - y.mean()),
        low=float(low),
        high=float(high),
    )


def stratified_difference(
    values: ArrayLike, is_real: ArrayLike, strata: ArrayLike, clusters: ArrayLike, *, level: float = 0.95
) -> Stratified:
    """Real minus control in strata (token count x frame): sum_s n_s (mean real_s - mean control_s) / sum_s n_s.

    n_s is the number of real values in stratum s, s runs over strata with both kinds; the others are named in
    `unmatched` and left out (n counts the values that are used). Interval and p: t with the `jackknife` over clusters
    (a term and the controls derived from it share one; unrelated controls have their own). In units of values.
    Undefined if no stratum has both kinds or if one side consists of one cluster.
    """
    (x,) = columns(2, values=values)
    real = np.asarray(is_real)
    if real.shape != x.shape or not np.isin(real, (0, 1)).all():
        raise ValueError(f"is_real has shape {real.shape}, values {x.shape}; give one True or False for each value")
    names, stratum = groups("strata", strata, len(x), 1)
    cell = 2 * stratum + real.astype(np.intp)
    here: NDArray[np.int64] = np.bincount(cell, minlength=2 * len(names)).reshape(-1, 2)
    matched = np.all(here > 0, axis=1)
    if not matched.any():
        raise Undefined(f"none of {len(names)} strata has both real and control values")
    kept = matched[stratum]
    who, index = groups(
        "clusters", np.asarray(clusters)[kept] if np.shape(clusters) == x.shape else clusters, int(kept.sum()), 3
    )
    flat = index * 2 * len(names) + cell[kept]
    sums, counts = (
        np.bincount(flat, weights, 2 * len(names) * len(who)).reshape(len(who), len(names), 2)[:, matched]
        for weights in (x[kept], None)
    )
    value = float(_matched(sums.sum(0), counts.sum(0)))
    without = _matched(sums.sum(0) - sums, counts.sum(0) - counts)
    _, low, high, p = jackknife(value, without, level)
    unmatched = tuple(str(name) for name in names[~matched])
    return Stratified(value=value, low=low, high=high, p=p, n=int(kept.sum()), clusters=len(who), unmatched=unmatched)


def _matched(sums: Floats, counts: Floats) -> Floats:
    """The weighted difference from sums and counts [..., stratum, control/real], over strata that have both."""
    both = np.all(counts > 0, axis=-1, keepdims=True)
    means = np.divide(sums, counts, out=np.zeros(sums.shape), where=both & (counts > 0))
    weight = np.where(both[..., 0], counts[..., 1], 0)
    total = weight.sum(-1)
    difference = (weight * (means[..., 1] - means[..., 0])).sum(-1)
    out: Floats = np.divide(difference, total, out=np.full(total.shape, np.nan), where=total > 0)
    return out


def wilson(k: int, n: int, *, level: float = 0.95) -> Proportion:
    """Wilson's score interval of k successes in n independent trials (Wilson 1927), without continuity correction."""
    low, high = _binomial(k, n).proportion_ci(level, method="wilson")
    return Proportion(k / n, float(low), float(high), n)


def binomial_p(k: int, n: int, p0: float = 0.5, alternative: Alternative = "greater") -> float:
    """Exact binomial p of k successes in n independent trials with chance p0 (Clopper & Pearson 1934)."""
    return float(_binomial(k, n, p0, alternative).pvalue)


def _binomial(k: int, n: int, p0: float = 0.5, alternative: Alternative = "two-sided") -> Any:
    if n == 0:
        raise Undefined("no trials (n = 0)")
    if not 0 <= k <= n or not 0 <= p0 <= 1 or k != int(k) or n != int(n):
        raise ValueError(f"need whole 0 <= k <= n and 0 <= p0 <= 1, got k={k}, n={n}, p0={p0}")
    return stats.binomtest(int(k), int(n), p0, alternative)


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Adjusted p-values (q), in the given order, that control the false discovery rate (Benjamini & Hochberg 1995).

    p: the p-values of one declared family, without missing ones
    Raises ValueError for values outside of [0, 1].
    """
    (each,) = columns(1, p=p)
    if each.min() < 0 or each.max() > 1:
        raise ValueError(f"p-values run from {each.min():g} to {each.max():g}; they lie between 0 and 1")
    adjusted: Floats = np.asarray(stats.false_discovery_control(each))
    return adjusted


def permutation_p(observed: float, null: ArrayLike, alternative: Alternative = "greater") -> float:
    """(b + 1) / (R + 1), b the number of R null values at least as extreme as observed (Phipson & Smyth 2010).

    two-sided: twice the smaller side, at most 1. Values equal up to rounding (1e-12) count as extreme.
    """
    (draws,) = columns(1, null=null)
    if not np.isfinite(observed):
        raise ValueError(f"observed is {observed}")
    slack = 1e-12 * max(1.0, abs(observed))
    above = float(((draws >= observed - slack).sum() + 1) / (len(draws) + 1))
    below = float(((draws <= observed + slack).sum() + 1) / (len(draws) + 1))
    return {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[alternative]


def paired_difference(a: ArrayLike, b: ArrayLike, clusters: ArrayLike, *, level: float = 0.95) -> Clustered:
    """Mean of a - b over pairs, in their units; interval and p by t with the `jackknife` over clusters.

    For equal clusters this is the one-sample t-test of the cluster means (Miller 2024 for paired, clustered
    evaluations). Unlike a percentile bootstrap it keeps its level with ten clusters. Undefined below 2 clusters.
    """
    x, y = columns(2, a=a, b=b)
    names, index = groups("clusters", clusters, len(x))
    difference = x - y
    sums, counts = np.bincount(index, difference), np.bincount(index)
    without = (difference.sum() - sums) / (len(x) - counts)
    value = float(difference.mean())
    _, low, high, p = jackknife(value, without, level)
    return Clustered(value=value, low=low, high=high, p=p, n=len(x), clusters=len(names))
