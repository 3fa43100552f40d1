"""Row effects plus column effects of a grid, and what a grid holds beyond them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bindscope.stats.correlate import Floats, Undefined

Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Conjunction:
    """How far each cell of a grid of vectors lies from row effect plus column effect.

    share: (rows, columns), ||residual|| / ||h - mean h||, no unit, 0 where the parts add up; NaN where undefined.
    left_out: indices of the dimensions that took no part.
    """

    share: Floats
    left_out: Ints


def conjunction(h: ArrayLike, usable: ArrayLike | None = None, *, leave_out: float = 0.0) -> Conjunction:
    """The part of each vector of a grid that is in neither its row nor its column, as a share of the vector's length.

    h: (rows, columns, dimensions), in any unit.
    usable: (rows, columns) bool, the cells that take part; None for all. The others may hold anything, NaN included.
    leave_out: share of the dimensions, those of the largest variance over the usable cells, that take no part (rounded
        up; 0.01 takes massive activations out).

    h = mean + row effect + column effect + residual is fitted by least squares to all usable cells in float64, so each
    cell takes part in the fit it is compared with. With all cells usable the residual is h - row mean - column mean +
    mean (double centring). NaN: cells not usable; cells that no other cell of their row or of their column checks,
    since the fit passes through them whatever they hold; cells that equal the mean. A row with few usable cells pulls
    the fit towards them: compare cells with those of the same row and column.
    ValueError for wrong shapes or values that are not finite, Undefined below 2 usable cells.
    """
    values = np.asarray(h, dtype=np.float64)
    if values.ndim != 3:
        raise ValueError(f"h has shape {values.shape}; it is (rows, columns, dimensions)")
    if not 0 <= leave_out < 1:
        raise ValueError(f"leave_out is {leave_out}; it is a share from 0 to below 1")
    taken = np.ones(values.shape[:2], dtype=bool) if usable is None else np.asarray(usable)
    if taken.dtype != np.bool_ or taken.shape != values.shape[:2]:
        raise ValueError(f"usable is {taken.dtype} of shape {taken.shape}; it is bool of shape {values.shape[:2]}")
    cells = values[taken]  # (usable cells, dimensions)
    if len(cells) < 2:
        raise Undefined(f"{len(cells)} usable cells; at least 2 are needed")
    if bad := int((~np.isfinite(cells)).sum()):
        raise ValueError(f"{bad} values in usable cells are not finite; mark these cells as not usable")
    order = np.argsort(-cells.var(0), kind="stable")
    count = int(np.ceil(round(leave_out * cells.shape[1], 9)))  # 0.01 x 100 is not exactly 1
    dropped, kept = np.sort(order[:count]), np.sort(order[count:])
    centred = cells[:, kept] - cells[:, kept].mean(0)
    basis = _basis(taken)
    residual = centred - basis @ (basis.T @ centred)
    length = np.linalg.norm(centred, axis=1)
    checked = (1 - (basis**2).sum(1) > 1e-9) & (length > 1e-12 * np.linalg.norm(cells[:, kept], axis=1))
    share = np.full(taken.shape, np.nan)
    share[taken] = np.divide(np.linalg.norm(residual, axis=1), length, out=np.full(len(cells), np.nan), where=checked)
    return Conjunction(share=share, left_out=dropped)


def predicted(values: Floats, fitted: Bools, rows: Ints, columns: Ints) -> Floats:
    """Row effect plus column effect at the cells (rows[t], columns[t]), from a least-squares fit to the fitted cells.

    values: (rows, columns, layers), each layer a fit of its own.
    fitted: (rows, columns), the cells that the fit uses.
    Returns (cells, layers); NaN where no chain of fitted cells joins the row with the column, so that their effects
    have no common zero.
    """
    out = np.full((len(rows), values.shape[2]), np.nan)
    if not fitted.any():
        return out
    data = values[fitted]
    mean = data.mean(0)
    effects = np.linalg.lstsq(_dummies(fitted), data - mean, rcond=None)[0]
    fitted_rows, fitted_columns = np.nonzero(fitted)
    joined = components(fitted_rows, fitted_columns, fitted.shape)
    known = joined[rows] == joined[fitted.shape[0] + columns]
    out[known] = (mean + effects[rows] + effects[fitted.shape[0] + columns])[known]
    return out


def components(rows: Ints, columns: Ints, shape: tuple[int, ...]) -> Ints:
    """The group of each row and then of each column of a grid, where each given cell joins its row and its column.

    rows, columns: (cells,), the cells. shape: (rows, columns) of the grid. Returns (rows + columns,) labels.
    """
    size = shape[0] + shape[1]
    graph = coo_array((np.ones(len(rows)), (rows, shape[0] + columns)), shape=(size, size))
    labels: Ints = connected_components(graph, directed=False)[1].astype(np.intp)
    return labels


def _dummies(taken: Bools) -> Floats:
    """One row for each taken cell, with a one for the cell's row and a one for its column."""
    rows, columns = np.nonzero(taken)
    out = np.zeros((len(rows), sum(taken.shape)))
    out[np.arange(len(rows)), rows] = 1
    out[np.arange(len(rows)), taken.shape[0] + columns] = 1
    return out


def _basis(taken: Bools) -> Floats:
    """An orthonormal basis, (taken cells, rank), of all row effects plus column effects on the taken cells."""
    left, sizes, _ = np.linalg.svd(_dummies(taken), full_matrices=False)
    basis: Floats = left[:, sizes > 1e-9 * sizes[0]]
    return basis
