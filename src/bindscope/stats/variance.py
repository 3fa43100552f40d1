"""C2: how much of the variance of a quantity is between terms, and how much between prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from bindscope.stats.correlate import Floats, Undefined, columns, fitted, groups, varied


class Intraclass(NamedTuple):
    """The result of `icc`.

    value: ICC(1)
    low, high: its interval
    f, p: F and p of no difference between groups
    n: number of values
    clusters: number of groups
    """

    value: float
    low: float
    high: float
    f: float
    p: float
    n: int
    clusters: int


class Variation(NamedTuple):
    """The result of `cv`.

    names: the groups
    values: coefficient of variation of each, NaN where it is undefined
    counts: number of values of each
    undefined: group -> why it is undefined
    """

    names: tuple[str, ...]
    values: Floats
    counts: tuple[int, ...]
    undefined: dict[str, str]


class Components(NamedTuple):
    """The result of `components`.

    variance: factor or "residual" -> variance, in squared units of the values
    share: the same as shares of the total
    mean: mean of the values
    at_zero: factors whose variance is estimated at zero
    n: number of values
    """

    variance: dict[str, float]
    share: dict[str, float]
    mean: float
    at_zero: tuple[str, ...]
    n: int


def icc(values: ArrayLike, group: ArrayLike, *, level: float = 0.95) -> Intraclass:
    """ICC(1): one-way random effects, a single value (Shrout & Fleiss 1979, their ICC(1,1)).

    (MSB - MSW) / (MSB + (n0 - 1) MSW), n0 = (N - sum n_i^2 / N) / (k - 1), the size that stands for unequal groups
    (Donner 1986). Interval from F = MSB/MSW over the F quantiles of (k - 1, N - k), exact for equal groups. Below
    zero if values of a group are less alike than chance, not clamped; 1 with F infinite if they never differ.
    Undefined with one group, with one value in each, or if all values are equal.
    """
    (x,) = columns(3, values=values)
    names, index = groups("group", group, len(x))
    varied(values=x)
    counts, n, k = np.bincount(index), len(x), len(names)
    if n == k:
        raise Undefined(f"each of {k} groups has one value; spread within groups cannot be seen")
    means = np.bincount(index, x) / counts
    between = float((counts * (means - x.mean()) ** 2).sum()) / (k - 1)
    inside = float(((x - means[index]) ** 2).sum()) / (n - k)
    size = float((n - (counts**2).sum() / n) / (k - 1))
    value = (between - inside) / (between + (size - 1) * inside)
    if inside <= 1e-24 * between:
        return Intraclass(value=1.0, low=1.0, high=1.0, f=float("inf"), p=0.0, n=n, clusters=k)
    f = between / inside
    tail = (1 + level) / 2
    ends = f / stats.f.ppf(tail, k - 1, n - k), f * stats.f.ppf(tail, n - k, k - 1)
    low, high = (float((end - 1) / (end + size - 1)) for end in ends)
    return Intraclass(value=value, low=low, high=high, f=f, p=float(stats.f.sf(f, k - 1, n - k)), n=n, clusters=k)


def cv(values: ArrayLike, group: ArrayLike) -> Variation:
    """Standard deviation (n - 1) over mean of each group. No units; for quantities with a true zero, as EB*.

    A group has none with fewer than two values or a mean that is not positive: NaN, with the reason in `undefined`.
    """
    (x,) = columns(1, values=values)
    names, index = groups("group", group, len(x), 1)
    out, undefined = np.full(len(names), np.nan), {}
    for k, name in enumerate(names):
        part = x[index == k]
        if len(part) < 2:
            undefined[str(name)] = "one value"
        elif part.mean() <= 0:
            undefined[str(name)] = f"mean {part.mean():g} is not positive"
        else:
            out[k] = part.std(ddof=1) / part.mean()
    counts = tuple(int(count) for count in np.bincount(index))
    return Variation(tuple(str(name) for name in names), out, counts, undefined)


def components(values: ArrayLike, factors: Mapping[str, ArrayLike]) -> Components:
    """Variance by crossed random factor: value = mean + sum_f u_f[level] + residual, by REML (statsmodels MixedLM).

    Variances in squared units of values; shares sum to 1. A variance estimated at zero is reported as such in
    `at_zero`: it is too small to be distinguished from zero. With one value for every combination of levels,
    interactions are in the residual. Undefined if a factor has one level or a level for every value, if two factors are
    the same split, or if the fit does not converge.
    """
    from statsmodels.regression.mixed_linear_model import VCSpec

    (x,) = columns(4, values=values)
    varied(values=x)
    if not factors or "residual" in factors:
        raise ValueError(f"factors are {sorted(factors)}; at least one is needed, and none named residual")
    split = {name: groups(name, labels, len(x)) for name, labels in factors.items()}
    seen: dict[tuple[int, ...], str] = {}
    for name, (names, index) in split.items():
        if len(names) == len(x):
            raise Undefined(
                f"{name} has a level for each of {len(x)} values: it cannot be distinguished from the residual"
            )
        _, first = np.unique(index, return_index=True)
        key = tuple(int(start) for start in np.argsort(np.argsort(first))[index])
        if key in seen:
            raise Undefined(
                f"{name} and {seen[key]} split the values in the same way: their shares cannot be distinguished"
            )
        seen[key] = name
    scale = float(x.std())
    spec = VCSpec(
        list(split),
        [[[f"{name} {level}" for level in names]] for name, (names, _) in split.items()],
        [[np.eye(len(names))[index]] for names, index in split.values()],
    )
    one = np.ones((len(x), 1))
    fit = fitted((x - x.mean()) / scale, one, groups=np.zeros(len(x)), exog_vc=spec)
    order = list(fit.model.exog_vc.names)
    variances = {name: float(fit.vcomp[order.index(name)]) * scale**2 for name in split}
    variances["residual"] = float(fit.scale) * scale**2
    total = sum(variances.values())
    share = {name: variance / total for name, variance in variances.items()}
    at_zero = tuple(name for name in split if share[name] < 1e-5)
    return Components(
        variance=variances, share=share, mean=float(fit.params[0]) * scale + float(x.mean()), at_zero=at_zero, n=len(x)
    )
