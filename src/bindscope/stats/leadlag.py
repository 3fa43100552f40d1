"""C1-B: does binding come before behavior? The published count, and the count that is expected without a lead.

A binomial test over the terms of one run is not valid, because the terms share their training. A change of the learning
rate or the noise of one checkpoint affects all of them, so 41 terms are not 41 independent trials. The expected share
of "EB leads" is not 1/2 either: the series with the later or noisier rise leads less often, whichever comes first
(Hamaker et al. 2015). One run can be compared with simulated series that share their trend without a lead
(`surrogate_null`). Statements about training in general need runs with different seeds (`swap_test`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from bindscope.stats.compare import binomial_p, permutation_p, wilson
from bindscope.stats.correlate import Floats, Undefined


class LeadLag(NamedTuple):
    """The result of `lead_lag`.

    fraction: share of terms in which EB leads
    low, high: its Wilson interval
    p: one-sided binomial p
    n: number of terms
    leads, ties: number of terms in which EB leads, and of ties
    constant: number of terms that are left out because a series is constant
    """

    fraction: float
    low: float
    high: float
    p: float
    n: int
    leads: int
    ties: int
    constant: int


class SwapTest(NamedTuple):
    """The result of `swap_test`.

    value: mean over runs of (share EB leads - share behavior leads)
    p: one-sided p
    runs: number of runs
    least_p: smallest p that this number of runs can give
    per_run: the value of each run
    """

    value: float
    p: float
    runs: int
    least_p: float
    per_run: tuple[float, ...]


class Surrogate(NamedTuple):
    """The result of `surrogate_null`.

    fraction: observed share of terms in which EB leads
    p: share of simulated runs with as large a share
    null_mean, null_low, null_high: mean and central 95% of the simulated shares
    phi: lag-1 autocorrelation of the noise of EB and of Beh
    shared: share of the noise of EB and of Beh that all terms have in common
    n: number of terms
    constant: number of terms that are left out because a series is constant
    draws: number of simulated runs
    """

    fraction: float
    p: float
    null_mean: float
    null_low: float
    null_high: float
    phi: tuple[float, float]
    shared: tuple[float, float]
    n: int
    constant: int
    draws: int


def cross_lags(eb: ArrayLike, beh: ArrayLike) -> tuple[Floats, Floats]:
    """Per term, Pearson r(EB[t], Beh[t+1]) and r(Beh[t], EB[t+1]), for arrays [..., term, t] with t in training order.

    NaN in both where either series is constant, with or without its first or last checkpoint: undefined, not zero.
    ValueError for shapes that differ or values that are not finite, Undefined below 4 checkpoints (3 pairs).
    """
    x, y = np.asarray(eb, dtype=np.float64), np.asarray(beh, dtype=np.float64)
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"eb has shape {x.shape}, beh {y.shape}; both are [term, checkpoint]")
    if bad := int((~np.isfinite(x)).sum() + (~np.isfinite(y)).sum()):
        raise ValueError(f"{bad} of {x.size + y.size} values are not finite; leave out the terms they belong to")
    if x.shape[-1] < 4:
        raise Undefined(f"{x.shape[-1]} checkpoints give {x.shape[-1] - 1} lagged pairs; at least 3 are needed")
    first, second = _pearson(x[..., :-1], y[..., 1:]), _pearson(y[..., :-1], x[..., 1:])
    gone = np.isnan(first) | np.isnan(second)
    return np.where(gone, np.nan, first), np.where(gone, np.nan, second)


def _pearson(x: Floats, y: Floats) -> Floats:
    a, b = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    sizes = (a * a).sum(-1), (b * b).sum(-1)
    real = (np.ptp(x, axis=-1) > 1e-9 * np.abs(x).max(-1)) & (np.ptp(y, axis=-1) > 1e-9 * np.abs(y).max(-1))
    bottom = np.sqrt(np.where(real, sizes[0] * sizes[1], 1))
    out: Floats = np.divide((a * b).sum(-1), bottom, out=np.full(real.shape, np.nan), where=real)
    return out


def lead_lag(eb: ArrayLike, beh: ArrayLike, *, level: float = 0.95) -> LeadLag:
    """The published C1-B: EB leads in a term if r(EB[t], Beh[t+1]) > r(Beh[t], EB[t+1]); arrays [term, t].

    Share of terms with a lead, exact one-sided binomial p against 1/2 and Wilson interval, both of which take terms as
    independent (they are not: see the module). Ties count as no lead. Terms with a constant series are excluded and
    counted. Undefined if none is left.
    """
    first, second = cross_lags(eb, beh)
    if first.ndim != 1:
        raise ValueError(f"eb has shape {np.shape(eb)}; one run is [term, checkpoint]")
    kept = np.isfinite(first)
    n = int(kept.sum())
    if n == 0:
        raise Undefined(f"in each of {len(kept)} terms EB or behavior is constant over the lagged checkpoints")
    leads, ties = int((first > second).sum()), int((first == second).sum())
    share = wilson(leads, n, level=level)
    return LeadLag(
        fraction=share.value,
        low=share.low,
        high=share.high,
        p=binomial_p(leads, n),
        n=n,
        leads=leads,
        ties=ties,
        constant=len(kept) - n,
    )


def swap_test(eb: Sequence[ArrayLike], beh: Sequence[ArrayLike], *, draws: int = 65_536, seed: int = 0) -> SwapTest:
    """Does EB lead in runs that differ in their seed? eb[run] and beh[run] are [term, t]; the run is the unit.

    If neither leads and both series are measured alike, a run with the labels EB and Beh swapped is as likely as the
    run itself. D_run = share of its terms where EB leads - share where behavior leads, which a swap negates for all
    terms of the run at once. p = share of the 2^S sign patterns (all of them up to 16 runs, else `draws` random ones)
    with a mean D as large: with S seeds the least attainable p is 2^-S, 0.5 for one run and 0.03125 for five. A
    series that is noisier or rises later than the other is not exchangeable with it, and can move D without a lead:
    read this together with `surrogate_null`.
    """
    if len(eb) != len(beh) or len(eb) == 0:
        raise ValueError(f"{len(eb)} runs of eb and {len(beh)} of beh; as many of both and at least one are needed")
    each = []
    for run, (x, y) in enumerate(zip(eb, beh, strict=True)):
        first, second = cross_lags(x, y)
        if not np.isfinite(first).any():
            raise Undefined(f"run {run}: in each term EB or behavior is constant over the lagged checkpoints")
        each.append(float(np.sign(first - second)[np.isfinite(first)].mean()))
    size, observed = np.array(each), float(np.mean(each))
    runs = len(each)
    if runs <= 16:
        signs: NDArray[np.intp] = 1 - 2 * ((np.arange(2**runs)[:, None] >> np.arange(runs)) & 1)
        p, least = float(((signs @ size) / runs >= observed - 1e-12).mean()), 2.0**-runs
    else:
        signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (draws, runs))
        p, least = permutation_p(observed, (signs @ size) / runs), 1 / (draws + 1)
    return SwapTest(value=observed, p=p, runs=runs, least_p=least, per_run=tuple(each))


def surrogate_null(eb: ArrayLike, beh: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Surrogate:
    """Lead share of one run [term, t] against runs simulated with its trends and noise but no lead.

    Fitted: for each term one smooth shape v (first singular vector of the quadratic fits to its two standardized
    series) that both series follow at the same time, EB = a + b v + noise, Beh = c + d v + noise. Noise is AR(1): its
    phi, one for each series, and its size, one for each term, are those with which residuals from a quadratic have
    the lag-1 autocorrelation (phi within -0.9 and 0.95) and variance seen. A share of it, the mean correlation of
    residuals between terms (0 where that is negative), is common to all terms of the run. EB noise and Beh noise are
    independent. p = (b + 1)/(R + 1) for a lead share as large (`permutation_p`). A series that all terms share and
    that moves before the other as a whole counts as a lead; whether the next seed repeats it only `swap_test` can
    say. Undefined with fewer than 3 terms that vary, below 6 checkpoints, or if a term follows a quadratic without
    noise.
    """
    seen = lead_lag(eb, beh)
    kept = np.isfinite(cross_lags(eb, beh)[0])
    both = np.stack([np.asarray(series, dtype=np.float64)[kept] for series in (eb, beh)])
    both = both - both.mean(-1, keepdims=True)
    if seen.n < 3 or both.shape[-1] < 6:
        raise Undefined(f"{seen.n} terms that vary and {both.shape[-1]} checkpoints; at least 3 and 6 are needed")
    trend, maker = _trends(both)
    rng = np.random.default_rng(seed)
    drawn, phis, shares = [], [], []
    for series in range(2):
        noise, phi, share = _noise(both[series], maker, draws, rng)
        drawn.append(trend[series] + noise)
        phis.append(phi)
        shares.append(share)
    first, second = cross_lags(drawn[0], drawn[1])
    null = (first > second).mean(-1)
    low, high = np.quantile(null, [0.025, 0.975])
    p = permutation_p(seen.fraction, null)
    return Surrogate(
        fraction=seen.fraction,
        p=p,
        null_mean=float(null.mean()),
        null_low=float(low),
        null_high=float(high),
        phi=(phis[0], phis[1]),
        shared=(shares[0], shares[1]),
        n=seen.n,
        constant=seen.constant,
        draws=draws,
    )


def _trends(both: Floats) -> tuple[Floats, Floats]:
    """The common trend of centred [series, term, t], and the projection [t, t] that takes a quadratic off."""
    t = both.shape[-1]
    basis, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, t), 3))
    smooth = both / both.std(-1, keepdims=True) @ basis @ basis.T
    shape = np.linalg.svd(np.moveaxis(smooth, 0, 1), full_matrices=False)[2][:, 0]  # [term, t]
    return (both * shape).sum(-1, keepdims=True) * shape, np.eye(t) - basis @ basis.T


def _noise(series: Floats, maker: Floats, draws: int, rng: np.random.Generator) -> tuple[Floats, float, float]:
    """AR(1) noise [draw, term, t] like that of centred series [term, t] after `maker`, phi, and the share in common."""
    terms, t = series.shape
    residual = series @ maker
    norms, size = (residual**2).sum(-1), (series**2).sum(-1)
    if (norms <= 1e-18 * size).any():
        raise Undefined("a term follows a quadratic without noise; there is nothing to simulate from")
    gaps = np.abs(np.subtract.outer(np.arange(t), np.arange(t)))
    lag = (gaps == 1) / 2

    def expected(phi: float) -> float:
        left = maker @ phi ** gaps.astype(float) @ maker
        return float((left * lag).sum() / np.trace(left))

    target = float(np.einsum("ti,ij,tj->", residual, lag, residual) / norms.sum())
    ends = (-0.9, 0.95)
    if expected(ends[0]) < target < expected(ends[1]):
        phi = float(brentq(lambda value: expected(value) - target, *ends))
    else:
        phi = ends[0] if target <= expected(ends[0]) else ends[1]
    cover = phi ** gaps.astype(float)
    sizes = np.sqrt(norms / np.trace(maker @ cover))
    unit = residual / sizes[:, None]
    total = float((unit**2).sum())
    share = max(0.0, (float((unit.sum(0) ** 2).sum()) - total) / ((terms - 1) * total))
    root = np.linalg.cholesky(cover)
    common, own = rng.standard_normal((draws, 1, t)), rng.standard_normal((draws, terms, t))
    return sizes[:, None] * ((np.sqrt(share) * common + np.sqrt(1 - share) * own) @ root.T), phi, share
