"""Correlations: as published, and for repeated observations of the same terms.

The module also has what the other statistics share: `Undefined`, the validators `columns` and `groups`, `jackknife`.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
_CELLS = 4_000_000  # draws x values held in memory at a time


class Undefined(ValueError):
    """The statistic is not defined for the data. Results store its message as the reason for a missing value."""


class Rank(NamedTuple):
    """Spearman's rank correlation.

    rho: the correlation
    p: two-sided p
    n: number of pairs
    """

    rho: float
    p: float
    n: int


class Clustered(NamedTuple):
    """A statistic of n values in clusters.

    value: the statistic
    low, high: its interval
    p: two-sided p of no effect
    n: number of values
    clusters: number of clusters
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    clusters: int


class Repeated(NamedTuple):
    """Repeated-measures correlation (Bland & Altman 1995), which assumes independent residuals.

    r: the correlation
    low, high: its interval
    p: two-sided p
    dof: degrees of freedom
    n: number of values
    clusters: number of subjects
    """

    r: float
    low: float
    high: float
    p: float
    dof: int
    n: int
    clusters: int


class Slope(NamedTuple):
    """The result of `mixed_slope`.

    slope: the slope, in units of y per unit of x
    se, low, high, p: standard error, interval and p by the jackknife over terms
    se_model, p_model: standard error and p of the mixed model
    term_sd, residual_sd: standard deviations between terms and of the residual
    n: number of values
    clusters: number of terms
    """

    slope: float
    se: float
    low: float
    high: float
    p: float
    se_model: float
    p_model: float
    term_sd: float
    residual_sd: float
    n: int
    clusters: int


def columns(least: int, /, **named: ArrayLike) -> list[Floats]:
    """The named series as float64.

    least: smallest number of values
    Raises ValueError, with the name and the value seen, for a series that is not one-dimensional, not finite or of
    another length, Undefined below `least` values.
    """
    series = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    for name, x in series.items():
        if x.ndim != 1:
            raise ValueError(f"{name} has shape {x.shape}; one dimension is needed")
        if bad := int((~np.isfinite(x)).sum()):
            raise ValueError(f"{name} has {bad} of {len(x)} values that are not finite; drop or explain them first")
    lengths = {name: len(x) for name, x in series.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths differ: {', '.join(f'{name} {n}' for name, n in lengths.items())}")
    name, n = next(iter(lengths.items()))
    if n < least:
        raise Undefined(f"{name} has {n} values; at least {least} are needed")
    return list(series.values())


def varied(**named: Floats) -> None:
    """Check that no series is constant. Raises Undefined with the name and the value of one that is."""
    for name, x in named.items():
        if np.ptp(x) <= 1e-12 * np.abs(x).max(initial=0):
            raise Undefined(f"{name} is constant ({x[0]:g} in all {x.size} values)")


def groups(name: str, labels: ArrayLike, n: int, least: int = 2) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The distinct labels, and for each of n values the index of its label.

    name: name of the labels in errors
    labels: (n,) a label for each value
    least: smallest number of groups
    Raises ValueError for another shape, Undefined below `least` groups.
    """
    given = np.asarray(labels)
    if given.shape != (n,):
        raise ValueError(f"{name} has shape {given.shape}; ({n},) is needed, one label a value")
    names, index = np.unique(given, return_inverse=True)
    if len(names) < least:
        plural = "" if len(names) == 1 else "s"
        raise Undefined(f"{name} has {len(names)} group{plural}; at least {least} are needed")
    return names, index


def jackknife(value: float, without: Floats, level: float = 0.95, *, fisher: bool = False) -> tuple[float, ...]:
    """Standard error, low, high and two-sided p from the statistic without each cluster in turn.

    se^2 = (G - 1)/G sum (v_g - mean v)^2 (Efron & Stein 1981; CR3 of Bell & McCaffrey 2002 in a regression), interval
    value +- t(G - 1) se. fisher: compute everything, also the se, on atanh(v). Undefined if a value is not
    finite, as when all variation is within one cluster, or if the se is zero.
    """
    each = np.arctanh(without) if fisher and (np.abs(without) < 1).all() else np.asarray(without, dtype=np.float64)
    centre = float(np.arctanh(value)) if fisher and abs(value) < 1 else value
    if fisher and not ((np.abs(without) < 1).all() and abs(value) < 1):
        raise Undefined(f"a correlation of {value:g} with every or all but one cluster has no interval")
    if not np.isfinite(each).all():
        raise Undefined(f"without one of {len(each)} clusters the statistic is undefined; it depends on that cluster")
    g = len(each)
    se = float(np.sqrt((g - 1) / g * ((each - each.mean()) ** 2).sum()))
    if se <= 1e-12 * max(abs(centre), 1e-300):
        raise Undefined(f"all {g} clusters give the same value ({value:g}): no spread between clusters to infer from")
    half = float(stats.t.ppf((1 + level) / 2, g - 1)) * se
    low, high = (float(np.tanh(end)) if fisher else end for end in (centre - half, centre + half))
    return se, low, high, float(2 * stats.t.sf(abs(centre) / se, g - 1))


def spearman(x: ArrayLike, y: ArrayLike) -> Rank:
    """Spearman's rank correlation, mid-ranks for ties, p from t with n - 2 degrees of freedom (scipy.stats.spearmanr).

    The published statistic, which assumes independent pairs. Undefined below 3 pairs or for a constant series.
    """
    a, b = columns(3, x=x, y=y)
    varied(x=a, y=b)
    test = stats.spearmanr(a, b)
    return Rank(float(test.statistic), float(test.pvalue), len(a))


def spearman_of_means(x: ArrayLike, y: ArrayLike, clusters: ArrayLike) -> Rank:
    """`spearman` of the means of x and of y in each cluster; n is the number of clusters, at least 3."""
    a, b = columns(1, x=x, y=y)
    _, index = groups("clusters", clusters, len(a), 3)
    counts = np.bincount(index)
    return spearman(np.bincount(index, a) / counts, np.bincount(index, b) / counts)


def clustered_spearman(
    x: ArrayLike,
    y: ArrayLike,
    clusters: ArrayLike,
    *,
    within: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Clustered:
    """Spearman's rho with a percentile interval of a bootstrap over whole clusters (Field & Welsh 2007).

    Every bootstrap sample is ranked again. within: labels such as checkpoints; values are then ranked within each and
    the correlation is of rank/(n + 1) - 1/2, pooled, so that a rise which all terms share does not add to it. The
    percentiles
    are those of z = +-t(G - 1) sqrt(G / (G - 1)) for G clusters (the expanded percentile of Hesterberg 2015): the
    plain ones cover 92% instead of 95% with 11 clusters. p is the level at which that interval ends at 0; it cannot
    fall below what one draw in `draws` gives. Undefined as `spearman`, with one cluster, or if over a tenth of the
    draws is constant.
    """
    a, b = columns(3, x=x, y=y)
    names, index = groups("clusters", clusters, len(a))
    varied(x=a, y=b)
    blocks = [np.arange(len(a))]
    if within is not None:
        labels, block = groups("within", within, len(a), 1)
        blocks = [np.flatnonzero(block == k) for k in range(len(labels))]
    rho = float(_rho(a, b, np.ones((1, len(a))), blocks)[0])
    if not np.isfinite(rho):
        raise Undefined("x or y is constant inside every group of `within`")
    rng = np.random.default_rng(seed)
    parts = []
    for done in range(0, draws, step := max(1, _CELLS // len(a))):
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), min(step, draws - done))
        parts.append(_rho(a, b, drawn[:, index].astype(np.float64), blocks))
    every = np.concatenate(parts)
    kept = every[np.isfinite(every)]
    if len(kept) < 0.9 * draws:
        raise Undefined(
            f"{draws - len(kept)} of {draws} redrawn samples are constant; {len(names)} clusters are too few"
        )
    g = len(names)
    tail = float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, g - 1) * np.sqrt(g / (g - 1))))
    low, high = np.quantile(kept, [tail, 1 - tail])
    beyond = min(0.5, (min((kept <= 1e-12).sum(), (kept >= -1e-12).sum()) + 1) / (len(kept) + 1))
    p = float(2 * stats.t.cdf(stats.norm.ppf(beyond) * np.sqrt((g - 1) / g), g - 1))
    return Clustered(value=rho, low=float(low), high=float(high), p=p, n=len(a), clusters=g)


def _rho(x: Floats, y: Floats, weights: Floats, blocks: list[NDArray[np.intp]]) -> Floats:
    """Spearman's rho in samples where value j occurs weights[d, j] times; NaN where a sample is constant."""
    xx, yy, xy = np.zeros((3, len(weights)))
    for rows in blocks:
        w = weights[:, rows]
        total = w.sum(1, keepdims=True) + 1
        a, b = (_ranks(series[rows], w) / total - 0.5 for series in (x, y))
        xx += (w * a * a).sum(1)
        yy += (w * b * b).sum(1)
        xy += (w * a * b).sum(1)
    bottom = np.sqrt(xx * yy)
    out: Floats = np.divide(xy, bottom, out=np.full(len(weights), np.nan), where=bottom > 1e-12)
    return out


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Mid-ranks of the values; their weighted mean is (sum of weights + 1) / 2."""
    distinct, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(distinct)))
    tied = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Floats = np.cumsum(tied, axis=1) - tied / 2 + 0.5
    return ranks[:, inverse]


def repeated_measures(x: ArrayLike, y: ArrayLike, subjects: ArrayLike, *, level: float = 0.95) -> Repeated:
    """Correlation within subjects (Bland & Altman 1995): analysis of covariance with one slope and a level per subject.

    r = sum x'y' / sqrt(sum x'^2 sum y'^2), primes for deviations from the subject's means; dof = n - subjects - 1;
    p from t = r sqrt(dof / (1 - r^2)); interval tanh(atanh r +- z / sqrt(dof - 1)) (Bakdash & Marusich 2017), NaN for
    dof < 2. pingouin.rm_corr gives the same; it is GPL, so only the tests use it. A trend that all subjects share
    increases r, and dependent residuals make p too small: `clustered_repeated` allows for both.
    """
    a, b = columns(3, x=x, y=y)
    names, index = groups("subjects", subjects, len(a))
    dof = len(a) - len(names) - 1
    if dof < 1:
        raise Undefined(f"{len(a)} values of {len(names)} subjects leave {dof} degrees of freedom")
    a, b = (_centred(series[:, None], index)[:, 0] for series in (a, b))
    r = float(_within(np.array([[a @ a, a @ b], [a @ b, b @ b]])))
    if not np.isfinite(r):
        raise Undefined("x or y is constant inside every subject")
    p, low, high = (0.0, r, r) if (1 - r * r) < 1e-15 else (np.nan, np.nan, np.nan)
    if np.isnan(p):
        p = float(2 * stats.t.sf(abs(r) * np.sqrt(dof / (1 - r * r)), dof))
        if dof > 1:
            half = float(stats.norm.ppf((1 + level) / 2)) / np.sqrt(dof - 1)
            low, high = (float(np.tanh(np.arctanh(r) + sign * half)) for sign in (-1, 1))
    return Repeated(r=r, low=low, high=high, p=p, dof=dof, n=len(a), clusters=len(names))


def clustered_repeated(
    x: ArrayLike, y: ArrayLike, subjects: ArrayLike, *, within: ArrayLike | None = None, level: float = 0.95
) -> Clustered:
    """`repeated_measures` r, freed from the means of `within` (checkpoints) too, with subjects as clusters.

    r is the partial correlation of x and y given subject and checkpoint. Interval and p: t(subjects - 1) on atanh r
    with the `jackknife` over subjects, each time removing the checkpoint means afresh, so residuals of one subject
    may depend on each other in any way.
    """
    a, b = columns(3, x=x, y=y)
    names, index = groups("subjects", subjects, len(a), 3)
    table = np.column_stack([a, b])
    if within is not None:
        labels, block = groups("within", within, len(a), 1)
        table = np.column_stack([table, np.eye(len(labels))[block][:, 1:]])
    each = _grams(_centred(table, index), index, len(names))
    r = float(_within(each.sum(0)))
    if not np.isfinite(r):
        raise Undefined(
            "x or y does not vary once subjects" + (" and `within` are" if within is not None else " are") + " removed"
        )
    _, low, high, p = jackknife(r, _within(each.sum(0) - each), level, fisher=True)
    return Clustered(value=r, low=low, high=high, p=p, n=len(a), clusters=len(names))


def _centred(table: Floats, index: NDArray[np.intp]) -> Floats:
    counts = np.bincount(index)
    means = np.column_stack([np.bincount(index, column) / counts for column in table.T])
    return table - means[index]


def _grams(table: Floats, index: NDArray[np.intp], count: int) -> Floats:
    """Z'Z of the rows of each group: [group, column, column]."""
    out = np.zeros((count, table.shape[1], table.shape[1]))
    np.add.at(out, index, table[:, :, None] * table[:, None, :])
    return out


def _within(gram: Floats) -> Floats:
    """Correlation of the first two columns given the others, from Z'Z with any leading dimensions; NaN if undefined."""
    top, cross, rest = gram[..., :2, :2], gram[..., :2, 2:], gram[..., 2:, 2:]
    left = top - cross @ np.linalg.pinv(rest, hermitian=True) @ np.swapaxes(cross, -1, -2) if rest.size else top
    xx, yy = left[..., 0, 0], left[..., 1, 1]
    real = (xx > 1e-12 * top[..., 0, 0]) & (yy > 1e-12 * top[..., 1, 1])
    bottom = np.sqrt(np.where(real, xx * yy, 1))
    out: Floats = np.divide(left[..., 0, 1], bottom, out=np.full(xx.shape, np.nan), where=real)
    return out


def mixed_slope(y: ArrayLike, x: ArrayLike, checkpoint: ArrayLike, term: ArrayLike, *, level: float = 0.95) -> Slope:
    """Slope of x in y ~ x + C(checkpoint) + (1 | term), by REML (statsmodels MixedLM), in units of y per unit of x.

    The model's own standard error, sqrt (X'V^-1 X)^-1 as lme4 gives it, takes what is left within a term as
    independent, which training curves are not: it is given as se_model, with p_model from the normal. se, interval
    and p come from the `jackknife` over terms at the fitted variances. Undefined if x is determined by the
    checkpoint, the fit does not converge, or a variance is estimated at zero.
    """
    out, slope = columns(4, y=y, x=x)
    names, index = groups("term", term, len(out), 3)
    labels, block = groups("checkpoint", checkpoint, len(out), 1)
    varied(y=out, x=slope)
    design = np.column_stack([slope, np.ones(len(out)), np.eye(len(labels))[block][:, 1:]])
    if (rank := int(np.linalg.matrix_rank(design))) < design.shape[1]:
        raise Undefined(f"x is determined by the checkpoint (rank {rank} of {design.shape[1]})")
    fit = fitted(out, design, groups=index)
    between, residual = float(np.asarray(fit.cov_re)[0, 0]), float(fit.scale)
    if between < 1e-6 * residual:
        raise Undefined("singular: the variance between terms is estimated at zero")
    counts = np.bincount(index)
    share = 1 - np.sqrt(residual / (residual + counts * between))
    table = np.column_stack([design, out])
    table = table - share[index, None] * (table - _centred(table, index))
    each = _grams(table, index, len(names))
    left = each.sum(0) - each
    without = (np.linalg.pinv(left[:, :-1, :-1], hermitian=True) @ left[:, :-1, -1:])[:, 0, 0]
    value = float(fit.params[0])
    se, low, high, p = jackknife(value, without, level)
    se_model = float(np.sqrt(residual * np.linalg.inv(each.sum(0)[:-1, :-1])[0, 0]))
    p_model = float(2 * stats.norm.sf(abs(value) / se_model))
    return Slope(
        slope=value,
        se=se,
        low=low,
        high=high,
        p=p,
        se_model=se_model,
        p_model=p_model,
        term_sd=between**0.5,
        residual_sd=residual**0.5,
        n=len(out),
        clusters=len(names),
    )


def fitted(y: Floats, design: Floats, **model: Any) -> Any:
    """A converged statsmodels MixedLM fit by REML, or Undefined with the optimizer's reason.

    Powell's method, then Nelder-Mead: the default BFGS fails on a fifth of plain data sets (statsmodels 0.15).
    """
    from statsmodels.regression.mixed_linear_model import MixedLM

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            fit = MixedLM(y, design, **model).fit(reml=True, method=["powell", "nm"])
            settled = bool(fit.converged) and np.isfinite(fit.params).all()
        except (np.linalg.LinAlgError, ValueError) as error:
            raise Undefined(f"the mixed model is singular: {error}") from error
    if not settled:
        reason = "; ".join(sorted({str(each.message).split("\n")[0] for each in seen})) or "no reason given"
        raise Undefined(f"the mixed model did not converge: {reason}")
    return fit
