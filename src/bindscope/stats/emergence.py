"""When a quantity emerges. Times are interval-censored: the event was between two checkpoints.

Intervals are (left, right] in the units of `steps`: the event was after left and not after right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from bindscope.stats.compare import binomial_p
from bindscope.stats.correlate import Floats


class Survival(NamedTuple):
    """The result of `turnbull`.

    left, right: ends of the intervals that have mass
    mass: probability of each interval
    median_left, median_right: the interval that contains the median
    n: number of times
    """

    left: Floats
    right: Floats
    mass: Floats
    median_left: float
    median_right: float
    n: int


class Order(NamedTuple):
    """The result of `paired_emergence`.

    earlier, later: number of terms in which binding is certainly earlier, or later
    undecided: number of terms in which the intervals overlap
    p: two-sided sign test on the decided terms, None without any
    n: number of terms
    """

    earlier: int
    later: int
    undecided: int
    p: float | None
    n: int


def crossings(steps: ArrayLike, values: ArrayLike, thresholds: ArrayLike) -> tuple[Floats, Floats]:
    """(left, right] of the first checkpoint at or above each threshold, even if the series falls below it later.

    values: one or many series, [..., t]. Returns left and right, [threshold, ...]. Already there at the first
    checkpoint: (0, first], or (-inf, 0] if that is step 0. Never: (last, inf].

    Whether an order of emergence holds at one threshold only is seen by giving many. ValueError unless steps rise
    strictly from 0 or more, one for each value, and everything is finite.
    """
    times, x = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    cuts = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    if times.ndim != 1 or x.ndim < 1 or x.shape[-1:] != times.shape or len(times) == 0:
        raise ValueError(f"{times.shape} steps for values of shape {x.shape}; one step a checkpoint is needed")
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"steps must rise strictly from 0 or more, got {times.tolist()}")
    if bad := int((~np.isfinite(x)).sum() + (~np.isfinite(cuts)).sum()):
        raise ValueError(f"{bad} values or thresholds are not finite; leave out the series they belong to")
    reached = x >= cuts.reshape(-1, *([1] * x.ndim))
    at = np.where(reached.any(-1), reached.argmax(-1), len(times))
    before = -np.inf if times[0] == 0 else 0.0
    edges = np.concatenate([[before], times, [np.inf]])
    return edges[at], edges[at + 1]


def turnbull(left: ArrayLike, right: ArrayLike, *, tolerance: float = 1e-8, rounds: int = 1000) -> Survival:
    """Distribution and median of (left, right] times by nonparametric maximum likelihood (Turnbull 1976).

    Only innermost intervals can have mass. The constrained Newton method (Wang 2007) computes it and ends when
    no interval's mean of 1 / (mass an observation holds) is above 1 + tolerance: the mean log-likelihood is then within
    tolerance of its maximum (Gentleman & Geyer 1994). RuntimeError if `rounds` do not suffice.
    The likelihood says how much mass an interval holds, not where inside it, so the median is an interval too; its
    right end is inf if less than half of the times are known to have come.

    Own code: lifelines 0.30 takes intervals as closed, so (0, 10] and (10, 20] meet at 10 and get all their mass there.
    Checkpoints share their ends all the time. The tests compare with lifelines on recoded ends, and with surpyval.
    """
    low, high = _intervals("left", left, "right", right)
    if len(low) == 0:
        raise ValueError("no intervals")
    ends = np.unique(np.concatenate([low, high]))
    a, b = np.searchsorted(ends, low), np.searchsorted(ends, high)
    starts, stops = np.isin(np.arange(len(ends)), a), np.isin(np.arange(len(ends)), b)
    # innermost: from a left end to the next end, if that is a right end
    inner = np.flatnonzero(starts[:-1] & stops[1:])
    inside = ((a[:, None] <= inner) & (inner < b[:, None])).astype(np.float64)
    mass = np.full(len(inner), 1 / len(inner))
    for _ in range(rounds):
        slopes = inside / (inside @ mass)[:, None]
        excess = float(slopes.mean(0).max()) - 1
        if excess <= tolerance:
            break
        mass = _newton(inside, slopes, mass)
    else:
        raise RuntimeError(f"no convergence in {rounds} rounds: a slope is still {excess:g} above 1")
    half = int(np.argmax(np.cumsum(mass) >= 0.5 - 1e-6))
    lefts, rights = ends[inner], ends[inner + 1]
    return Survival(
        left=lefts,
        right=rights,
        mass=mass,
        median_left=float(lefts[half]),
        median_right=float(rights[half]),
        n=len(low),
    )


def _newton(inside: Floats, slopes: Floats, mass: Floats) -> Floats:
    """The mass that maximizes the quadratic expansion of the log-likelihood, on the way to which steps are halved."""
    table = np.vstack([slopes - 2, np.ones(len(mass))])
    target = nnls(table, np.append(np.zeros(len(slopes)), 1.0))[0]
    step = target / target.sum() - mass
    gain, before = float(slopes.mean(0) @ step), float(np.log(inside @ mass).mean())
    for halvings in range(60):
        new: Floats = mass + 0.5**halvings * step
        held = inside @ new
        if (held > 0).all() and np.log(held).mean() >= before + 1e-4 * 0.5**halvings * gain - 1e-15:
            return new
    return mass


def paired_emergence(
    binding_left: ArrayLike, binding_right: ArrayLike, behavior_left: ArrayLike, behavior_right: ArrayLike
) -> Order:
    """The number of terms in which binding certainly emerged before behavior, certainly after it, or neither.

    "Certainly before" means that the interval of binding ends at or before the left end of the interval of behavior.
    The two-sided sign test on the decided terms (exact binomial, 1/2) assumes independent terms. The terms of one run
    are not independent, so compare runs with different seeds (see `bindscope.stats.leadlag.swap_test`). Undecided terms
    are not evidence of a tie.
    """
    x, y = _intervals("binding_left", binding_left, "binding_right", binding_right)
    u, v = _intervals("behavior_left", behavior_left, "behavior_right", behavior_right)
    if len(x) != len(u):
        raise ValueError(f"{len(x)} intervals of binding and {len(u)} of behavior; one of each for a term is needed")
    earlier, later = int((y <= u).sum()), int((v <= x).sum())
    decided = earlier + later
    p = binomial_p(earlier, decided, alternative="two-sided") if decided else None
    return Order(earlier=earlier, later=later, undecided=len(x) - decided, p=p, n=len(x))


def _intervals(left_name: str, left: ArrayLike, right_name: str, right: ArrayLike) -> tuple[Floats, Floats]:
    low, high = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if low.ndim != 1 or low.shape != high.shape:
        raise ValueError(f"{left_name} has shape {low.shape}, {right_name} {high.shape}; both are one value a term")
    wrong: NDArray[np.bool_] = ~(low < high)
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(f"{int(wrong.sum())} intervals are not left < right, the first ({low[k]}, {high[k]}] at {k}")
    return low, high
