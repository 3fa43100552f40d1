"""Binding quantities against loops over their definitions, worked examples and published values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bindscope.engine.data import TextData
from bindscope.engine.positions import position_bins
from bindscope.measures.best_head import best_head
from bindscope.measures.eb_star import eb_star
from bindscope.measures.mass import mass
from bindscope.measures.nulls import WindowNull, compare_with_null, window_starts
from bindscope.measures.previous_token import previous_token
from bindscope.measures.previous_token_match import previous_token_match
from bindscope.measures.sink import sink
from bindscope.measures.view import NeutralView, SpanView
from conftest import shared


def _attention(L: int, H: int, T: int, seed: int) -> NDArray[np.float64]:
    """Random causal attention (L, H, T, T)."""
    raw = np.random.default_rng(seed).gamma(0.3, size=(L, H, T, T)) + 1e-9
    raw *= np.tril(np.ones((T, T)))
    return raw / raw.sum(-1, keepdims=True)


def _band(A: NDArray[np.float64], width: int) -> NDArray[np.float32]:
    L, H, T, _ = A.shape
    P = np.full((L, H, T, 1 + width), np.nan, np.float32)
    P[..., 0] = A[..., 0]
    for d in range(1, width + 1):
        for i in range(d, T):
            P[:, :, i, d] = A[:, :, i, i - d]
    return P


def _view(band: NDArray[np.float32], starts: list[int], k: int, scores: NDArray[np.float64] | None = None) -> SpanView:
    return SpanView(TextData(ids=tuple(range(band.shape[2])), band=band, previous_token=scores), starts, k)


@settings(deadline=None, max_examples=300)
@example(2, 1, 108)
@given(st.integers(2, 5), st.integers(0, 6), st.integers(0, 1000))
def test_values_are_their_definitions(k: int, start: int, seed: int) -> None:
    A = _attention(3, 4, 12, seed)
    s = list(range(start, start + k))
    view = _view(_band(A, k - 1), [start], k)
    pairs = [(i, j) for i in s for j in s if i > j]
    bsi = np.mean([A[:, :, i, j] for i, j in pairs], 0)
    each = np.mean([sum(A[:, :, i, j] for j in s if j < i) for i in s[1:]], 0)
    np.testing.assert_allclose(view.bsi[0], bsi, atol=1e-6)
    np.testing.assert_allclose(mass(view)["mass"][0], each, atol=1e-6)
    np.testing.assert_allclose(sink(view)["sink"][0], np.mean([A[:, :, i, 0] for i in s], 0), atol=1e-6)
    for i, j in pairs:
        np.testing.assert_allclose(view.attention[0, :, :, i - start, j - start], A[:, :, i, j], atol=1e-6)
    assert not np.triu(view.attention).any()
    star = eb_star(view)
    eb = [max(bsi[layer]) - sum(bsi[layer]) / 4 for layer in range(3)]
    np.testing.assert_allclose(star["eb_per_layer"][0], eb, atol=1e-6)
    assert star["eb_star"][0] == pytest.approx(max(eb), abs=1e-6)
    layer, head = int(star["best_layer"][0]), int(star["best_head"][0])
    assert eb[layer] == pytest.approx(max(eb), abs=1e-6)
    assert bsi[layer, head] == pytest.approx(max(bsi[layer]), abs=1e-6)
    a, best, to_first = A[layer, head], best_head(view), sink(view)
    assert best["adjacent_bsi"][0] == pytest.approx(np.mean([a[i, i - 1] for i in s[1:]]), abs=1e-6)
    assert best["first_bsi"][0] == pytest.approx(a[s[-1], s[0]], abs=1e-6)
    assert best["uniform_baseline"][0] == pytest.approx(np.mean([1 / (i + 1) for i, _ in pairs]))
    assert to_first["sink_mass"][0] == pytest.approx(np.mean([a[i, 0] for i in s]), abs=1e-6)
    least = min(1 - a[i, 0] for i, _ in pairs)
    if start == 0:
        assert np.isnan(to_first["bsi_sinkless"][0])
        assert to_first["sinkless_reason"] == ["the span starts at position 0"]
    elif least > 1.01e-4:  # the band is float32, which knows 1 - A to 6e-8
        expected = np.mean([a[i, j] / (1 - a[i, 0]) for i, j in pairs])
        assert to_first["bsi_sinkless"][0] == pytest.approx(expected, rel=1e-5 + 2e-7 / least)
        assert to_first["sinkless_reason"] == [None]
    elif least < 0.99e-4:
        assert np.isnan(to_first["bsi_sinkless"][0])
        assert to_first["sinkless_reason"] == ["position 0 takes nearly all attention of a row"]
    if k == 2:
        np.testing.assert_allclose(mass(view)["mass"], view.bsi)


@pytest.mark.parametrize(("k", "H", "published"), [(2, 12, 0.916667), (4, 12, 0.458333)])
def test_a_previous_token_head_gives_the_published_constants(k: int, H: int, published: float) -> None:
    """EB* = (2/k)(1 - 1/H) for one head that looks at the previous token only; 0.458333 is a published value."""
    A = np.zeros((1, H, 10, 10))
    A[..., 0] = 1
    A[0, 3] = np.eye(10, k=-1)
    view = _view(_band(A, k - 1), [4], k)
    assert eb_star(view)["eb_star"][0] == pytest.approx(published, abs=1e-6)
    assert mass(view)["eb_star_mass"][0] == pytest.approx(1 - 1 / H)  # free of k


@pytest.mark.parametrize(
    ("weights", "entropy"),
    [
        (np.full(12, 0.3), math.log(12)),
        (np.array([1.0, 0, 0, 0]), 0),
        (np.zeros(8), math.log(8)),  # clamped at 1e-10, then normalised
    ],
)
def test_published_entropy_of_heads(weights: NDArray[np.float64], entropy: float) -> None:
    band = np.zeros((1, len(weights), 4, 2), np.float32)
    band[0, :, 2, 1] = weights
    assert best_head(_view(band, [1], 2))["entropy"][0] == pytest.approx(entropy, abs=1e-7)


def test_eb_star_of_the_published_files_is_the_maximum_over_layers() -> None:
    path = shared("published", "pilot_results", "binding", "160m_step15000_binding.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert row["eb_star"] == pytest.approx(max(row["eb_per_layer"]), abs=5e-7)
        assert row["best_layer"] == int(np.argmax(row["eb_per_layer"]))


@settings(deadline=None)
@given(st.integers(2, 4), st.sets(st.integers(0, 13), max_size=5), st.integers(0, 100))
def test_windows_at_once_are_windows_one_by_one(k: int, forbidden: set[int], seed: int) -> None:
    band = _band(_attention(2, 3, 14, seed), 4)
    starts = window_starts(14, k, forbidden)
    assert starts.tolist() == [s for s in range(1, 14 - k + 1) if not forbidden & set(range(s, s + k))]
    if not len(starts):
        return
    together = {name: v for m in (eb_star, mass) for name, v in m(_view(band, list(starts), k)).items()}
    for n, start in enumerate(starts):
        alone = {name: v for m in (eb_star, mass) for name, v in m(_view(band, [int(start)], k)).items()}
        for name, values in together.items():
            np.testing.assert_allclose(values[n], alone[name][0], atol=1e-12)


def test_null_by_hand_and_missing_with_its_reason() -> None:
    null = compare_with_null(0.5, np.array([0.1, 0.5, 0.9]), 3)
    assert null["null_mean"] == pytest.approx(0.5)
    assert null["excess"] == pytest.approx(0.0)
    assert null["null_n"] == 3
    assert null["percentile"] == 3 / 4  # two of three are not above it, and itself
    none = compare_with_null(0.5, np.array([0.1, 0.5]), 3)
    assert (none["null_mean"], none["excess"], none["percentile"]) == (None, None, None)
    assert none["null_reason"] == "2 null windows, 3 needed"
    assert compare_with_null(np.nan, np.zeros(9), 3)["null_reason"] == "the measure has no value here"


def test_pools_are_kept_apart_and_means_of_heads_are_theirs() -> None:
    null = WindowNull(eb_star, 2)
    bsi = np.arange(12.0).reshape(3, 2, 2) / 12
    null.add((2, False), "p", np.array([1, 2, 9]), {"eb_star": np.array([0.1, 0.2, 0.6]), "bsi": bsi})
    null.add((2, True), "q", np.array([1, 2]), {"eb_star": np.array([0.9, 0.9]), "bsi": bsi[:2]})
    row = null.compare((2, False), 0.3, 3)
    assert (row["null_n"], row["null_mean"], row["percentile"]) == (3, pytest.approx(0.3), 3 / 4)
    assert (row["position_null_n"], row["position_null_reason"]) == (
        1,
        "1 null windows, 2 needed",
    )  # 2 and 3 are one bin
    np.testing.assert_allclose(row["null_bsi"], bsi.mean(0).ravel())
    assert null.compare((2, True), 0.3, 1)["null_mean"] == pytest.approx(0.9)
    assert null.compare((3, True), 0.3, 1)["null_reason"] == "0 null windows, 2 needed"
    assert null.columns()["start"] == [1, 2, 9, 1, 2]


def test_position_bins_double() -> None:
    places = np.array([0, 1, 2, 3, 4, 7, 8, 15, 16])
    assert position_bins(places).tolist() == [-1, 0, 1, 1, 2, 2, 3, 3, 4]


@given(st.integers(1, 12), st.integers(1, 5), st.sets(st.integers(0, 11)))
def test_window_starts_by_hand(length: int, k: int, forbidden: set[int]) -> None:
    blocked = {0, *(i for i in forbidden if i < length)}
    expected = [s for s in range(length - k + 1) if not blocked & set(range(s, s + k))]
    assert window_starts(length, k, [i for i in forbidden if i < length]).tolist() == expected


def test_previous_token_score_by_hand() -> None:
    A = _attention(1, 2, 6, 0)
    scores = previous_token(NeutralView((_band(A, 1),), 1))["previous_token_score"]
    np.testing.assert_allclose(
        scores[0], [np.mean([A[0, h, i, i - 1] for i in range(2, 6)]) for h in range(2)], atol=1e-6
    )


def test_match_with_previous_token_heads() -> None:
    band = _band(_attention(2, 2, 8, 3), 1)
    view = _view(band, [3], 2)
    same = previous_token_match(_view(band, [3], 2, 2 * view.bsi[0] + 1))
    assert same["bsi_pts_r"][0] == pytest.approx(1)
    assert same["best_head_is_pts"][0]
    constant = previous_token_match(_view(band, [3], 2, np.ones((2, 2))))
    assert np.isnan(constant["bsi_pts_r"][0])
