"""A grid of pairings: what it must look like, and each term of it against the other cells of its row and column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bindscope.stats.additive import Bools, Ints, predicted
from bindscope.stats.correlate import Floats


@dataclass(frozen=True)
class Grid:
    """The values of all pairings of rows with columns, and which of them are the terms.

    M: (rows, columns) or (rows, columns, layers), in the unit of the quantity; NaN where it was not measured.
    rows, cols: (terms,) integers, the cell of each term; terms may share a row or a column, not both.
    left_out: (rows, columns) bool, the cells that are no comparison; None for none.
    """

    M: ArrayLike
    rows: ArrayLike
    cols: ArrayLike
    left_out: ArrayLike | None = None


@dataclass(frozen=True)
class Checked:
    """A grid whose shapes fit.

    values: (rows, columns, layers), one layer where M had no such axis.
    rows, cols: (terms,), the cell of each term.
    measured: (terms,), whether the term has a value in every layer.
    admissible: (rows, columns), cells that are measured and not left out.
    background: (rows, columns), admissible cells that are no term's.
    layers: () or (layers,), what M had behind its rows and columns.
    """

    values: Floats
    rows: Ints
    cols: Ints
    measured: Bools
    admissible: Bools
    background: Bools
    layers: tuple[int, ...]

    def shaped(self, array: Floats) -> Floats:
        """[..., layers] without the last axis where M had none."""
        return array if self.layers else array[..., 0]


def checked_grid(grid: Grid) -> Checked:
    """The grid with the masks that follow from it. ValueError names what does not fit."""
    M = np.asarray(grid.M, dtype=np.float64)
    if M.ndim not in (2, 3) or 0 in M.shape:
        raise ValueError(f"M has shape {M.shape}; it is (rows, columns) or (rows, columns, layers), none of them 0")
    if np.isinf(M).any():
        raise ValueError(f"{int(np.isinf(M).sum())} values of M are infinite; NaN stands for not measured")
    rows, cols = np.asarray(grid.rows), np.asarray(grid.cols)
    for name, index, size in (("rows", rows, M.shape[0]), ("cols", cols, M.shape[1])):
        if index.ndim != 1 or len(index) == 0 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(f"{name} is {index.dtype} of shape {index.shape}; it is one integer for each term")
        if index.min() < 0 or index.max() >= size:
            raise ValueError(f"{name} has values from {index.min()} to {index.max()}; the grid has 0 to {size - 1}")
    if len(rows) != len(cols):
        raise ValueError(f"{len(rows)} rows and {len(cols)} cols; each term has one of both")
    out = np.zeros(M.shape[:2], dtype=bool) if grid.left_out is None else np.asarray(grid.left_out)
    if out.dtype != np.bool_ or out.shape != M.shape[:2]:
        raise ValueError(f"left_out is {out.dtype} of shape {out.shape}; it is bool of shape {M.shape[:2]}")
    if len(np.unique(rows * M.shape[1] + cols)) < len(rows):
        raise ValueError("two terms have the same row and column; give each term once")
    if out[rows, cols].any():
        raise ValueError(f"terms {np.flatnonzero(out[rows, cols]).tolist()} are in left-out cells; take them out")
    values = M.reshape(*M.shape[:2], -1)
    admissible = ~out & ~np.isnan(values).any(2)
    background = admissible.copy()
    background[rows, cols] = False
    return Checked(
        values=values,
        rows=rows.astype(np.intp),
        cols=cols.astype(np.intp),
        measured=admissible[rows, cols],
        admissible=admissible,
        background=background,
        layers=M.shape[2:],
    )


def count_others(grid: Checked, background: Bools) -> Ints:
    """(terms,): the number of background cells in the term's row and column."""
    counts: Ints = background.sum(1)[grid.rows] + background.sum(0)[grid.cols]
    return counts


def per_term(grid: Checked, background: Bools) -> tuple[Floats, Floats, Floats]:
    """Excess, interaction and percentile, each (terms, layers), of all terms against the background cells."""
    rows, cols, values = grid.rows, grid.cols, grid.values
    count = count_others(grid, background)
    defined = (grid.measured & (count > 0))[:, None]
    cells = np.where(background[..., None], values, 0)
    total = cells.sum(1)[rows] + cells.sum(0)[cols]
    own = values[rows, cols]
    safe = np.maximum(count, 1)[:, None]
    excess = np.where(defined, own - total / safe, np.nan)
    interaction = np.where(defined, own - predicted(values, background, rows, cols), np.nan)
    ranks = np.zeros(own.shape)
    for others, used in ((values[rows], background[rows]), (values.swapaxes(0, 1)[cols], background.T[cols])):
        below = (others < own[:, None]) + 0.5 * (others == own[:, None])  # (terms, cells, layers)
        ranks += (below * used[..., None]).sum(1)
    return excess, interaction, np.where(defined, ranks / safe, np.nan)


def mean_over_terms(per_term: Floats) -> Floats:
    """Mean over the terms that have a value, NaN if none has."""
    counts = np.isfinite(per_term).sum(0)
    sums = np.nansum(per_term, axis=0)
    out: Floats = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return out
