"""How strongly attention heads bind the tokens of a term: EB* and its companions, with their nulls.

All functions take a *band* P of shape (L, H, T, 1 + D): P[l, h, i, 0] is the attention of position i to position 0, and
P[l, h, i, d] to position i - d. A term of k >= 2 tokens at positions s_1 < ... < s_k (contiguous) needs D >= k - 1.
All values are shares of attention or differences of them, without a unit; entropy is in nats.

BSI, EB, EB* and head entropy are the published quantities (Tran 2026, section 3). Their all-pairs mean falls with k: a
head that always looks at the previous token has BSI = 2/k. `mass`, which sums over earlier tokens of the term where
BSI averages, does not fall with k; it equals BSI at k = 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Below this, 1 - A[s_i, 0] has no three digits left: float32 rounds A near 1 to 6e-8.
_LEAST_REST = 1e-4

Array = NDArray[np.float64]
Band = NDArray[np.float32]


@dataclass(frozen=True)
class HeadValues:
    """Per layer and head, arrays of shape (L, H) with values in [0, 1].

    bsi: mean over pairs i > j of A[s_i, s_j]. adjacent: mean over i > 1 of A[s_i, s_{i-1}]. first: A[s_k, s_1].
    mass: mean over i > 1 of sum_{j<i} A[s_i, s_j]. sink: mean over i of A[s_i, 0]. bsi_sinkless: mean over pairs of
    A[s_i, s_j] / (1 - A[s_i, 0]), NaN where the span starts at position 0, or where position 0 takes all but
    `_LEAST_REST` of a row: 1 - A is then rounding error in float32.
    """

    bsi: Array
    adjacent: Array
    first: Array
    mass: Array
    sink: Array
    bsi_sinkless: Array


def head_values(P: Band, start: int, k: int) -> HeadValues:
    """Values of every head for the term at positions start ... start + k - 1 of a band P (L, H, T, 1 + D)."""
    rows = P[:, :, start : start + k].astype(np.float64)  # (L, H, k, 1 + D)
    pairs = [(i, d) for i in range(1, k) for d in range(1, i + 1)]
    weights = np.stack([rows[:, :, i, d] for i, d in pairs], -1)  # (L, H, k (k - 1) / 2)
    sink = rows[:, :, :, 0]
    rest = np.stack([1 - sink[:, :, i] for i, _ in pairs], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sinkless = np.where(rest >= _LEAST_REST, weights / rest, np.nan).mean(-1)
    return HeadValues(
        bsi=weights.mean(-1),
        adjacent=rows[:, :, 1:, 1].mean(-1),
        first=rows[:, :, k - 1, k - 1],
        mass=np.stack([rows[:, :, i, 1 : i + 1].sum(-1) for i in range(1, k)], -1).mean(-1),
        sink=sink.mean(-1),
        bsi_sinkless=np.full_like(sinkless, np.nan) if start == 0 else sinkless,
    )


def eb(values: Array) -> Array:
    """EB[l] = max_h - mean_h of BSI (or mass): (L, H, ...) -> (L, ...)."""
    return np.asarray(values.max(1) - values.mean(1))


def head_entropy(bsi: Array) -> float:
    """-sum p ln p in nats over the heads of one layer, p = BSI clamped at 1e-10 and normalised; bsi: (H,)."""
    p = np.maximum(bsi, 1e-10)
    p = p / p.sum()
    return float(-(p * np.log(p)).sum())


def uniform_baseline(start: int, k: int) -> float:
    """BSI of a head that spreads attention evenly over all visible keys: mean over pairs of 1 / (s_i + 1)."""
    return float(np.mean([1 / (start + i + 1) for i in range(1, k) for _ in range(i)]))


@dataclass(frozen=True)
class Windows:
    """EB* and EB*_mass (n,) of n windows of k consecutive tokens that begin at `starts` (n,), with the same maxima over
    heads and layers as a term, and bsi (L, H): the sum of every head's BSI over the windows."""

    k: int
    starts: NDArray[np.int64]
    eb_star: Array
    eb_star_mass: Array
    bsi: Array


def window_starts(length: int, k: int, forbidden: Iterable[int]) -> NDArray[np.int64]:
    """Where windows of k tokens begin, in a text of `length` tokens, that avoid position 0 and the `forbidden` ones."""
    blocked = np.zeros(length, dtype=np.int64)
    blocked[[0, *forbidden]] = 1
    before = np.concatenate([[0], blocked.cumsum()])  # blocked positions in front of each
    return np.flatnonzero(before[k:] == before[:-k]) if k <= length else np.empty(0, dtype=np.int64)


def windows(P: Band, k: int, starts: NDArray[np.int64]) -> Windows:
    """The windows of k tokens of one prompt, with band P (L, H, T, 1 + D), that begin at `starts`."""
    if not len(starts):
        return Windows(k, starts, np.empty(0), np.empty(0), np.zeros(P.shape[:2]))
    total = np.zeros((P.shape[0], P.shape[1], len(starts)))  # sum_{i>j} A[s_i, s_j]
    for i in range(1, k):
        for d in range(1, i + 1):
            total += P[:, :, starts + i, d]
    star = eb(total).max(0)  # both means divide the same sum
    pairs = k * (k - 1) / 2
    return Windows(k, starts, star / pairs, star / (k - 1), total.sum(-1) / pairs)


@dataclass(frozen=True)
class Null:
    """An observed value against its null: mean of the null, observed - mean, the rank of the observed value among
    the null values and itself as a share, (b + 1) / (n + 1) with b the null values <= observed, and n. Where n is
    below the least number, the first three are None and `reason` says so."""

    mean: float | None
    excess: float | None
    percentile: float | None
    n: int
    reason: str | None


def against(observed: float, null: Array, least: int) -> Null:
    """Compare one value with a sample of null values (n,) of the same quantity; `least` of them are needed."""
    n = len(null)
    if n < least:
        return Null(None, None, None, n, f"{n} null windows, {least} needed")
    mean = float(null.mean())
    return Null(mean, observed - mean, (int((null <= observed).sum()) + 1) / (n + 1), n, None)


def position_bins(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bins of start positions: 1, 2-3, 4-7, 8-15, ... (attention thins out with the number of visible keys)."""
    return np.where(starts > 0, np.log2(np.maximum(starts, 1)), -1).astype(np.int64)


def position_bin(start: int) -> int:
    """The bin of one."""
    return int(position_bins(np.asarray(start)))


def previous_token_scores(bands: Sequence[Band], first: int) -> Array:
    """Mean attention to the previous token, (L, H), over positions i > first of each text (i - 1 >= first >= 1)."""
    rows = np.concatenate([P[:, :, first + 1 :, 1].astype(np.float64) for P in bands], 2)
    return np.asarray(rows.mean(2))


def correlation(x: Array, y: Array) -> float | None:
    """Pearson r of two values over all heads, each (L, H); None where one of the two is constant."""
    x, y = x.ravel(), y.ravel()
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
