"""Bootstrap of means over clusters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t


class Interval(NamedTuple):
    """A mean with its percentile interval.

    mean: the mean
    low, high: its interval, NaN with fewer than two clusters
    clusters: number of clusters
    """

    mean: float
    low: float
    high: float
    clusters: int


def cluster_mean(
    values: ArrayLike, clusters: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """Mean of all values, with a bootstrap interval over whole clusters (Field & Welsh 2007).

    The bootstrap draws clusters (such as terms) with replacement, each with all of its values, so values of one cluster
    may depend on each other. The percentiles are those of z = +-t(G - 1) sqrt(G / (G - 1)) for G clusters (the expanded
    percentile of Hesterberg 2015), since plain percentiles are too narrow for few clusters.

    values: (n,)
    clusters: (n,) label of each value's cluster
    level: level of the interval
    draws: number of bootstrap samples
    seed: seed of the bootstrap
    Raises ValueError for empty input, unequal lengths or values that are not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if x.ndim != 1 or len(x) == 0 or len(x) != len(index):
        raise ValueError(f"need as many values as clusters and at least one, got {x.shape} and {index.shape}")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{int((~np.isfinite(x)).sum())} of {len(x)} values are not finite; drop or explain them first"
        )
    sums = np.bincount(index, weights=x, minlength=len(names))
    counts: NDArray[np.int64] = np.bincount(index, minlength=len(names))
    if len(names) < 2:
        return Interval(float(x.mean()), np.nan, np.nan, len(names))
    drawn = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    G = len(names)
    tail = float(norm.cdf(t.ppf((1 - level) / 2, G - 1) * np.sqrt(G / (G - 1))))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), len(names))
