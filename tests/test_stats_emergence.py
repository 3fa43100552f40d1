"""Emergence: interval-censored crossings and Turnbull's estimate, by hand, against lifelines and surpyval."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindscope.stats.emergence import crossings, paired_emergence, turnbull

INF = float("inf")
Intervals = tuple[np.ndarray, np.ndarray]


def first_crossing(steps: Any, values: Any, threshold: float) -> tuple[float, float]:
    left, right = crossings(steps, values, [threshold])
    return float(left[0]), float(right[0])


def test_crossings_of_one_series() -> None:
    steps = [10, 20, 40, 80]
    assert first_crossing(steps, [0, 0.2, 0.5, 0.9], 0.5) == (20, 40)
    assert first_crossing(steps, [0, 0.6, 0.1, 0.9], 0.5) == (10, 20)  # the first, though it falls again
    assert first_crossing(steps, [0.7, 0, 0, 0], 0.5) == (0, 10)
    assert first_crossing(steps, [0, 0, 0, 0.4], 0.5) == (80, INF)
    assert first_crossing([0, 10], [0.7, 0], 0.5) == (-INF, 0)


def test_crossings_of_many_series_at_many_thresholds() -> None:
    rng = np.random.default_rng(0)
    steps, values = np.array([0, 1, 5, 9, 20]), rng.random((7, 5))
    cuts = [0.2, 0.5, 0.99]
    left, right = crossings(steps, values, cuts)
    assert left.shape == right.shape == (3, 7)
    for k, cut in enumerate(cuts):
        for term in range(7):
            at = next((t for t, value in enumerate(values[term]) if value >= cut), len(steps))
            edges = [-INF, *steps, INF]
            assert (left[k, term], right[k, term]) == (edges[at], edges[at + 1])
    assert (np.diff(right, axis=0) >= 0).all()  # a higher threshold is never reached sooner


def test_crossing_errors() -> None:
    with pytest.raises(ValueError, match="rise strictly"):
        first_crossing([0, 5, 5], [1, 2, 3], 1)
    with pytest.raises(ValueError, match="rise strictly"):
        first_crossing([-1, 5], [1, 2], 1)
    with pytest.raises(ValueError, match=r"\(2,\) steps for values of shape \(3,\)"):
        first_crossing([0, 5], [1, 2, 3], 1)
    with pytest.raises(ValueError, match="1 values or thresholds are not finite"):
        first_crossing([0, 5], [1, np.nan], 1)


def test_turnbull_by_hand() -> None:
    # (0,2] twice, (1,3], (2,4]: mass on (1,2] and (2,3]; p = (2 + p) / 4
    found = turnbull([0, 0, 1, 2], [2, 2, 3, 4])
    assert found.left.tolist() == [1, 2]
    assert found.right.tolist() == [2, 3]
    assert found.mass == pytest.approx([2 / 3, 1 / 3], abs=1e-8)
    assert (found.median_left, found.median_right) == (1, 2)
    # neighboring checkpoints share an end and must not share their mass
    touching = turnbull([0, 10, 10], [10, 20, 20])
    assert touching.mass == pytest.approx([1 / 3, 2 / 3])
    assert (touching.median_left, touching.median_right) == (10, 20)
    never = turnbull([0, 30, 30], [10, INF, INF])
    assert (never.median_left, never.median_right) == (30, INF)


@st.composite
def grid_intervals(draw: st.DrawFn) -> Intervals:
    """Intervals on a grid of checkpoints, some of them over several and some never closed."""
    rows = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=2, max_size=15))
    left = np.array([10.0 * a for a, _ in rows])
    right = np.array([10.0 * (a + b) if a + b < 7 else INF for a, b in rows])
    return left, right


def likelihood(mass: np.ndarray, lefts: np.ndarray, rights: np.ndarray, data: Intervals) -> float:
    """Mean log-likelihood of masses on (left, right] given (left, right] observations."""
    inside = (data[0][:, None] <= lefts) & (rights <= data[1][:, None])
    return float(np.log(np.maximum(inside @ mass, 1e-300)).mean())


def no_lifelines() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("lifelines.fitters.npmle", reason="lifelines is not installed")


@given(grid_intervals())
@settings(max_examples=40, deadline=None)
def test_turnbull_is_the_maximum_that_lifelines_finds_on_recoded_ends(data: Intervals) -> None:
    npmle = no_lifelines()
    found = turnbull(*data)
    assert found.mass.sum() == pytest.approx(1)
    inside = ((data[0][:, None] <= found.left) & (found.right <= data[1][:, None])).astype(float)
    slope = (inside / (inside @ found.mass)[:, None]).mean(0)
    assert slope.max() <= 1 + 2e-8  # Gentleman & Geyer 1994: the maximum, if no interval deserves more mass
    ends = np.unique(np.concatenate(data))
    low, high = 2 * np.searchsorted(ends, data[0]) + 1, 2 * np.searchsorted(ends, data[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mass, where = npmle.npmle(low.astype(float), high.astype(float), tol=1e-9)  # type: ignore[attr-defined]
    lefts, rights = (np.array([ends[int(pair[side]) // 2] for pair in where]) for side in (0, 1))
    assert lefts.tolist() == found.left.tolist()
    assert rights.tolist() == found.right.tolist()
    if np.isfinite(mass).all():
        ours = likelihood(found.mass, found.left, found.right, data)
        theirs = likelihood(np.asarray(mass) / np.sum(mass), lefts, rights, data)
        assert theirs - 1e-8 <= ours == pytest.approx(theirs, abs=1e-3)


def test_lifelines_takes_touching_intervals_as_overlapping() -> None:
    """Why the package does not use it: remove this, and our own code, once lifelines has open left ends."""
    npmle = no_lifelines()
    where = npmle.create_turnbull_intervals([0.0, 10.0, 10.0], [10.0, 20.0, 20.0])  # type: ignore[attr-defined]
    assert [tuple(pair) for pair in where] == [(10.0, 10.0)]  # all mass at 10, where it should be split


def test_turnbull_is_surpyvals() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        surpyval = pytest.importorskip("surpyval", reason="surpyval is a second opinion, not a dependency")
    rng = np.random.default_rng(1)
    start = rng.integers(0, 6, 40)
    left = 10.0 * start
    right = np.where(start < 5, left + 10.0 * rng.integers(1, 4, 40), INF)
    found = turnbull(left, right)
    closed = np.isfinite(right)
    x = np.column_stack([left, np.where(closed, right, left)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = surpyval.Turnbull.fit(
            x=[[a, b] if done else float(a) for (a, b), done in zip(x.tolist(), closed, strict=True)],
            c=np.where(closed, 2, 1),
            turnbull_estimator="Kaplan-Meier",
        )
        times = [10.0, 20.0, 30.0, 40.0, 50.0]
        theirs = np.asarray(fit.sf(times), dtype=float)
    ours = [found.mass[found.right > t].sum() for t in times]
    assert ours == pytest.approx(theirs.tolist(), abs=2e-3)


def test_turnbull_errors() -> None:
    with pytest.raises(ValueError, match=r"1 intervals are not left < right, the first \(2.0, 2.0\] at 1"):
        turnbull([0, 2], [1, 2])
    with pytest.raises(ValueError, match="no intervals"):
        turnbull([], [])
    with pytest.raises(ValueError, match=r"left has shape \(1,\), right \(2,\)"):
        turnbull([0], [1, 2])
    with pytest.raises(RuntimeError, match="no convergence in 1 rounds"):
        turnbull([0, 0, 1, 2], [2, 2, 3, 4], rounds=1)


def test_paired_emergence_counts_only_what_is_sure() -> None:
    binding = [(0, 10), (0, 10), (10, 20), (0, 10), (20, INF), (0, 10)]
    behavior = [(10, 20), (0, 10), (0, 10), (5, 20), (20, INF), (20, INF)]
    found = paired_emergence(*np.array(binding).T, *np.array(behavior).T)
    assert (found.earlier, found.later, found.undecided, found.n) == (2, 1, 3, 6)
    assert found.p == pytest.approx(1.0)
    assert paired_emergence([0] * 6, [10] * 6, [10] * 6, [20] * 6).p == pytest.approx(2 / 64)
    assert paired_emergence([0], [10], [0], [10]).p is None
    with pytest.raises(ValueError, match="2 intervals of binding and 1 of behavior"):
        paired_emergence([0, 0], [1, 1], [0], [1])
