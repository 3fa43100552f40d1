"""Whole attention rows of a term's tokens: where its last token looks, and binding weighted by what attention carries.

A head that attends to a null value binds nothing. The weight of key j for head h at position i is ||A[i, j] v_j W_O^h||
as a share of the same over all keys of i (after Kobayashi et al. 2020, arXiv:2004.10102), W_O^h the head's rows of the
output projection. BSI built from it is the mean over pairs i > j.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import align_module_device
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bindscope.measure.attention import recording
from bindscope.measure.memory import Fitting
from bindscope.measure.trunk import layers

#: What architectures call the projection of the heads' outputs.
_PROJECTIONS = ("o_proj", "dense", "c_proj", "out_proj", "wo")
#: Tokens in one batch.
_BATCH_TOKENS = 2048


class SpanRows(NamedTuple):
    """last: (L, H, S) attention of the term's last token to each of the S positions up to its own; valued: (L, H)
    value-weighted BSI, None where W_O is not known."""

    last: NDArray[np.float32]
    valued: NDArray[np.float64] | None


@torch.no_grad()
def projections(model: PreTrainedModel) -> dict[int, Tensor] | None:
    """Layer -> W_O as (H, d, D) in float32; None where the architecture's projection is not known."""
    heads, out = int(model.config.num_attention_heads), {}
    for i, layer in enumerate(layers(model)):
        attention = next(part for part in layer.modules() if getattr(part, "layer_idx", None) == i)
        attention = next((p for p in layer.modules() if getattr(p, "layer_idx", None) == i and _named(p)), attention)
        module = _named(attention)
        if module is None:
            return None
        with align_module_device(module):  # brings in what lies on the disk
            rows = _matrix(module)
        if rows is None or rows.shape[0] % heads:
            return None
        out[i] = rows.reshape(heads, -1, rows.shape[1])
    return out


def _matrix(module: torch.nn.Module) -> Tensor | None:
    """What a linear module multiplies by, (in, out) in float32: its weight where that is plain, else (quantised
    weights, adapters) what it makes of the unit vectors."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return None
    if type(module) in (torch.nn.Linear, Conv1D) and type(weight) is torch.nn.Parameter:  # adapters have like names
        return (weight if type(module) is Conv1D else weight.T).detach().float()
    size = getattr(module, "in_features", None)
    if size is None:
        return None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    unit = torch.eye(size, dtype=dtype, device=weight.device)
    found: Tensor = module(unit) - module(torch.zeros_like(unit[:1]))
    return found.float()


def _named(attention: torch.nn.Module) -> torch.nn.Module | None:
    return next((getattr(attention, name) for name in _PROJECTIONS if hasattr(attention, name)), None)


def span_rows(
    model: PreTrainedModel, texts: Sequence[tuple[int, ...]], spans: Sequence[tuple[int, ...]]
) -> Iterator[tuple[int, SpanRows]]:
    """Each text's index and what whole rows tell of the term at its span. The model must be under `hooked`.

    Texts are cut behind the term, which causal attention cannot tell. What the caller lets go is not kept.
    """
    weights = projections(model)
    # ||v W||^2 = v (W W^T) v^T, (H, d, d)
    gram = None if weights is None else {i: w @ w.transpose(1, 2) for i, w in weights.items()}
    order, fitting = sorted(range(len(texts)), key=lambda i: -spans[i][-1]), Fitting()
    start = 0
    while start < len(order):
        members = order[start : start + max(1, _BATCH_TOKENS // (spans[order[start]][-1] + 1))]
        start += len(members)
        found = fitting.run(members, lambda p: _batch(model, gram, [texts[i] for i in p], [spans[i] for i in p]))
        yield from zip(members, found, strict=True)


@torch.no_grad()
def _batch(
    model: PreTrainedModel,
    gram: dict[int, Tensor] | None,
    texts: Sequence[tuple[int, ...]],
    spans: Sequence[tuple[int, ...]],
) -> list[SpanRows]:
    T, k = max(span[-1] + 1 for span in spans), max(map(len, spans))
    ids = torch.zeros(len(texts), T, dtype=torch.long)
    for b, (text, span) in enumerate(zip(texts, spans, strict=True)):
        ids[b, : span[-1] + 1] = torch.tensor(text[: span[-1] + 1])
    queries = torch.tensor([[*span, *[span[-1]] * (k - len(span))] for span in spans], device=model.device)
    rows: dict[int, Tensor] = {}
    shares: dict[int, Tensor] = {}

    def capture(layer: int, z: Tensor, probabilities: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        p = probabilities(queries.to(z.device))
        rows[layer] = p[:, :, -1].cpu()
        if gram is not None:
            v = value.float()
            size = torch.einsum("bhsd,hde,bhse->bhs", v, gram[layer].to(v.device), v).clamp(min=0).sqrt()
            carried = p * size[:, :, None]
            shares[layer] = (carried / carried.sum(-1, keepdim=True)).cpu()
        return z

    with recording(rewire=capture):
        model(ids.to(model.device), use_cache=False)
    last = torch.stack([rows[i] for i in range(len(rows))], 1).numpy()  # (B, L, H, S)
    valued: list[NDArray[np.float64] | None] = [None] * len(spans)
    if gram is not None:
        stack = torch.stack([shares[i] for i in range(len(shares))], 1).numpy()  # (B, L, H, k, S)
        valued = [
            np.mean([stack[b, :, :, i, span[j]] for i in range(1, len(span)) for j in range(i)], 0, dtype=np.float64)
            for b, span in enumerate(spans)
        ]
    return [SpanRows(last[b, :, :, : span[-1] + 1], valued[b]) for b, span in enumerate(spans)]
