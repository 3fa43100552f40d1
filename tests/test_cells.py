"""Cells behind a shared prefix against one forward pass for each cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import models
from bindscope.engine import cells as module
from bindscope.engine.capture import TextInput
from bindscope.engine.data import CellData, Needs, TextData
from bindscope.engine.engine import Engine
from bindscope.errors import MeasureError, RequestError
from bindscope.measures.view import SpanView

TOLERANCE = 1e-5
EVERYTHING = Needs(attention=True, last_row=True, norm_weighted=True, residual=True, head_outputs=True)
PREFIX = (5, 9, 33, 7, 21, 40, 11, 8, 3)  # longer than the sliding windows
BOTH = pytest.mark.parametrize("packed", [True, False], ids=["packed", "shared cache"])


@pytest.fixture(scope="module", params=list(models.ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return models.build(*models.ARCHITECTURES[request.param])


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of few cells, so that a handful of cells fills several, the last of them not full."""
    monkeypatch.setattr(module, "ROW_TOKENS", len(PREFIX) + 12)


def _cells(n: int, k: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(n + k)
    return [tuple(int(i) for i in rng.integers(3, 64, k)) for _ in range(n)]


def _apart(engine: Engine, cells: list[tuple[int, ...]]) -> list[TextData]:
    P, k = len(PREFIX), len(cells[0])
    span = tuple(range(P, P + k))
    return engine.read([TextInput(PREFIX + cell, (), k - 1, span) for cell in cells], EVERYTHING)


def _views(parts: list[CellData]) -> list[SpanView]:
    return [SpanView(part.data, part.starts, part.k) for part in parts]


def _joined(parts: list[CellData], name: str) -> NDArray[np.float64]:
    return np.concatenate([getattr(view, name) for view in _views(parts)])


@BOTH
@pytest.mark.parametrize("k", [2, 3])
def test_equal_to_one_forward_per_cell(model: PreTrainedModel, packed: bool, k: int, short_rows: None) -> None:
    cells, P = _cells(14, k), len(PREFIX)
    last = int(model.config.num_hidden_layers)
    with models.engine(model, packed) as engine:
        parts = list(engine.stream_cells(PREFIX, cells, EVERYTHING, states=(0, last)))
        apart = [SpanView(data, [P], k) for data in _apart(engine, cells)]
    assert [part.first for part in parts] == list(np.cumsum([0, *(part.count for part in parts)])[:-1])
    assert sum(part.count for part in parts) == len(cells)
    for name in ("attention", "bsi", "sink", "last_row", "norm_weighted", "residual", "head_outputs"):
        expected = np.concatenate([getattr(view, name) for view in apart])
        np.testing.assert_allclose(_joined(parts, name), expected, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)
    np.testing.assert_array_equal(_joined(parts, "ids"), cells)
    assert np.isnan(_joined(parts, "residual_next")).all()
    states = np.concatenate([part.states for part in parts if part.states is not None], 1)
    np.testing.assert_array_equal(states, _joined(parts, "residual")[:, -1, [0, last]].swapaxes(0, 1))


@BOTH
def test_equal_to_eager_attention(model: PreTrainedModel, packed: bool, short_rows: None) -> None:
    cells, P, k = _cells(7, 3), len(PREFIX), 3
    with models.engine(model, packed) as engine:
        parts = list(engine.stream_cells(PREFIX, cells, Needs(attention=True, residual=True)))
    inside, sink, residual = (_joined(parts, name) for name in ("attention", "sink", "residual"))
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(
            torch.tensor([PREFIX + cell for cell in cells]),
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    A = torch.stack(out.attentions, 1).double().numpy()[..., P:, :]  # (n, L, H, k, T)
    np.testing.assert_allclose(sink, A[..., 0], atol=TOLERANCE)
    np.testing.assert_allclose(inside, np.tril(A[..., P : P + k], -1), atol=TOLERANCE)
    stream = torch.stack(out.hidden_states[:-1], 2).numpy()[:, P:]  # the last of them is normed
    np.testing.assert_allclose(residual[:, :, :-1], stream, atol=TOLERANCE, rtol=TOLERANCE)


@BOTH
def test_only_what_was_asked_for_is_kept(packed: bool) -> None:
    model = models.build(*models.ARCHITECTURES["llama"])
    with models.engine(model, packed) as engine:
        (part,) = engine.stream_cells(PREFIX, _cells(5, 2), Needs(attention=True))
        (bare,) = engine.stream_cells(PREFIX, _cells(5, 2), states=[1])
    kept = part.data
    assert kept.band is not None
    assert (kept.last_row, kept.norm_weighted, kept.residual, kept.head_outputs, part.states) == (None,) * 5
    assert bare.data.band is None
    assert bare.states is not None
    assert bare.states.shape == (1, 5, 48)


def test_batch_size_does_not_matter(short_rows: None) -> None:
    model = models.build(*models.ARCHITECTURES["gemma3"])
    cells = _cells(30, 2)
    with models.engine(model) as engine:
        whole = list(engine.stream_cells(PREFIX, cells, EVERYTHING))
        small = list(engine.stream_cells(PREFIX, cells, EVERYTHING, batch_tokens=1))
    for name in ("attention", "sink", "residual", "norm_weighted"):
        np.testing.assert_allclose(_joined(whole, name), _joined(small, name), atol=TOLERANCE)


def test_what_cannot_be_read_is_an_error() -> None:
    model = models.build(*models.ARCHITECTURES["llama"])
    with models.engine(model) as engine:
        with pytest.raises(RequestError, match="nothing stands in front"):
            engine.stream_cells((), [(3, 4)])
        with pytest.raises(RequestError, match=r"\[2, 3\] tokens"):
            engine.stream_cells(PREFIX, [(3, 4), (3, 4, 5)])
        with torch.no_grad():
            model.get_input_embeddings().weight[4] = torch.inf
        with pytest.raises(MeasureError, match="not finite"):
            list(engine.stream_cells(PREFIX, [(3, 4)], Needs(residual=True)))
