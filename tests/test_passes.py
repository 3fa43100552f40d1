"""Scores and bands from one shared pass against one plain forward pass per continuation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

import models
from bindscope.engine.capture import TextInput
from bindscope.engine.data import Needs
from bindscope.engine.passes import _batches
from bindscope.errors import MeasureError

TOLERANCE = 1e-5
ATTENTION = Needs(attention=True)


@pytest.fixture(scope="module", params=list(models.ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return models.build(*models.ARCHITECTURES[request.param])


def _rows() -> list[TextInput]:
    """Prompts of several lengths, choices of one to six tokens; rows longer than the sliding windows."""
    rng = np.random.default_rng(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, 64, n))

    return [
        TextInput(ids(n), tuple(ids(m) for m in ms), band)
        for n, ms, band in (
            (9, (3, 1, 6, 2), 3),
            (17, (1, 1, 1, 1), 2),
            (4, (), 2),
            (23, (5, 5), 0),
            (12, (2, 4, 1), 1),
        )
    ]


@torch.inference_mode()
def _naive(model: PreTrainedModel, row: TextInput) -> list[np.ndarray]:
    out = []
    for tokens in row.continuations:
        logits = model(torch.tensor([row.ids + tokens]), use_cache=False).logits[0].double()
        logs = logits.log_softmax(-1)[len(row.ids) - 1 : -1]
        out.append(logs[range(len(tokens)), list(tokens)].numpy())
    return out


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "shared cache"])
def test_equal_to_one_forward_per_choice(model: PreTrainedModel, packed: bool) -> None:
    rows = _rows()
    with models.engine(model, packed) as engine:
        readings = engine.read(rows, ATTENTION)
    for row, reading in zip(rows, readings, strict=True):
        assert len(reading.logprobs) == len(row.continuations)
        for got, expected in zip(reading.logprobs, _naive(model, row), strict=True):
            np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "shared cache"])
def test_band_equals_eager_attention(model: PreTrainedModel, packed: bool) -> None:
    rows = _rows()
    with models.engine(model, packed) as engine:
        readings = engine.read(rows, ATTENTION)
    model.set_attn_implementation("eager")
    for row, reading in zip(rows, readings, strict=True):
        if not row.band:
            assert reading.band is None
            continue
        with torch.inference_mode():
            A = torch.stack(model(torch.tensor([row.ids]), output_attentions=True, use_cache=False).attentions)[
                :, 0
            ].numpy()
        assert reading.band is not None
        assert reading.band.shape == (*A.shape[:3], 1 + row.band)
        np.testing.assert_allclose(reading.band[..., 0], A[..., 0], atol=TOLERANCE)
        for d in range(1, row.band + 1):
            np.testing.assert_allclose(reading.band[:, :, d:, d], np.diagonal(A, -d, 2, 3), atol=TOLERANCE)
            assert np.isnan(reading.band[:, :, :d, d]).all()
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


def test_batch_size_does_not_matter() -> None:
    model = models.build(*models.ARCHITECTURES["llama"])
    rows = _rows()
    with models.engine(model) as engine:
        together, alone = engine.read(rows, ATTENTION), engine.read(rows, ATTENTION, batch_tokens=1)
    for a, b in zip(together, alone, strict=True):
        for x, y in zip(a.logprobs, b.logprobs, strict=True):
            np.testing.assert_allclose(x, y, atol=TOLERANCE)
        if a.band is not None:
            np.testing.assert_allclose(a.band, b.band, atol=TOLERANCE)


def test_stream_gives_each_row_once_longest_first_and_as_read() -> None:
    model = models.build(*models.ARCHITECTURES["gpt_neox"])
    rows = _rows()
    with models.engine(model) as engine:
        pairs, whole = list(engine.stream(rows, batch_tokens=40)), engine.read(rows)
    assert sorted(i for i, _ in pairs) == list(range(len(rows)))
    assert [len(rows[i]) for i, _ in pairs] == sorted(map(len, rows), reverse=True)
    for i, reading in pairs:
        for a, b in zip(reading.logprobs, whole[i].logprobs, strict=True):
            np.testing.assert_allclose(a, b, atol=TOLERANCE)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_each_row_once_and_stay_within_their_budget(lengths: list[int], budget: int) -> None:
    rows = [TextInput(tuple(range(n))) for n in lengths]
    batches = list(_batches(rows, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    sizes = [lengths[i] for batch in batches for i in batch]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches:
        longest = lengths[batch[0]]
        assert len(batch) == 1 or len(batch) * longest <= budget
        for n, i in enumerate(batch):  # padded by more than a fifth only while a quarter was not full
            assert lengths[i] >= 0.8 * longest or n * longest < budget / 4


def test_vocabulary_projection_only_where_read() -> None:
    model = models.build(*models.ARCHITECTURES["gpt_neox"])
    widths: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: widths.append(out.shape[1]))
    rows = _rows()
    with models.engine(model) as engine:
        engine.read(rows, ATTENTION)
    handle.remove()
    needed = sum(1 + sum(len(c) - 1 for c in row.continuations) for row in rows if row.continuations)
    assert sum(widths) == needed


def test_a_pass_that_predicts_nothing_ends_behind_the_last_attention(model: PreTrainedModel) -> None:
    """Not where somebody's hook in front of a module may wait for its end; what is read is the same."""
    rows = [TextInput(row.ids, (), 3) for row in _rows()]
    ends: list[int] = []
    after = model.get_output_embeddings().register_forward_hook(lambda _m, _a, _out: ends.append(1))
    with models.engine(model) as engine:
        short = engine.read(rows, ATTENTION)
        assert not ends
        before = model.base_model.register_forward_pre_hook(lambda _m, _a: None)
        whole = engine.read(rows, ATTENTION)
        before.remove()
    after.remove()
    assert ends
    for a, b in zip(short, whole, strict=True):
        assert a.band is not None
        assert b.band is not None
        np.testing.assert_array_equal(a.band, b.band)


def test_values_that_are_not_finite_are_an_error() -> None:
    model = models.build(*models.ARCHITECTURES["gpt_neox"])
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.inf
    with models.engine(model) as engine, pytest.raises(MeasureError, match="not finite"):
        engine.read([TextInput((3, 4, 5), ((5, 6),))])
