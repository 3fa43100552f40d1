"""Value-weighted BSI against eager attention, the model's own value vectors and its output projection, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import models
from bindscope.engine.capture import TextInput
from bindscope.engine.data import Needs, TextData
from bindscope.engine.projections import projections
from bindscope.engine.trunk import layers
from bindscope.measures.norm_weighted import norm_weighted
from bindscope.measures.view import SpanView

TEXTS = [tuple(range(3, 13)), (20, 21, 22, 23, 24), tuple(range(30, 41))]
SPANS = [(2, 3, 4), (0, 1), (7, 8, 9, 10)]


def _read(model: Any) -> list[TextData]:
    with models.engine(model) as engine:
        inputs = [TextInput(text, span=span) for text, span in zip(TEXTS, SPANS, strict=True)]
        return engine.read([*inputs, TextInput(tuple(range(50, 60)))], Needs(norm_weighted=True, last_row=True))


def _weighted(data: TextData, span: tuple[int, ...]) -> np.ndarray:
    """(L, H) BSI from weights counted by norms."""
    return np.asarray(norm_weighted(SpanView(data, [span[0]], len(span)))["value_bsi"][0])


def _by_hand(model: Any, text: tuple[int, ...], span: tuple[int, ...], name: str) -> np.ndarray:
    """mean over pairs of ||A_ij v_j W_O|| / sum_j' ||A_ij' v_j' W_O||, vector by vector."""
    values: dict[int, torch.Tensor] = {}
    handles = []
    for i, layer in enumerate(layers(model)):
        attention = layer.attn if name == "gpt2" else layer.self_attn if name == "llama" else layer.attention
        source = {"gpt2": "c_attn", "llama": "v_proj", "gpt_neox": "query_key_value"}[name]
        handles.append(
            getattr(attention, source).register_forward_hook(
                lambda _m, _a, out, i=i: values.__setitem__(i, out[0].detach())
            )
        )
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        maps = model(torch.tensor([text]), output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    out = np.zeros((3, 6))
    for i, layer in enumerate(layers(model)):
        if name == "gpt2":
            v, w = values[i][:, 96:].view(-1, 6, 8), layer.attn.c_proj.weight
        elif name == "llama":
            v, w = values[i].view(-1, 2, 8).repeat_interleave(3, 1), layer.self_attn.o_proj.weight.T
        else:
            v, w = values[i].view(-1, 6, 3, 8)[:, :, 2], layer.attention.dense.weight.T
        for h in range(6):
            said = v[:, h].double() @ w[h * 8 : (h + 1) * 8].detach().double()  # (S, D)
            pairs = []
            for q in range(1, len(span)):
                sizes = [float((maps[i][0, h, span[q], s].double() * said[s]).norm()) for s in range(len(text))]
                pairs += [sizes[span[j]] / sum(sizes) for j in range(q)]
            out[i, h] = np.mean(pairs)
    return out


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_value_weighted_by_hand(name: str) -> None:
    model = models.build(*models.ARCHITECTURES[name])
    *found, without = _read(model)
    assert without.last_row is None
    assert without.norm_weighted is None
    for text, span, mine in zip(TEXTS, SPANS, found, strict=True):
        assert mine.last_row is not None
        np.testing.assert_allclose(_weighted(mine, span), _by_hand(model, text, span, name), atol=1e-5)
        with torch.inference_mode():  # the model is eager by now
            maps = model(torch.tensor([text]), output_attentions=True).attentions
        rows = np.stack([m[0, :, span[-1], : span[-1] + 1].numpy() for m in maps])
        np.testing.assert_allclose(mine.last_row, rows, atol=1e-5)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_every_architecture_has_a_known_projection(name: str) -> None:
    model = models.build(*models.ARCHITECTURES[name])
    weights = projections(model)
    assert weights is not None
    assert len(weights) == 3
    for values in (_weighted(data, span) for data, span in zip(_read(model)[:-1], SPANS, strict=True)):
        assert values.shape == (3, 6)
        assert ((values >= 0) & (values <= 1)).all()


def test_a_null_value_binds_nothing() -> None:
    """Attention alone still looks bound where the values of the term's tokens carry nothing to the output."""
    model = models.build(*models.ARCHITECTURES["llama"])
    with torch.no_grad():
        model.get_input_embeddings().weight[4] = 0  # a zero residual stays zero through RMSNorm: its value is null
    text, span = (3, 4, 5, 6), (1, 2)
    with models.engine(model) as engine:
        (data,) = engine.read([TextInput(text, span=span)], Needs(norm_weighted=True))
    found = _weighted(data, span)
    assert found[0].max() == 0
    assert found[1:].max() > 0  # later layers have written to that position
