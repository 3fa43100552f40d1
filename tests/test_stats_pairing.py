"""Recombined pairings: by hand, by enumeration, by scipy, and by simulation of grids in which nothing is paired."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bindscope.stats.additive import Ints
from bindscope.stats.admissible import all_pairings, random_pairings
from bindscope.stats.correlate import Floats, Undefined
from bindscope.stats.grid import Grid
from bindscope.stats.pairing import jackknife_by_term, matched_percentile, paired_excess, pairing_test, pooled

HAND = np.array([[5.0, 1, 2], [3, 8, 4], [1, 0, 9]])
THREE = np.arange(3)


def design(rng: np.random.Generator, n: int, shared: int, share_left_out: float) -> tuple[Ints, Ints, Any]:
    """Cells of n terms of which `shared` repeat a row and as many a column, at random, and a mask of left-out cells."""
    size = n - shared
    while True:
        rows, columns = (np.r_[np.arange(size), rng.integers(0, size, shared)] for _ in range(2))
        columns = rng.permutation(columns)
        if len(np.unique(rows * size + columns)) == n:
            break
    free = np.setdiff1d(np.arange(size * size), rows * size + columns)
    out = np.zeros(size * size, dtype=bool)
    out[rng.choice(free, round(share_left_out * len(free)), replace=False)] = True
    return rows, columns, out.reshape(size, size)


def null_grid(rng: np.random.Generator, rows: Ints, columns: Ints, out: Any, layers: int = 1) -> Floats:
    """Row and column effects three times as large as the noise, all with the heavy tails of t with 2 df."""
    M = 3 * rng.standard_t(2, (len(out), 1, 1)) + 3 * rng.standard_t(2, (1, len(out), 1))
    return M + rng.standard_t(2, (len(out), len(out), 1)) + 0.5 * rng.standard_normal((len(out), len(out), layers))


def test_a_grid_worked_by_hand() -> None:
    excess = paired_excess(HAND, THREE, THREE)
    assert excess.excess.tolist() == [5 - 7 / 4, 8 - 2, 9 - 7 / 4]
    assert excess.mean_excess == pytest.approx(5.5)
    # The six other cells deviate by 1/6 from row + column effects, which are 1.5, 2.5 and 1.5 at the terms.
    assert excess.interaction == pytest.approx([3.5, 5.5, 7.5])
    assert excess.mean_interaction == pytest.approx(5.5)
    assert excess.cells.tolist() == [4, 4, 4]
    assert matched_percentile(HAND, THREE, THREE).percentile.tolist() == [1, 1, 1]
    test = pairing_test(HAND, THREE, THREE)
    assert (test.exact, test.pairings, test.terms) == (True, 6, 3)
    assert test.value == pytest.approx(22 / 3)
    assert test.expected == pytest.approx(66 / 18)
    assert test.p_greater == pytest.approx(1 / 6)


def test_left_out_cells_other_terms_and_missing_cells_are_no_comparison() -> None:
    M = np.array([[5.0, 1, 2, 100], [np.nan, 8, 4, 2]])
    out = np.zeros(M.shape, dtype=bool)
    out[0, 3] = True
    found = paired_excess(M, [0, 0, 1], [0, 1, 1], out)
    # (0, 0): only 2; (0, 1): 2, since (1, 1) and (0, 0) are terms; (1, 1): 4 and 2.
    assert found.excess == pytest.approx([3, -1, 5])
    assert found.cells.tolist() == [1, 1, 2]
    assert matched_percentile(M, [0, 0, 1], [0, 1, 1], out).percentile.tolist() == [1, 0, 1]


def test_ties_count_half() -> None:
    assert matched_percentile(np.ones((4, 4)), np.arange(4), np.arange(4)).percentile.tolist() == [0.5] * 4
    M = np.array([[2.0, 2, 1], [3, 0, 0], [2, 0, 0]])
    assert matched_percentile(M, [0], [0]).percentile == pytest.approx([(0.5 + 1 + 0 + 0.5) / 4])


def test_a_term_that_was_not_measured_is_missing_and_the_others_stay() -> None:
    M = HAND.copy()
    M[1, 1] = np.nan
    found = paired_excess(M, THREE, THREE)
    assert np.isnan(found.excess[1])
    assert np.isnan(found.interaction[1])
    assert found.mean_excess == pytest.approx((3.25 + 7.25) / 2)
    assert pairing_test(M, THREE, THREE).terms == 2
    assert pairing_test(M, THREE, THREE).p_greater == 1 / 2


def test_row_and_column_effects_leave_the_interaction_and_the_mean_excess_at_zero_but_not_each_excess() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 8))
    M, each = a[:, None] + b, np.arange(8)
    found = paired_excess(M, each, each)
    assert np.abs(found.interaction).max() < 1e-12
    assert abs(found.mean_excess) < 1e-12
    rest = (8 * np.array([a.mean(), b.mean()])[:, None] - [a, b]) / 7
    assert found.excess == pytest.approx((a - rest[0]) / 2 + (b - rest[1]) / 2)
    assert np.abs(found.excess).max() > 0.3
    rows, columns, out = design(rng, 12, 3, 0.2)
    M = rng.standard_normal((9, 1)) + rng.standard_normal(9)
    found = paired_excess(M, rows, columns, out)
    assert np.abs(found.interaction).max() < 1e-12
    assert abs(found.mean_excess) > 1e-3
    assert pairing_test(M, rows, columns, out).z == 0
    M[rows, columns] += 0.7
    assert paired_excess(M, rows, columns, out).interaction == pytest.approx([0.7] * 12)


def test_on_a_full_grid_the_mean_interaction_is_the_mean_excess() -> None:
    M = np.random.default_rng(1).standard_normal((9, 9, 2))
    found = paired_excess(M, np.arange(9), np.arange(9))
    assert found.mean_interaction == pytest.approx(found.mean_excess)
    assert found.mean_excess.shape == (2,)


def test_over_all_pairings_of_a_grid_the_mean_excess_is_0_and_the_mean_percentile_one_half() -> None:
    M, each = np.random.default_rng(2).standard_normal((5, 5)) ** 3, np.arange(5)
    pairings = [np.array(order) for order in permutations(range(5))]
    assert np.mean([paired_excess(M, each, order).mean_excess for order in pairings]) == pytest.approx(0, abs=1e-12)
    assert np.mean([paired_excess(M, each, order).mean_interaction for order in pairings]) == pytest.approx(
        0, abs=1e-12
    )
    assert np.mean([matched_percentile(M, each, order).mean for order in pairings]) == pytest.approx(0.5)


def test_the_interaction_needs_cells_that_join_the_row_with_the_column() -> None:
    M = np.arange(16.0).reshape(4, 4)
    out = np.zeros((4, 4), dtype=bool)
    out[:2, 2:] = out[2:, :2] = True
    found = paired_excess(M, [0, 2], [0, 3], out)
    assert np.isfinite(found.interaction).all()
    out[0] = out[:, 0] = True
    out[0, 0] = False
    found = paired_excess(M, [0, 2], [0, 3], out)
    assert np.isnan(found.excess).tolist() == [True, False]
    out[0, 1] = False
    found = paired_excess(M, [0, 2], [0, 3], out)
    assert np.isnan(found.excess).tolist() == [False, False]
    assert np.isnan(found.interaction).tolist() == [True, False]


@pytest.mark.parametrize("n", [5, 6])
def test_the_test_enumerates_every_pairing(n: int) -> None:
    M, each = np.random.default_rng(n).standard_normal((n, n)) + np.eye(n), np.arange(n)
    sums = np.array([M[each, list(order)].mean() for order in permutations(range(n))])
    found = pairing_test(M, each, each)
    assert found.exact
    assert found.pairings == len(sums)
    assert found.p_greater == pytest.approx((sums >= sums[0] - 1e-12).mean())
    assert found.p_two_sided == pytest.approx((np.abs(sums - sums.mean()) >= abs(sums[0] - sums.mean()) - 1e-12).mean())
    assert found.z == pytest.approx((sums[0] - sums.mean()) / sums.std())
    by_scipy = stats.permutation_test(
        (each,),
        lambda order: M[each, order].mean(),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert found.p_greater == pytest.approx(by_scipy.pvalue)
    random = pairing_test(M, each, each, R=100)
    assert not random.exact
    assert abs(random.p_greater - found.p_greater) < 4 * np.sqrt(found.p_greater * (1 - found.p_greater) / 100) + 0.01


def test_enumeration_avoids_left_out_cells_and_cells_twice() -> None:
    rng = np.random.default_rng(3)
    rows, columns, out = design(rng, 6, 2, 0.1)
    M = rng.standard_normal((4, 4))
    sums = []
    for order in permutations(range(6)):
        cells = {(int(row), int(columns[k])) for row, k in zip(rows, order, strict=True)}
        if len(cells) == 6 and not any(out[cell] for cell in cells):
            sums.append(sum(M[cell] for cell in cells))
    found = pairing_test(M, rows, columns, out)
    assert found.exact
    assert found.pairings == len(sums)
    assert found.p_greater == pytest.approx((np.array(sums) >= M[rows, columns].sum() - 1e-12).mean())


def test_layers_are_adjusted_by_the_largest_over_layers() -> None:
    M, each = np.random.default_rng(4).standard_normal((5, 5, 3)), np.arange(5)
    M[..., 1] += 1.5 * np.eye(5)
    M[..., 2] *= 1e-15  # studentised, a layer's unit does not matter
    sums = np.array([M[each, list(order)].sum(0) for order in permutations(range(5))])
    z = (sums - sums.mean(0)) / sums.std(0)
    found = pairing_test(M, each, each)
    assert found.z == pytest.approx(z[0])
    expected = [(z.max(1) >= z[0, layer] - 1e-9).mean() for layer in range(3)]
    assert found.layer_p_greater == pytest.approx(expected)
    assert found.p_greater == min(expected)
    assert found.layer_p_two_sided == pytest.approx(
        [(np.abs(z).max(1) >= abs(z[0, k]) - 1e-9).mean() for k in range(3)]
    )
    alone = [pairing_test(M[..., layer], each, each).p_greater for layer in range(3)]
    assert (found.layer_p_greater >= np.array(alone) - 1e-12).all()


def test_nothing_to_permute_is_p_1() -> None:
    assert pairing_test(HAND, [1], [1]).p_two_sided == 1
    out = ~np.eye(8, dtype=bool)
    found = pairing_test(np.random.default_rng(0).standard_normal((8, 8)), np.arange(8), np.arange(8), out)
    assert (found.p_greater, found.z) == (1, 0)


@pytest.mark.parametrize(("width", "count"), [(1, 21), (6, 5040)])
def test_random_pairings_reach_all_admissible_ones_equally_often(width: int, count: int) -> None:
    each = np.arange(7)
    admissible = np.abs(np.subtract.outer(each, each)) <= width  # width 1: 21 of 5040, found by the walk
    every = all_pairings(each, each, admissible)
    assert len(every) == count
    drawn = random_pairings(each, each, admissible, 20 * count, np.random.default_rng(0))
    assert admissible[each, drawn].all()
    seen = np.unique(drawn, axis=0, return_counts=True)[1]
    if width == 1:
        assert len(seen) == count
    times = np.r_[seen, np.zeros(count - len(seen))]
    assert stats.chisquare(times).pvalue > 1e-3


def test_the_same_seed_gives_the_same_p() -> None:
    M, each = np.random.default_rng(5).standard_normal((9, 9)), np.arange(9)
    assert pairing_test(M, each, each, R=99, seed=1) == pairing_test(M, each, each, R=99, seed=1)
    assert pairing_test(M, each, each, R=99, seed=1).p_greater * 100 % 1 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("layers", [1, 4])
def test_p_is_uniform_with_shared_rows_left_out_cells_and_heavy_tails(layers: int) -> None:
    rng = np.random.default_rng(6)
    both = []
    for k in range(1000):
        rows, columns, out = design(rng, 16, 4, 0.1)
        found = pairing_test(null_grid(rng, rows, columns, out, layers), rows, columns, out, R=199, seed=k)
        both.append((found.p_greater, found.p_two_sided))
    for p in np.array(both).T:
        continuous = p - rng.random(1000) / 200  # p itself is uniform on the multiples of 1 / (R + 1)
        assert stats.kstest(continuous, "uniform").pvalue > 1e-3
        assert 0.028 <= (p <= 0.05).mean() <= 0.074  # binomial(1000, 0.05): 99.9% lie within


def test_p_is_uniform_where_few_pairings_are_admissible() -> None:
    rng, each = np.random.default_rng(7), np.arange(10)
    admissible = np.abs(np.subtract.outer(each, each)) <= 2
    observed = random_pairings(each, each, admissible, 200, rng)
    p = np.array(
        [
            pairing_test(rng.standard_t(2, (10, 10)), each, order, ~admissible, R=99, seed=k).p_greater
            for k, order in enumerate(observed)
        ]
    )
    assert stats.kstest(p - rng.random(200) / 100, "uniform").pvalue > 1e-3
    assert 0.01 <= (p <= 0.05).mean() <= 0.10


def test_the_jackknife_deletes_a_term_with_its_row_and_column() -> None:
    n = 7
    M, each = np.random.default_rng(8).standard_normal((n, n)), np.arange(n)
    found = jackknife_by_term(M, each, each)
    smaller = [np.delete(np.delete(M, k, 0), k, 1) for k in range(n)]
    rest = np.arange(n - 1)
    excess = [paired_excess(m, rest, rest).mean_excess for m in smaller]
    percentile = [matched_percentile(m, rest, rest).mean for m in smaller]
    for interval, mean, without in (
        (found.excess, paired_excess(M, each, each).mean_excess, excess),
        (found.percentile, matched_percentile(M, each, each).mean, percentile),
    ):
        se = np.sqrt((n - 1) / n * ((np.array(without) - np.mean(without)) ** 2).sum())
        assert (interval.mean, interval.se) == (pytest.approx(mean), pytest.approx(se))
        assert interval.high - interval.mean == pytest.approx(stats.t.ppf(0.975, n - 1) * se)
        assert (interval.units, interval.reason) == (n, "")


def test_terms_that_share_leave_together() -> None:
    M = np.random.default_rng(9).standard_normal((8, 8))
    rows, columns = np.array([0, 0, 2, 3, 4, 5, 6, 7]), np.arange(8)
    found = jackknife_by_term(M, rows, columns).percentile
    assert found.units == 7
    whole = matched_percentile(M, rows, columns).mean
    without, sizes = [], []
    for gone in ([0, 1], [2], [3], [4], [5], [6], [7]):
        kept_rows, kept_columns = np.delete(np.arange(8), np.unique(rows[gone])), np.delete(np.arange(8), columns[gone])
        left = np.setdiff1d(np.arange(8), gone)
        part = M[np.ix_(kept_rows, kept_columns)]
        without.append(
            matched_percentile(
                part, np.searchsorted(kept_rows, rows[left]), np.searchsorted(kept_columns, columns[left])
            ).mean
        )
        sizes.append(len(gone))
    times = 8 / np.array(sizes)
    pseudo = times * whole - (times - 1) * without
    centre = 7 * whole - ((1 - 1 / times) * without).sum()
    assert found.se == pytest.approx(np.sqrt(np.mean((pseudo - centre) ** 2 / (times - 1))))


def test_no_interval_has_its_reason() -> None:
    few = jackknife_by_term(HAND, THREE, THREE)
    assert "3 units" in few.excess.reason
    assert "at least 6" in few.percentile.reason
    assert np.isnan([few.excess.low, few.percentile.high]).all()
    assert few.excess.mean == 5.5
    M = np.random.default_rng(0).standard_normal((8, 8)) + 100 * np.eye(8)
    above = jackknife_by_term(M, np.arange(8), np.arange(8))
    assert above.excess.reason == ""
    assert above.percentile.reason == "leaving out any unit gives the same mean"
    assert np.isnan(above.percentile.low)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(10)
    hits = []
    for _ in range(200):
        rows, columns, out = design(rng, 16, 2, 0.1)
        found = jackknife_by_term(null_grid(rng, rows, columns, out)[..., 0], rows, columns, out)
        each = ((found.excess, 0), (found.interaction, 0), (found.percentile, 0.5))
        hits.append([interval.low <= truth <= interval.high for interval, truth in each])
    assert (np.mean(hits, axis=0) >= 0.91).all()  # binomial(200, 0.95): 99% lie above
    assert np.mean(hits) < 1


def test_a_true_pair_effect_is_seen_and_covered() -> None:
    rng, each = np.random.default_rng(11), np.arange(16)
    rejected, covered = np.zeros(3), np.zeros(3)
    for k in range(100):
        M = 3 * rng.standard_normal((16, 1)) + 3 * rng.standard_normal(16) + rng.standard_normal((16, 16))
        own = rng.standard_normal(16)
        for which, size in enumerate((0.0, 0.5, 1.0)):
            grid = M + np.diag(size * (1 + 0.5 * own))
            rejected[which] += pairing_test(grid, each, each, R=199, seed=k).p_greater <= 0.05
            found = jackknife_by_term(grid, each, each).excess
            covered[which] += found.low <= size <= found.high
    assert rejected[0] <= 14
    assert rejected[0] + 20 < rejected[1] < rejected[2]
    assert rejected[2] > 90
    assert (covered >= 88).all()


def test_grids_are_pooled_over_terms() -> None:
    rng = np.random.default_rng(12)
    first, second = rng.standard_normal((3, 3)), 10 + rng.standard_normal((4, 4))
    grids = [Grid(first, THREE, THREE), Grid(second, np.arange(4), np.arange(4))]
    found = pooled(grids)
    assert found.grid.tolist() == [0] * 3 + [1] * 4
    alone = [paired_excess(grid.M, grid.rows, grid.cols).excess for grid in grids]
    assert found.excess == pytest.approx(np.concatenate(alone))
    assert found.intervals.excess.mean == pytest.approx(np.concatenate(alone).mean())
    assert found.intervals.excess.units == 7
    sums = np.array(
        [
            first[THREE, list(a)].sum() + second[np.arange(4), list(b)].sum()
            for a, b in product(permutations(range(3)), permutations(range(4)))
        ]
    )
    assert (found.test.exact, found.test.pairings, found.test.terms) == (True, 144, 7)
    assert found.test.p_greater == pytest.approx((sums >= sums[0] - 1e-9).mean())
    assert found.test.value == pytest.approx(sums[0] / 7)
    assert found.test.expected == pytest.approx(sums.mean() / 7)


def test_one_grid_pooled_is_the_grid() -> None:
    rng = np.random.default_rng(13)
    rows, columns, out = design(rng, 12, 2, 0.1)
    M = rng.standard_normal((10, 10, 2))
    found = pooled([Grid(M, rows, columns, out)], R=99, seed=3)
    test, intervals = pairing_test(M, rows, columns, out, R=99, seed=3), jackknife_by_term(M, rows, columns, out)
    assert found.test.layer_p_greater.tolist() == test.layer_p_greater.tolist()
    assert found.intervals.excess.low.tolist() == intervals.excess.low.tolist()
    assert found.percentile.tolist() == matched_percentile(M, rows, columns, out).percentile.tolist()


def test_a_grid_without_a_measured_term_adds_nothing() -> None:
    empty = np.full((3, 3), np.nan)
    found = pooled([Grid(HAND, THREE, THREE), Grid(empty, THREE, THREE)])
    assert found.test.p_greater == pytest.approx(1 / 6)
    assert found.intervals.excess.mean == 5.5
    assert jackknife_by_term(empty, THREE, THREE).excess.units == 0


def test_bad_input_is_named() -> None:
    M = np.zeros((3, 4))
    for message, arguments in {
        "M has shape": (np.zeros(3), [0], [0]),
        "infinite": (np.full((2, 2), np.inf), [0], [0]),
        "rows is float64": (M, [0.5], [0]),
        "cols has values from 0 to 4": (M, [0, 1], [0, 4]),
        "2 rows and 1 cols": (M, [0, 1], [0]),
        "two terms": (M, [1, 1], [2, 2]),
        "left_out is int64": (M, [0], [0], np.zeros((3, 4), dtype=np.int64)),
        r"terms \[0\] are in left-out": (M, [0], [0], np.ones((3, 4), dtype=bool)),
    }.items():
        with pytest.raises(ValueError, match=message):
            paired_excess(*arguments)
    with pytest.raises(ValueError, match="R is 0"):
        pairing_test(M, [0], [0], R=0)
    with pytest.raises(ValueError, match="at least one grid"):
        pooled([])
    with pytest.raises(ValueError, match="all of the same"):
        pooled([Grid(M, [0], [0]), Grid(np.zeros((3, 3, 2)), [0], [0])])
    with pytest.raises(Undefined, match="no term was measured"):
        pairing_test(np.full((2, 2), np.nan), [0], [0])
