"""Do the cells that pair a row with its own column differ from the cells that pair it with other columns?

A grid holds one value for each pairing of a row with a column (a first part with a last part); some pairings are the
terms. The same rows and the same columns make up the other cells, so whatever a row or a column brings alone is the
same on both sides. Cells that are expressions of their own are left out; a cell with a NaN in any layer was not
measured. The cells that a term is compared with are the *other cells* of its row and of its column: measured, not left
out, and not the cell of another term.

All functions take
    M: (rows, columns) or (rows, columns, layers), in the unit of the quantity; NaN where it was not measured
    rows, cols: (terms,) integers, the cell of each term; terms may share a row or a column, never both
    left_out: (rows, columns) bool, the cells that are no comparison; None for none
and raise ValueError for a wrong shape, a term in a left-out cell, two terms in one cell, or an infinite value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from bindscope.stats.additive import Ints, components
from bindscope.stats.admissible import all_pairings, random_pairings
from bindscope.stats.correlate import Floats, Undefined
from bindscope.stats.grid import Checked, Grid, checked_grid, count_others, mean_over_terms, per_term

_LEAST_UNITS = 6  # below it the t interval of a jackknife is far too narrow


@dataclass(frozen=True)
class PairedExcess:
    """Each term against the other cells of its row and column. (terms,) or (terms, layers), NaN where undefined.

    excess: value minus the mean of the other cells, in the unit of M.
    interaction: value minus row effect plus column effect, in the unit of M.
    mean_excess, mean_interaction: their means over the terms that have one; () or (layers,).
    cells: (terms,), the number of other cells.
    """

    excess: Floats
    interaction: Floats
    mean_excess: Floats
    mean_interaction: Floats
    cells: Ints


@dataclass(frozen=True)
class MatchedPercentile:
    """Each term's place among the other cells of its row and column.

    percentile: (terms,) or (terms, layers), share of the other cells below the term from 0 to 1; NaN where undefined.
    mean: mean over the terms that have one; () or (layers,).
    cells: (terms,), the number of other cells.
    """

    percentile: Floats
    mean: Floats
    cells: Ints


@dataclass(frozen=True)
class PairingTest:
    """Mean of the terms' cells against the mean of permuted pairings.

    value: mean over terms, in the unit of M; () or (layers,).
    expected: mean over the pairings compared with, in the unit of M; () or (layers,).
    z: (value - expected) / standard deviation over the pairings; () or (layers,), 0 where no pairing differs.
    p_greater, p_two_sided: of the largest z, and of the largest |z|, over layers.
    layer_p_greater, layer_p_two_sided: () or (layers,), adjusted for the number of layers by the largest z (max-T).
    terms: number of terms that were measured.
    pairings: number of pairings compared with; all that there are if `exact`.
    exact: whether all admissible pairings were enumerated.
    """

    value: Floats
    expected: Floats
    z: Floats
    p_greater: float
    p_two_sided: float
    layer_p_greater: Floats
    layer_p_two_sided: Floats
    terms: int
    pairings: int
    exact: bool


@dataclass(frozen=True)
class TermInterval:
    """A mean over terms with its t interval from the jackknife over units.

    mean, low, high, se: () or (layers,), in the unit of the quantity; low, high and se are NaN where there is none.
    units: number of terms that can be left out, those that share a row or column counted as one.
    reason: why there is no interval (in some layer), else empty.
    """

    mean: Floats
    low: Floats
    high: Floats
    se: Floats
    units: int
    reason: str


@dataclass(frozen=True)
class TermIntervals:
    """The intervals of the mean paired excess, the mean interaction and the mean matched percentile."""

    excess: TermInterval
    interaction: TermInterval
    percentile: TermInterval


@dataclass(frozen=True)
class Pooled:
    """Several grids, pooled over terms.

    grid: (terms,), the place in the list of the grid that a term is from; terms in the order of grids.
    excess, interaction, percentile: (terms,) or (terms, layers), as of each grid alone.
    intervals: of the means over all terms.
    test: one test of all terms.
    """

    grid: Ints
    excess: Floats
    interaction: Floats
    percentile: Floats
    intervals: TermIntervals
    test: PairingTest


def paired_excess(M: ArrayLike, rows: ArrayLike, cols: ArrayLike, left_out: ArrayLike | None = None) -> PairedExcess:
    """Each term's value minus the mean of the other cells of its row and column, and its interaction.

    The mean excess over terms is 0 in expectation if every pairing of rows with columns is equally likely, and exactly
    0 for row effects plus column effects on a full grid without shared rows or columns. A *single* term's excess is
    not: of row effect a and column effect b it holds half the difference of each from the mean of the others. Its
    interaction is free of both in any grid: it is the value minus the least-squares row effect plus column effect,
    fitted to all cells that are measured, not left out and no term's. On a full grid without shared rows or columns the
    mean interaction equals the mean excess.

    M, rows, cols, left_out: as described for the module.
    """
    checked = checked_grid(Grid(M, rows, cols, left_out))
    found = per_term(checked, checked.background)
    return PairedExcess(
        excess=checked.shaped(found[0]),
        interaction=checked.shaped(found[1]),
        mean_excess=checked.shaped(mean_over_terms(found[0])),
        mean_interaction=checked.shaped(mean_over_terms(found[1])),
        cells=count_others(checked, checked.background),
    )


def matched_percentile(
    M: ArrayLike, rows: ArrayLike, cols: ArrayLike, left_out: ArrayLike | None = None
) -> MatchedPercentile:
    """The share of the other cells of a term's row and column that lie below the term, ties counted half.

    0.5 in expectation, over terms, if every pairing of rows with columns is equally likely.

    M, rows, cols, left_out: as described for the module.
    """
    checked = checked_grid(Grid(M, rows, cols, left_out))
    found = per_term(checked, checked.background)[2]
    return MatchedPercentile(
        percentile=checked.shaped(found),
        mean=checked.shaped(mean_over_terms(found)),
        cells=count_others(checked, checked.background),
    )


def pairing_test(
    M: ArrayLike, rows: ArrayLike, cols: ArrayLike, left_out: ArrayLike | None = None, R: int = 9999, seed: int = 0
) -> PairingTest:
    """Mean of the terms' cells against R random permutations of their columns, p = (b + 1) / (R + 1).

    Each permutation keeps every row and every column as often as the terms have it, so row and column effects cancel.
    Only *admissible* pairings are compared with: no left-out cell, no cell that was not measured, no cell twice. The
    observed pairing is one of them, so the test is exact if, the left-out cells given, each admissible pairing was
    equally likely (Phipson & Smyth 2010). All are enumerated if the terms have at most R permutations, and p is the
    share at least as extreme. Otherwise random permutations are drawn, and drawn again until admissible; where fewer
    than 1 in 50 is, pairings come from a walk that exchanges two columns at a time (Besag & Clifford 1989, parallel
    method, exact for any number of steps). Layers are studentised by their mean and standard deviation over the
    pairings, the observed one included; adjusted p by single-step max-T (Westfall & Young 1993).
    Terms that were not measured take no part; Undefined if none was.

    M, rows, cols, left_out: as described for the module.
    R: number of permutations.
    seed: of the permutations.
    """
    return _test([checked_grid(Grid(M, rows, cols, left_out))], R, seed)


def jackknife_by_term(
    M: ArrayLike, rows: ArrayLike, cols: ArrayLike, left_out: ArrayLike | None = None, *, level: float = 0.95
) -> TermIntervals:
    """Intervals of the mean excess, interaction and percentile, leaving out a term with its whole row and column.

    A term's row cannot leave without the other terms in it: terms joined by shared rows or columns leave together,
    as one unit (without sharing, each term is one). Grouped jackknife for groups of unequal size (Busing, Meijer &
    van der Leeden 1999), which is the ordinary one for groups of one; Student t with units - 1 degrees of freedom.
    No interval below 6 units, or where leaving out changes nothing; the reason says which. Limits of the percentile
    are cut to 0 and 1.

    M, rows, cols, left_out: as described for the module.
    level: of the intervals, 0.95 for 95%.
    """
    return _intervals([checked_grid(Grid(M, rows, cols, left_out))], level)


def pooled(grids: Sequence[Grid], R: int = 9999, seed: int = 0, *, level: float = 0.95) -> Pooled:
    """Several grids pooled over terms, never over cells: each term is compared within its grid and counts once.

    The test permutes columns within each grid and takes the mean over all terms; intervals leave out units of all
    grids in turn. ValueError without grids or where they differ in layers; else as `pairing_test` and
    `jackknife_by_term`.

    grids: all without layers or all with as many; rows, columns and terms may differ in number.
    R, seed: of the permutations.
    level: of the intervals.
    """
    checked = [checked_grid(grid) for grid in grids]
    if len({grid.layers for grid in checked}) != 1:
        raise ValueError(f"grids have layers {[grid.layers for grid in checked]}; at least one grid, all of the same")
    found = [per_term(grid, grid.background) for grid in checked]
    excess, interaction, percentile = (checked[0].shaped(np.concatenate(each)) for each in zip(*found, strict=True))
    return Pooled(
        grid=np.repeat(np.arange(len(checked)), [len(grid.rows) for grid in checked]),
        excess=excess,
        interaction=interaction,
        percentile=percentile,
        intervals=_intervals(checked, level),
        test=_test(checked, R, seed),
    )


def _intervals(grids: list[Checked], level: float) -> TermIntervals:
    """Intervals over the units of all grids; leaving one out changes the values of its own grid only."""
    whole = [np.stack(per_term(grid, grid.background)) for grid in grids]  # (3, terms, layers) each
    without, sizes = [], []
    for k, grid in enumerate(grids):
        label = components(grid.rows, grid.cols, grid.background.shape)[grid.rows]
        counted = grid.measured & (count_others(grid, grid.background) > 0)
        for unit in np.unique(label[counted]):
            gone = label == unit
            background = grid.background.copy()
            background[grid.rows[gone]] = False
            background[:, grid.cols[gone]] = False
            left = np.stack(per_term(grid, background))
            left[:, gone] = np.nan
            rest = np.concatenate([*whole[:k], left, *whole[k + 1 :]], axis=1)
            without.append([mean_over_terms(each) for each in rest])
            sizes.append(int((gone & counted).sum()))
    means = [mean_over_terms(each) for each in np.concatenate(whole, axis=1)]
    scale = _scale(grids)
    each = np.array(without).reshape(len(sizes), 3, len(means[0]))
    excess, interaction, percentile = (
        _interval(means[k], each[:, k], np.array(sizes), level, unit, grids[0])
        for k, unit in enumerate([scale, scale, np.ones(len(scale))])
    )
    cut = replace(percentile, low=np.maximum(percentile.low, 0), high=np.minimum(percentile.high, 1))
    return TermIntervals(excess=excess, interaction=interaction, percentile=cut)


def _interval(mean: Floats, without: Floats, sizes: Ints, level: float, scale: Floats, like: Checked) -> TermInterval:
    """The grouped jackknife of a mean (layers,) from its values (units, layers) without each unit."""
    units = len(sizes)
    se = np.full(mean.shape, np.nan)
    reason = ""
    if units < _LEAST_UNITS:
        reason = f"{units} units (terms that share a row or column are one); at least {_LEAST_UNITS} are needed"
    else:
        share = (sizes / sizes.sum())[:, None]
        pseudo = (mean - (1 - share) * without) / share
        centre = units * mean - ((1 - share) * without).sum(0)
        se = np.sqrt(((pseudo - centre) ** 2 * share / (1 - share)).mean(0))
        if np.isnan(se).any():
            reason = "the mean is undefined without one of the units"
        elif (se <= 1e-12 * scale).any():
            reason = "leaving out any unit gives the same mean"
            se = np.where(se <= 1e-12 * scale, np.nan, se)
    half = student.ppf((1 + level) / 2, max(units - 1, 1)) * se
    return TermInterval(
        mean=like.shaped(mean),
        low=like.shaped(mean - half),
        high=like.shaped(mean + half),
        se=like.shaped(se),
        units=units,
        reason=reason,
    )


def _test(grids: list[Checked], R: int, seed: int) -> PairingTest:
    """One test over the measured terms of all grids."""
    if R < 1:
        raise ValueError(f"R is {R}; at least one permutation is needed")
    terms = int(sum(grid.measured.sum() for grid in grids))
    if terms == 0:
        raise Undefined("no term was measured; there is nothing to test")
    rng = np.random.default_rng(seed)
    exact = prod(factorial(int(grid.measured.sum())) for grid in grids) <= R
    middle = np.nanmean(np.concatenate([grid.values[grid.admissible] for grid in grids]), axis=0)  # keeps sums small
    value = np.zeros(len(middle))
    null = np.zeros((1 if exact else R, len(middle)))
    for grid in grids:
        rows, cols = grid.rows[grid.measured], grid.cols[grid.measured]
        centred = grid.values - middle
        value += centred[rows, cols].sum(0)
        if exact:
            sums = _sums(centred, rows, cols[all_pairings(rows, cols, grid.admissible)])
            null = (null[:, None] + sums).reshape(-1, len(middle))
        else:
            null += _sums(centred, rows, cols[random_pairings(rows, cols, grid.admissible, R, rng)])
    # Including the observed pairing makes the studentised values exchangeable, hence p exact.
    every = null if exact else np.concatenate([value[None], null])
    mean, spread = every.mean(0), every.std(0)
    varied = spread > 1e-12 * _scale(grids) * terms
    every, z = ((np.where(varied, x - mean, 0)) / np.where(varied, spread, 1) for x in (every, value))
    greater, both = _max_t(every, z), _max_t(np.abs(every), np.abs(z))
    shaped = grids[0].shaped
    return PairingTest(
        value=shaped(value / terms + middle),
        expected=shaped(mean / terms + middle),
        z=shaped(z),
        p_greater=float(greater.min()),
        p_two_sided=float(both.min()),
        layer_p_greater=shaped(greater),
        layer_p_two_sided=shaped(both),
        terms=terms,
        pairings=len(null),
        exact=exact,
    )


def _scale(grids: list[Checked]) -> Floats:
    """(layers,): the largest absolute value of any grid, in whose rounding a difference is none."""
    out: Floats = np.max([np.nanmax(np.abs(grid.values), axis=(0, 1), initial=0) for grid in grids], axis=0)
    return out


def _sums(values: Floats, rows: Ints, cols: Ints) -> Floats:
    """Sums over terms, (orders, layers), of the cells (rows[t], cols[order, t]); a layer at a time for memory."""
    return np.stack([values[rows, cols, layer].sum(1) for layer in range(values.shape[2])], axis=1)


def _max_t(every: Floats, z: Floats) -> Floats:
    """(layers,): share of the pairings whose largest value over layers reaches z, up to rounding."""
    top = every.max(1)
    p: Floats = (top[:, None] >= z - 1e-9).mean(0)
    return p
