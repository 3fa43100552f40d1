"""Binding quantities against loops over their definitions, worked examples and published values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bindscope.measures import binding as b
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


@settings(deadline=None, max_examples=300)
@example(2, 1, 108)
@given(st.integers(2, 5), st.integers(0, 6), st.integers(0, 1000))
def test_values_are_their_definitions(k: int, start: int, seed: int) -> None:
    A = _attention(3, 4, 12, seed)
    s = list(range(start, start + k))
    v = b.head_values(_band(A, k - 1), start, k)
    for layer in range(3):
        for head in range(4):
            a = A[layer, head]
            pairs = [(i, j) for i in s for j in s if i > j]
            assert v.bsi[layer, head] == pytest.approx(np.mean([a[i, j] for i, j in pairs]), abs=1e-6)
            assert v.adjacent[layer, head] == pytest.approx(np.mean([a[i, i - 1] for i in s[1:]]), abs=1e-6)
            assert v.first[layer, head] == pytest.approx(a[s[-1], s[0]], abs=1e-6)
            assert v.mass[layer, head] == pytest.approx(
                np.mean([sum(a[i, j] for j in s if j < i) for i in s[1:]]), abs=1e-6
            )
            assert v.sink[layer, head] == pytest.approx(np.mean([a[i, 0] for i in s]), abs=1e-6)
            if start > 0:
                least = min(1 - a[i, 0] for i, _ in pairs)
                expected = np.mean([a[i, j] / (1 - a[i, 0]) for i, j in pairs])
                if least > 1.01e-4:  # the band is float32, which knows 1 - A to 6e-8
                    assert v.bsi_sinkless[layer, head] == pytest.approx(expected, rel=1e-5 + 2e-7 / least)
                elif least < 0.99e-4:
                    assert np.isnan(v.bsi_sinkless[layer, head])
            else:
                assert np.isnan(v.bsi_sinkless).all()
    if k == 2:
        np.testing.assert_allclose(v.mass, v.bsi)
    eb = [max(v.bsi[layer]) - sum(v.bsi[layer]) / 4 for layer in range(3)]
    np.testing.assert_allclose(b.eb(v.bsi), eb)
    assert b.uniform_baseline(start, k) == pytest.approx(np.mean([1 / (i + 1) for i in s for j in s if i > j]))


@pytest.mark.parametrize(("k", "H", "published"), [(2, 12, 0.916667), (4, 12, 0.458333)])
def test_a_previous_token_head_gives_the_published_constants(k: int, H: int, published: float) -> None:
    """EB* = (2/k)(1 - 1/H) for one head that looks at the previous token only; 0.458333 is a published value."""
    A = np.zeros((1, H, 10, 10))
    A[..., 0] = 1
    A[0, 3] = np.eye(10, k=-1)
    v = b.head_values(_band(A, k - 1), 4, k)
    assert float(b.eb(v.bsi).max()) == pytest.approx(published, abs=1e-6)
    assert float(b.eb(v.mass).max()) == pytest.approx(1 - 1 / H)  # free of k


def test_published_entropy_of_a_uniform_layer_is_the_log_of_heads() -> None:
    assert b.head_entropy(np.full(12, 0.3)) == pytest.approx(math.log(12))
    assert b.head_entropy(np.array([1.0, 0, 0, 0])) == pytest.approx(0, abs=1e-7)
    assert b.head_entropy(np.zeros(8)) == pytest.approx(math.log(8))  # clamped at 1e-10, then normalised


def test_eb_star_of_the_published_files_is_the_maximum_over_layers() -> None:
    path = shared("published", "pilot_results", "binding", "160m_step15000_binding.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert row["eb_star"] == pytest.approx(max(row["eb_per_layer"]), abs=5e-7)
        assert row["best_layer"] == int(np.argmax(row["eb_per_layer"]))


@settings(deadline=None)
@given(st.integers(2, 4), st.sets(st.integers(0, 13), max_size=5), st.integers(0, 100))
def test_windows_are_every_allowed_run_of_tokens(k: int, forbidden: set[int], seed: int) -> None:
    A = _attention(2, 3, 14, seed)
    P = _band(A, 4)
    found = b.windows(P, k, b.window_starts(P.shape[2], k, forbidden))
    allowed = [s for s in range(1, 14 - k + 1) if not forbidden & set(range(s, s + k))]
    assert found.starts.tolist() == allowed
    each = [b.head_values(P, s, k).bsi for s in allowed]
    np.testing.assert_allclose(found.bsi, np.sum(each, 0) if each else np.zeros((2, 3)), atol=1e-9)
    for s, star, mass in zip(allowed, found.eb_star, found.eb_star_mass, strict=True):
        v = b.head_values(P, s, k)
        assert star == pytest.approx(float(b.eb(v.bsi).max()), abs=1e-9)
        assert mass == pytest.approx(float(b.eb(v.mass).max()), abs=1e-9)


def test_null_by_hand_and_missing_with_its_reason() -> None:
    null = b.against(0.5, np.array([0.1, 0.5, 0.9]), 3)
    assert (null.mean, null.excess, null.n) == (pytest.approx(0.5), pytest.approx(0.0), 3)
    assert null.percentile == 3 / 4  # two of three are not above it, and itself
    none = b.against(0.5, np.array([0.1, 0.5]), 3)
    assert (none.mean, none.excess, none.percentile) == (None, None, None)
    assert none.reason == "2 null windows, 3 needed"


def test_position_bins_double() -> None:
    assert [b.position_bin(i) for i in (0, 1, 2, 3, 4, 7, 8, 15, 16)] == [-1, 0, 1, 1, 2, 2, 3, 3, 4]
    many = np.arange(0, 5000)
    assert b.position_bins(many).tolist() == [b.position_bin(int(i)) for i in many]


@given(st.integers(1, 12), st.integers(1, 5), st.sets(st.integers(0, 11)))
def test_window_starts_by_hand(length: int, k: int, forbidden: set[int]) -> None:
    blocked = {0, *(i for i in forbidden if i < length)}
    expected = [s for s in range(length - k + 1) if not blocked & set(range(s, s + k))]
    assert b.window_starts(length, k, [i for i in forbidden if i < length]).tolist() == expected


def test_previous_token_score_by_hand() -> None:
    A = _attention(1, 2, 6, 0)
    got = b.previous_token_scores([_band(A, 1)], 1)
    np.testing.assert_allclose(got[0], [np.mean([A[0, h, i, i - 1] for i in range(2, 6)]) for h in range(2)], atol=1e-6)


def test_correlation_of_a_constant_is_missing() -> None:
    assert b.correlation(np.ones((2, 2)), np.arange(4.0).reshape(2, 2)) is None
    assert b.correlation(np.arange(4.0), 2 * np.arange(4.0) + 1) == pytest.approx(1)
