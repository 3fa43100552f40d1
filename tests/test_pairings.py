"""Measures on grids of recombined pairings: equal to those of ordinary prompts, whatever is read in how many passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import bindscope as bs
import models
from bindscope.engine.capture import TextInput
from bindscope.engine.data import Needs, together
from bindscope.engine.engine import Engine
from bindscope.errors import RequestError
from bindscope.measures import pairings, registry
from bindscope.measures.base import SpanMeasure, Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.pairings import measure_grid
from bindscope.measures.view import SpanView
from bindscope.prompts.recombine import Grid, Part
from bindscope.schema import Column


@span_measure(value="size", needs=Needs(residual=True, head_outputs=True), columns=[Column("size", "number", "a size")])
def size(view: SpanView) -> Values:
    return {"size": view.residual[:, -1].std((1, 2)) + view.head_outputs.mean((1, 2, 3, 4))}


@span_measure(value="wrong", needs=Needs(), columns=[Column("wrong", "number", "raises")])
def wrong(view: SpanView) -> Values:
    raise ZeroDivisionError("by design")


def _grid(cut: int = 1, k: int = 2) -> Grid:
    rng = np.random.default_rng(3)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, 64, n))

    heads, tails = [tuple(Part(str(i), ids(n)) for i in range(5)) for n in (cut, k - cut)]
    return Grid(
        k=k,
        cut=cut,
        in_word=False,
        carriers=(Part("a", ids(6)), Part("b", ids(9))),
        heads=heads,
        tails=tails[:4],
        places={"t0": (0, 0), "t1": (1, 1), "t2": (2, 2), "t3": (3, 3), "t4": (4, 3)},
        left_out={(0, 2): "an expression", (3, 1): "tokens change"},
    )


@pytest.fixture
def model() -> PreTrainedModel:
    return models.build(*models.ARCHITECTURES["llama"])


def _span_measures() -> list[SpanMeasure]:
    shipped = [m for m in registry.built_in().values() if isinstance(m, SpanMeasure) and m.value]
    return [*shipped, size]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "shared cache"])
def test_equal_to_measuring_every_cell_as_a_prompt(model: PreTrainedModel, packed: bool) -> None:
    grid, measures = _grid(cut=2, k=3), _span_measures()
    scores = np.random.default_rng(0).random((3, 6))
    with models.engine(model, packed) as engine:
        values = measure_grid(engine, grid, measures, previous_token=scores)
        for measure in measures:
            expected = _one_by_one(engine, grid, measure, measure.value, scores)
            np.testing.assert_allclose(values.value[measure.name], expected, atol=1e-5, rtol=1e-4)
            if measure.by_layer:
                expected = _one_by_one(engine, grid, measure, measure.by_layer, scores)
                np.testing.assert_allclose(values.by_layer[measure.name], expected, atol=1e-5, rtol=1e-4)
    assert not values.failures
    assert values.by_layer.keys() == {m.name for m in measures if m.by_layer}
    assert np.argwhere(np.isnan(values.value["eb_star"])).tolist() == [[0, 2], [3, 1]]


def _one_by_one(
    engine: Engine, grid: Grid, measure: SpanMeasure, column: str, scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    sums: dict[tuple[int, int], NDArray[np.float64]] = {}
    needs = together([measure.needs])
    for cell in grid.cells:
        texts = [
            TextInput(c.ids + grid.ids(cell), (), grid.k - 1, tuple(range(len(c.ids), len(c.ids) + grid.k)))
            for c in grid.carriers
        ]
        each = []
        for text, data in zip(texts, engine.read(texts, needs), strict=True):
            object.__setattr__(data, "previous_token", scores)
            each.append(np.asarray(measure.function(SpanView(data, text.span[:1], grid.k))[column][0], np.float64))
        sums[cell] = np.mean(each, 0)
    out = np.full((*grid.shape, *sums[0, 0].shape), np.nan)
    for cell, value in sums.items():
        out[cell] = value
    return out


def test_states_of_every_layer_in_one_pass_or_many(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = _grid()

    def read() -> tuple[list[tuple[int, int]], NDArray[np.float32], int]:
        order: list[tuple[int, int]] = []
        streams = []
        passes = 0
        original = engine.stream_cells

        def counted(*args: object, **more: object) -> object:
            nonlocal passes
            passes += 1
            return original(*args, **more)  # type: ignore[arg-type]

        def keep(carrier: int, layer: int, stream: NDArray[np.float32]) -> None:
            order.append((carrier, layer))
            streams.append(stream.copy())

        with monkeypatch.context() as patch:
            patch.setattr(engine, "stream_cells", counted)
            measure_grid(engine, grid, [size], states=keep)
        return order, np.array(streams), passes

    with models.engine(model) as engine:
        order, whole, once = read()
        monkeypatch.setattr(pairings, "STATE_BYTES", 3 * 5 * 4 * 48 * 4)
        again, parts, twice = read()
        cell = grid.carriers[1].ids + grid.ids((2, 3))
        (data,) = engine.read([TextInput(cell)], Needs(residual=True))
    assert order == again == [(carrier, layer) for carrier in (0, 1) for layer in range(4)]
    assert (once, twice) == (2, 4)
    np.testing.assert_array_equal(whole, parts)
    assert whole.shape == (8, 5, 4, 48)
    assert data.residual is not None
    np.testing.assert_allclose(whole[4:, 2, 3], data.residual[:, -1], atol=1e-5)
    assert np.isnan(whole[:, 0, 2]).all()
    assert np.isfinite(np.delete(whole.reshape(8, 20, 48), [2, 13], axis=1)).all()


def test_uniform_attention_adds_up_in_the_first_layer_and_not_above(model: PreTrainedModel) -> None:
    """Queries of zero make every weight 1 / position; without an MLP the stream is a sum of what head and tail give."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    grid = _grid()
    share: dict[tuple[int, int], float] = {}

    def conjunction(carrier: int, layer: int, stream: NDArray[np.float32]) -> None:
        h = stream[[1, 2, 4]][:, [0, 1, 3]].astype(np.float64)  # no cell is left out here
        middle = h.mean((0, 1))
        rest = h - h.mean(1, keepdims=True) - h.mean(0, keepdims=True) + middle
        share[carrier, layer] = float(np.linalg.norm(rest) / np.linalg.norm(h - middle))

    with models.engine(model) as engine:
        values = measure_grid(engine, grid, [registry.built_in()["eb_star"]], states=conjunction)
    np.testing.assert_allclose(values.value["eb_star"][1:3], 0, atol=1e-6)  # all heads look alike
    assert all(share[carrier, layer] < 1e-6 for carrier in (0, 1) for layer in (0, 1))
    assert all(share[carrier, 3] > 1e-3 for carrier in (0, 1))


def test_a_measure_that_fails_is_named_and_others_go_on(model: PreTrainedModel) -> None:
    with models.engine(model) as engine:
        values = measure_grid(engine, _grid(), [wrong, registry.built_in()["eb_star"]])
        with pytest.raises(RequestError, match="previous_token"):
            measure_grid(engine, _grid(), [registry.built_in()["previous_token_match"]])
    assert list(values.value) == ["eb_star"]
    assert values.failures == {"wrong": "the measure wrong is left out: ZeroDivisionError: by design"}


@pytest.mark.parametrize(("step", "bound"), [(0, False), (6000, True)])
def test_terms_of_tiny_stand_out_when_it_is_trained(step: int, bound: bool) -> None:
    """Before training nothing tells a term from its recombinations; after it the conjunction does, in later layers."""
    found = bs.pairings(bs.load("tiny", step), terms=["set-A", "set-B"], references=False)
    assert not found.failures
    rows = found.frame.set_index("quantity")
    assert (rows["n"] == 10).all()
    conjunction = rows.loc["conjunction"]
    assert (conjunction["p"] < 0.001) == (conjunction["p_layers"] < 0.001) == (conjunction["low"] > 0.5) == bound
    assert conjunction["excess"] == pytest.approx(conjunction["value"] - conjunction["expected"], abs=0.02)
    layers = found.layers[found.layers["quantity"] == "conjunction"].set_index("layer")
    assert list(layers.index) == [0, 1, 2, 3, 4]
    assert layers.loc[0, "p"] > 0.3
    if not bound:
        assert (rows["p"] > 0.05).all()
        assert ((rows["low"] < 0.5) & (rows["high"] > 0.5)).all()
    assert set(found.left_out["group"]) == {"terms"}
    assert found.left_out["reason"].str.len().min() > 0


def test_random_weights_read_nothing(words: PreTrainedTokenizerFast) -> None:
    """Words of two tokens in a model with random weights: the interval of each quantity holds 0.5."""
    kind, config = models.ARCHITECTURES["llama"]
    model = models.build(kind, config | {"vocab_size": len(words)})
    found = bs.pairings(model, words, "a11y-41", permutations=999)
    assert set(found.frame["group"]) == {"one-word units"}  # this tokenizer cuts the others into too many tokens
    assert ((found.frame["low"] < 0.5) & (found.frame["high"] > 0.5)).all()
    assert set(found.left_out["group"]) == {"terms", "random pairs", "familiar units", "one-word units"}


def test_too_few_terms_are_named() -> None:
    loaded = bs.load("tiny")
    found = bs.pairings(loaded, terms=["screen reader", "skip link"], references=False)
    assert found.frame.empty
    assert found.left_out["reason"].str.contains("a grid needs 8").all()
