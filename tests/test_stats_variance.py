"""Variance components, against published tables and mean squares."""

from __future__ import annotations

import numpy as np
import pytest

from bindscope.stats.correlate import Undefined
from bindscope.stats.variance import components, cv, icc

# Shrout & Fleiss 1979, table 2: six targets, four judges.
RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])


def test_icc_gives_shrout_and_fleiss() -> None:
    found = icc(RATINGS.ravel(), np.repeat(np.arange(6), 4))
    assert found.value == pytest.approx(0.17, abs=0.005)
    assert (found.low, found.high) == pytest.approx((-0.13, 0.72), abs=0.005)
    assert found.f == pytest.approx(1.79, abs=0.01)
    assert (found.n, found.clusters) == (24, 6)


def test_icc_of_unequal_groups_by_hand() -> None:
    # groups 1,3 / 4,6,8 / 9: means 2, 6, 9; MSW = (2 + 8) / 3; n0 = (6 - 14/6) / 2
    found = icc([1, 3, 4, 6, 8, 9], ["a", "a", "b", "b", "b", "c"])
    grand = 31 / 6
    between = (2 * (2 - grand) ** 2 + 3 * (6 - grand) ** 2 + (9 - grand) ** 2) / 2
    inside, size = 10 / 3, (6 - 14 / 6) / 2
    assert found.value == pytest.approx((between - inside) / (between + (size - 1) * inside))
    assert found.low < found.value < found.high


def test_icc_is_not_clamped_and_says_when_it_has_no_value() -> None:
    assert icc([1, 3, 1, 3], [0, 0, 1, 1]).value == pytest.approx(-1)  # groups alike, values not: -1 / (n - 1)
    assert icc([1, 1, 3, 3], [0, 0, 1, 1]).value == 1
    with pytest.raises(Undefined, match="each of 3 groups has one value"):
        icc([1, 2, 3], [0, 1, 2])
    with pytest.raises(Undefined, match="values is constant"):
        icc([1, 1, 1], [0, 1, 1])
    with pytest.raises(Undefined, match="group has 1 group;"):
        icc([1, 2, 3], [0, 0, 0])


def test_cv_by_group() -> None:
    found = cv([1, 2, 3, 5, -1, 1], ["b", "b", "b", "c", "a", "a"])
    assert found.names == ("a", "b", "c")
    assert found.values[1] == pytest.approx(0.5)
    assert np.isnan(found.values[[0, 2]]).all()
    assert found.undefined == {"a": "mean 0 is not positive", "c": "one value"}
    assert found.counts == (2, 3, 1)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_components_of_a_balanced_table_are_its_mean_squares(scale: float) -> None:
    rng = np.random.default_rng(3)
    table = 5 + 2 * rng.standard_normal((15, 1)) + 1.5 * rng.standard_normal((1, 8)) + rng.standard_normal((15, 8))
    term, frame = (a.ravel() for a in np.indices(table.shape))
    found = components(scale * table.ravel(), {"term": term, "frame": frame})
    row, column = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    rest = ((table - row - column + table.mean()) ** 2).sum() / (14 * 7)
    by_term = (8 * row.var(ddof=1) - rest) / 8
    by_frame = (15 * column.var(ddof=1) - rest) / 15
    expected = {"term": by_term, "frame": by_frame, "residual": rest}
    assert {name: value / scale**2 for name, value in found.variance.items()} == pytest.approx(expected, rel=2e-3)
    assert sum(found.share.values()) == pytest.approx(1)
    assert found.mean == pytest.approx(scale * table.mean())
    assert found.at_zero == ()


def test_a_component_at_zero_is_named() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((10, 6)) + 2 * rng.standard_normal((10, 1))
    table -= table.mean(0)  # frames exactly alike
    term, frame = (a.ravel() for a in np.indices(table.shape))
    found = components(table.ravel(), {"term": term, "frame": frame})
    assert found.at_zero == ("frame",)
    assert found.share["term"] > 0.5


def test_components_that_cannot_be_told_apart() -> None:
    x = np.arange(8.0) ** 2
    pair = [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(Undefined, match="frame and term split the values in the same way"):
        components(x, {"term": pair, "frame": ["d", "d", "c", "c", "a", "a", "b", "b"]})
    with pytest.raises(Undefined, match="term has a level for each of 8 values"):
        components(x, {"term": np.arange(8)})
    with pytest.raises(ValueError, match="none named residual"):
        components(x, {"residual": pair})
    with pytest.raises(Undefined, match="values is constant"):
        components(np.ones(8), {"term": pair})
