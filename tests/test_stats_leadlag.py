"""Precedence: the published count by hand, and what it gives when nothing leads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bindscope.stats.correlate import Undefined
from bindscope.stats.leadlag import cross_lags, lead_lag, surrogate_null, swap_test


def run(seed: int, lead: float = 0.0, shock: float = 0.0, terms: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """EB and behavior on a shared rise; behavior follows EB's noise of the checkpoint before by `lead`."""
    rng = np.random.default_rng(seed)
    eb, own = rng.standard_normal((2, terms, 8)) + shock * rng.standard_normal((2, 1, 8))
    beh = own.copy()
    beh[:, 1:] += lead * eb[:, :-1]
    return eb + np.arange(8) / 4, beh + np.arange(8) / 4


def test_cross_lags_are_pearsons() -> None:
    eb, beh = run(0)
    first, second = cross_lags(eb, beh)
    for k in range(len(eb)):
        assert first[k] == pytest.approx(stats.pearsonr(eb[k, :-1], beh[k, 1:]).statistic)
        assert second[k] == pytest.approx(stats.pearsonr(beh[k, :-1], eb[k, 1:]).statistic)


def test_published_count_by_hand() -> None:
    a = [0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    delayed = [1.0, *a[:-1]]
    constant, late = [1.0] * 6, [0.0] * 5 + [1.0]
    eb, beh = np.array([a, a, delayed, a, a, a]), np.array([delayed, delayed, a, a, constant, late])
    found = lead_lag(eb, beh)
    assert (found.leads, found.ties, found.n, found.constant) == (2, 1, 4, 2)
    assert found.fraction == 0.5
    assert found.p == pytest.approx(11 / 16)
    assert cross_lags(eb, beh)[0][0] == pytest.approx(1)
    assert np.isnan(cross_lags(eb, beh)[1][4:]).all()


def test_swapping_the_labels_swaps_the_lead() -> None:
    eb, beh = run(1, lead=2)
    forth, back = lead_lag(eb, beh), lead_lag(beh, eb)
    assert forth.leads + back.leads == forth.n
    assert forth.fraction > 0.8
    assert swap_test([eb], [beh]).value == pytest.approx(-swap_test([beh], [eb]).value)


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_least_p_of_the_swap_is_two_to_the_minus_seeds(seeds: int) -> None:
    both = [run(seed, lead=2) for seed in range(seeds)]
    found = swap_test([eb for eb, _ in both], [beh for _, beh in both])
    assert found.p == found.least_p == 2.0**-seeds
    assert found.runs == seeds
    against = swap_test([beh for _, beh in both], [eb for eb, _ in both])
    assert against.p == 1


def test_many_runs_are_swapped_at_random() -> None:
    both = [run(seed, lead=2) for seed in range(17)]
    found = swap_test([eb for eb, _ in both], [beh for _, beh in both], draws=999)
    assert found.p == found.least_p == 0.001
    shorter = [(eb[:5, :6], beh[:5, :6]) for eb, beh in both[:4]]
    assert swap_test([eb for eb, _ in shorter], [beh for _, beh in shorter]).runs == 4


def test_surrogates_see_a_lead_and_not_a_shared_shock() -> None:
    lead = surrogate_null(*run(1, lead=2), draws=400)
    assert lead.p < 0.01
    assert lead.null_low < 0.5 < lead.null_high
    none = [surrogate_null(*run(seed, shock=1.0), draws=200) for seed in range(40)]
    binomial = [lead_lag(*run(seed, shock=1.0)) for seed in range(40)]
    assert sum(each.p < 0.05 for each in none) <= 5
    assert sum(each.p < 0.05 for each in binomial) > sum(each.p < 0.05 for each in none)
    wide = np.mean([each.null_high - each.null_low for each in none])
    assert wide > 1.3 * (lead.null_high - lead.null_low)


def test_surrogates_recover_the_noise_they_are_fitted_to() -> None:
    rng = np.random.default_rng(0)
    gaps = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    root = np.linalg.cholesky(0.6**gaps)
    eb = rng.standard_normal((4000, 8)) @ root.T
    beh = rng.standard_normal((4000, 8))
    found = surrogate_null(eb, beh, draws=10)
    assert found.phi == pytest.approx((0.6, 0), abs=0.1)
    assert max(found.shared) < 0.03
    again = surrogate_null(eb, beh, draws=10)
    assert again == found


def test_leadlag_errors() -> None:
    eb, beh = run(0)
    with pytest.raises(ValueError, match=r"eb has shape \(30, 8\), beh \(30, 7\)"):
        lead_lag(eb, beh[:, 1:])
    with pytest.raises(ValueError, match="1 of 480 values are not finite"):
        lead_lag(np.where(eb == eb[2, 2], np.nan, eb), beh)
    with pytest.raises(Undefined, match="3 checkpoints give 2 lagged pairs"):
        lead_lag(eb[:, :3], beh[:, :3])
    with pytest.raises(Undefined, match="in each of 30 terms"):
        lead_lag(np.ones((30, 8)), beh)
    with pytest.raises(ValueError, match="one run is"):
        lead_lag(eb[None], beh[None])
    with pytest.raises(ValueError, match="1 runs of eb and 2 of beh"):
        swap_test([eb], [beh, beh])
    with pytest.raises(Undefined, match="run 1: in each term"):
        swap_test([eb, eb], [beh, np.ones((30, 8))])
    with pytest.raises(Undefined, match="2 terms that vary"):
        surrogate_null(eb[:2], beh[:2])
    line = np.arange(8.0) * np.arange(1, 31)[:, None]  # on a straight line both lags are 1: ties, and no noise
    with pytest.raises(Undefined, match="without noise"):
        surrogate_null(line, line)
