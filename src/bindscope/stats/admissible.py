"""Random pairings of given rows with given columns that avoid some cells."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from bindscope.stats.additive import Bools, Ints

_RARE = 0.02  # a random permutation is admissible less often: walk instead of drawing again


def all_pairings(rows: Ints, cols: Ints, admissible: Bools) -> Ints:
    """Every order of the columns that puts all terms into admissible cells and no two into one.

    rows, cols: (terms,), the cells of the terms, whose order is itself admissible; admissible: (rows, columns).
    Returns (orders, terms): term t is paired with cols[order[t]].
    """
    orders = np.array(list(permutations(range(len(rows)))), dtype=np.intp)
    return orders[_allowed(orders, rows, cols, admissible)]


def random_pairings(rows: Ints, cols: Ints, admissible: Bools, R: int, rng: np.random.Generator) -> Ints:
    """R random orders of the columns, as of `all_pairings`, exchangeable with the given order under random pairing.

    Permutations are drawn until R are admissible, which gives each admissible one the same chance. If few are, a walk
    exchanges two columns at a time where that is admissible: some steps back from the given order, and from there R
    walks of as many steps forward (Besag & Clifford 1989). The walk is reversible and symmetric, so the R orders and
    the given one are exchangeable however few the steps.
    """
    terms = len(rows)
    kept: list[Ints] = []
    while sum(map(len, kept)) < R:
        trial = rng.permuted(np.tile(np.arange(terms, dtype=np.intp), (R, 1)), axis=1)
        kept.append(trial[_allowed(trial, rows, cols, admissible)])
        if len(kept[0]) < _RARE * R:
            hub = _walk(np.arange(terms, dtype=np.intp)[None], rows, cols, admissible, rng)
            return _walk(np.repeat(hub, R, axis=0), rows, cols, admissible, rng)
    return np.concatenate(kept)[:R]


def _allowed(order: Ints, rows: Ints, cols: Ints, admissible: Bools) -> Bools:
    """(orders,): whether all cells are admissible and no two terms share one."""
    cells = cols[order]
    good: Bools = np.all(admissible[rows, cells], axis=1)
    if len(np.unique(rows)) < len(rows) and len(np.unique(cols)) < len(cols):
        code = np.sort(rows * admissible.shape[1] + cells, axis=1)
        single: Bools = (code[:, 1:] != code[:, :-1]).all(1)
        good = good & single
    return good


def _walk(order: Ints, rows: Ints, cols: Ints, admissible: Bools, rng: np.random.Generator) -> Ints:
    """Each order after 20 tried exchanges a term; an exchange that is not admissible leaves it as it was."""
    count, terms = order.shape
    if terms < 2:
        return order
    each = np.arange(count)
    for _ in range(20 * terms):
        first = rng.integers(0, terms, count)
        second = (first + rng.integers(1, terms, count)) % terms
        trial = order.copy()
        trial[each, first], trial[each, second] = order[each, second], order[each, first]
        good = _allowed(trial, rows, cols, admissible)
        order = np.where(good[:, None], trial, order)
    return order
