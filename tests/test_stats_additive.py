"""Residuals from row effects plus column effects: by double centring, and by statsmodels with dummies."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols

from bindscope.stats.additive import conjunction
from bindscope.stats.correlate import Undefined

RNG = np.random.default_rng(0)
H = RNG.standard_normal((5, 6, 10))
USABLE = RNG.random((5, 6)) > 0.2


def test_with_all_cells_the_fit_is_double_centring() -> None:
    residual = H - H.mean(1, keepdims=True) - H.mean(0, keepdims=True) + H.mean((0, 1))
    expected = np.linalg.norm(residual, axis=2) / np.linalg.norm(H - H.mean((0, 1)), axis=2)
    found = conjunction(H)
    assert found.share == pytest.approx(expected)
    assert len(found.left_out) == 0


@pytest.mark.parametrize("usable", [None, USABLE])
def test_parts_that_add_up_have_no_conjunction(usable: np.ndarray | None) -> None:
    h = 1000 * RNG.standard_normal((5, 1, 10)) + RNG.standard_normal((1, 6, 10)) + 500
    found = conjunction(h, usable).share
    assert np.nanmax(found) < 1e-12
    assert np.isfinite(found).sum() >= 20


def test_with_missing_cells_the_fit_is_that_of_statsmodels_with_dummies() -> None:
    h = H.copy()
    h[~USABLE] = np.nan
    found = conjunction(h, USABLE).share
    rows, columns = np.nonzero(USABLE)
    residuals = []
    for dimension in range(10):
        data = pd.DataFrame({"y": h[rows, columns, dimension], "row": rows, "column": columns})
        residuals.append(ols("y ~ C(row) + C(column)", data).fit().resid)
    cells = h[USABLE]
    expected = np.linalg.norm(residuals, axis=0) / np.linalg.norm(cells - cells.mean(0), axis=1)
    assert found[USABLE] == pytest.approx(expected)
    assert np.isnan(found[~USABLE]).all()


def test_unit_and_origin_do_not_matter() -> None:
    assert conjunction(7 * H + RNG.standard_normal(10)).share == pytest.approx(conjunction(H).share)


def test_dimensions_of_the_largest_variance_can_be_left_out() -> None:
    h = np.concatenate([H, 1e4 * RNG.standard_normal((5, 1, 1)) + np.zeros((5, 6, 1))], axis=2)
    assert conjunction(h).share.max() < 0.01  # one massive additive dimension hides the rest
    found = conjunction(h, leave_out=0.01)
    assert found.left_out.tolist() == [10]
    assert found.share == pytest.approx(conjunction(H).share)
    many = RNG.standard_normal((3, 3, 200))
    assert len(conjunction(many, leave_out=0.01).left_out) == 2
    assert len(conjunction(many[..., :100], leave_out=0.07).left_out) == 7


def test_a_cell_alone_in_its_row_is_undefined() -> None:
    usable = np.ones((5, 6), dtype=bool)
    usable[0, 1:] = False
    found = conjunction(H, usable).share
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1:]).all()


def test_a_cell_at_the_mean_is_undefined() -> None:
    h = np.array([[1.0, -1, 0], [-2, 2, 0], [1, -1, 0]])[..., None] + 5
    found = conjunction(h).share
    assert np.isnan(found[:, 2]).all()
    assert found[:, :2] == pytest.approx(1)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="h has shape"):
        conjunction(H[0])
    with pytest.raises(ValueError, match="leave_out is 1"):
        conjunction(H, leave_out=1)
    with pytest.raises(ValueError, match="usable is int64"):
        conjunction(H, USABLE.astype(np.int64))
    with pytest.raises(ValueError, match="10 values in usable cells are not finite"):
        conjunction(np.where(np.arange(30).reshape(5, 6, 1) == 3, np.nan, H))
    with pytest.raises(Undefined, match="0 usable cells"):
        conjunction(H, np.zeros((5, 6), dtype=bool))
