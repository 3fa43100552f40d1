"""Many short texts behind one prefix: the cells of a grid, each of which sees the prefix and itself.

Packed, a row holds the prefix once and many cells, at positions that follow the prefix. For models whose rows cannot be
packed, the keys and values of the prefix are computed once, and the cells are a batch that shares them. Either way a
cell adds only its own tokens, and what is kept of it is only what was asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bindscope.engine.attention import Attention, Packing, during, require_hook, unsupported
from bindscope.engine.batches import ShrinkingBatches
from bindscope.engine.capture import residual_stream
from bindscope.engine.data import CellData, Needs, TextData
from bindscope.engine.passes import BATCH_TOKENS, RESIDUAL_BYTES, logits_at, not_finite
from bindscope.engine.projections import Grams, norm_weighted_attention
from bindscope.errors import RequestError

#: Tokens of a packed row: the cost of attention grows with its length, the share of the prefix falls with it.
ROW_TOKENS = 256

#: Token ids of a cell.
Ids = tuple[int, ...]


@dataclass(frozen=True)
class CellRequest:
    """What is read behind one prefix.

    prefix: token ids in front of every cell
    k: tokens of every cell
    needs: what is kept of every cell; `alone` and `previous_token` are read elsewhere
    states: layers whose residual stream is kept at the last token of every cell, 0 for the embeddings
    grams: of the model's output projections, for `Needs.norm_weighted`; None where they are not known
    """

    prefix: Ids
    k: int
    needs: Needs = field(default_factory=Needs)
    states: tuple[int, ...] = ()
    grams: Grams | None = None


def cell_request(
    prefix: Sequence[int], cells: Sequence[Ids], needs: Needs, states: Sequence[int], grams: Grams | None
) -> CellRequest:
    """Raises RequestError for an empty prefix or cells of different length."""
    lengths = {len(cell) for cell in cells}
    if len(lengths) != 1:
        raise RequestError(f"the cells of a grid have {sorted(lengths)} tokens; give cells of one length")
    if not prefix:
        raise RequestError("nothing stands in front of the cells; use a carrier sentence that does not begin with them")
    return CellRequest(prefix=tuple(prefix), k=lengths.pop(), needs=needs, states=tuple(states), grams=grams)


@torch.no_grad()
def stream_cells(
    model: PreTrainedModel,
    cells: Sequence[Ids],
    request: CellRequest,
    *,
    packed: bool,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[CellData]:
    """What was read of the cells, a part of them at a time, in their order.

    packed: whether cells share rows, which must hold for the model
    What the caller does not keep is not kept at all, so memory does not grow with the number of cells. A batch for
    which there is no memory is halved.
    Raises MeasureError where an attention weight or a residual stream is not finite.
    """
    require_hook(model)
    P, k = len(request.prefix), request.k
    size = max(1, (ROW_TOKENS - P) // k)
    rows = [cells[i : i + size] for i in range(0, len(cells), size)]
    side = max(1, _budget(model, request, batch_tokens) // (P + min(size, len(cells)) * k))
    shared = None if packed else _keys_of(model, request.prefix)
    batches = ShrinkingBatches()
    first = 0
    for start in range(0, len(rows), side):
        for data in batches.run(rows[start : start + side], lambda some: _read(model, some, request, shared)):
            yield replace(data, first=first)
            first += data.count


def _budget(model: PreTrainedModel, request: CellRequest, batch_tokens: int) -> int:
    """Tokens of a batch: fewer where the residual stream or heads' outputs of many layers are kept."""
    needs, L = request.needs, int(model.config.num_hidden_layers)
    layers = len(request.states) / request.k + needs.residual * (L + 1) + needs.head_outputs * L
    each = int(layers * model.config.hidden_size * 4)
    return min(batch_tokens, RESIDUAL_BYTES // each) if each else batch_tokens


def _read(
    model: PreTrainedModel, rows: Sequence[Sequence[Ids]], request: CellRequest, shared: _Keys | None
) -> list[CellData]:
    """What was read of each row. shared: keys and values of the prefix; None to pack."""
    capture = _PackedCapture(model, request, rows) if shared is None else _BatchCapture(model, request, rows)
    with logits_at(model, ()):
        if shared is None:
            _run_packed(model, capture, request)
        else:
            _run_batch(model, capture, request, shared)
    return capture.outputs()


def _run_packed(model: PreTrainedModel, capture: _CellCapture, request: CellRequest) -> None:
    """Each row of cells behind the prefix, in one sequence."""
    counts = torch.tensor([len(row) for row in capture.rows])[:, None]
    B, C, P, k = len(counts), int(counts.max()), len(request.prefix), request.k
    prefix = torch.tensor(request.prefix).expand(B, P)
    ids = torch.cat([prefix, capture.padded.view(B, C * k)], 1).to(model.device)
    behind = torch.arange(P, P + k).repeat(C)
    positions = torch.cat([torch.arange(P), behind]).expand(B, -1).to(model.device)
    place = torch.arange(1, C + 1).repeat_interleave(k)
    segments = torch.cat([torch.zeros(B, P, dtype=torch.long), torch.where(place <= counts, place, -1)], 1)
    # The mask of ones keeps transformers from reading jumps in the positions as separate documents.
    ones = torch.ones_like(ids)
    with capture.hooks(Packing(positions, segments.to(model.device))):
        model(ids, use_cache=False, attention_mask=ones, position_ids=positions)


#: The name that the model gives to keys and values of former tokens, and those.
_Keys = tuple[str, Any]


def _keys_of(model: PreTrainedModel, prefix: Ids) -> _Keys:
    with logits_at(model, ()):
        out = model(torch.tensor([prefix], device=model.device), use_cache=True)
    name = "cache" if "cache" in out else "past_key_values"  # before transformers 5.24
    return name, out[name]


def _run_batch(model: PreTrainedModel, capture: _CellCapture, request: CellRequest, shared: _Keys) -> None:
    """All cells as a batch behind the keys and values of the prefix."""
    name, keys = shared
    keys, cells, P = copy.deepcopy(keys), capture.padded.to(model.device), len(request.prefix)  # a pass adds its own
    keys.batch_repeat_interleave(len(cells))
    positions = torch.arange(P, P + request.k, device=model.device).expand(len(cells), -1)
    with capture.hooks():
        model(cells, position_ids=positions, use_cache=True, **{name: keys})


class _CellCapture:
    """Takes from every layer what was asked for of rows of cells, in the same shape however the cells were laid out.

    n cells in all, padded so that every row has as many.
    """

    def __init__(self, model: PreTrainedModel, request: CellRequest, rows: Sequence[Sequence[Ids]]) -> None:
        self._model, self._request, self.rows = model, request, rows
        self._kept: dict[str, dict[int, Tensor]] = {}

    @property
    def padded(self) -> Tensor:
        """(n, k) token ids."""
        C = max(map(len, self.rows))
        return torch.tensor([cell for row in self.rows for cell in (*row, *[row[0]] * (C - len(row)))])

    def weights(self, attention: Attention) -> Tensor:
        """Attention of a cell's tokens to prefix and cell, (n, H, k, P + k)."""
        raise NotImplementedError

    def values(self, attention: Attention) -> Tensor:
        """What they attend to, (n, H_kv, P + k, d)."""
        raise NotImplementedError

    def tokens(self, x: Tensor) -> Tensor:
        """Of something of every token of the pass (B, T, ...) that of the cells, (n, k, ...)."""
        raise NotImplementedError

    @contextmanager
    def hooks(self, packing: Packing | None = None) -> Iterator[None]:
        """Within this block a forward pass over the cells is read."""
        needs, request = self._request.needs, self._request
        observer = self._observe if needs.attention or needs.last_row or needs.norm_weighted else None
        edit = self._outputs if needs.head_outputs else None
        stream = residual_stream(self._model, self._take) if needs.residual or request.states else nullcontext()
        with during(observer, packing, edit), stream:
            yield

    def _keep(self, name: str, layer: int, x: Tensor) -> None:
        self._kept.setdefault(name, {})[layer] = x.float().cpu()

    def _observe(self, layer: int, attention: Attention) -> None:
        needs, P = self._request.needs, len(self._request.prefix)
        p = self.weights(attention)
        if needs.attention:
            self._keep("sink", layer, p[..., 0])
            self._keep("inside", layer, p[..., P:])
        if needs.last_row:
            self._keep("last_row", layer, p[:, :, -1])
        if needs.norm_weighted and self._request.grams is not None:
            spans = torch.arange(P, p.shape[-1], device=p.device).expand(len(p), -1)
            weighted = norm_weighted_attention(p, self.values(attention), self._request.grams[layer], spans)
            self._keep("norm_weighted", layer, weighted)

    def _outputs(self, layer: int, z: Tensor) -> Tensor:
        self._keep("head_outputs", layer, self.tokens(z.detach()))
        return z

    def _take(self, place: int, hidden: Tensor) -> None:
        if self._request.needs.residual:
            self._keep("residual", place, self.tokens(hidden))
        if place in self._request.states:
            self._keep("states", place, self.tokens(hidden)[:, -1])

    def outputs(self) -> list[CellData]:
        """What was kept of each row."""
        L, states = int(self._model.config.num_hidden_layers), self._request.states
        places = {"residual": tuple(range(L + 1)), "states": states}
        arrays = {name: self._stacked(kept, places.get(name, tuple(range(L)))) for name, kept in self._kept.items()}
        bad = [
            name for name in ("sink", "inside", "residual", "states") if not np.isfinite(arrays.get(name, 0.0)).all()
        ]
        if bad:
            what = "attention weights" if bad[0] in ("sink", "inside") else "a residual stream"
            raise not_finite(what, len(self._request.prefix) + self._request.k)
        C = max(map(len, self.rows))
        return [
            self._row(row, {name: array[:, b * C : b * C + len(row)] for name, array in arrays.items()})
            for b, row in enumerate(self.rows)
        ]

    def _stacked(self, kept: dict[int, Tensor], places: Sequence[int]) -> NDArray[np.float32]:
        """Layer -> (n, ...) as (layers, n, ...)."""
        if missing := sorted(set(places) - set(kept)):
            raise unsupported(self._model, f"layers {missing} of {len(places)} were not read")
        return torch.stack([kept[place] for place in places]).numpy()

    def _row(self, row: Sequence[Ids], arrays: dict[str, NDArray[np.float32]]) -> CellData:
        """One row as `CellData`; arrays: name -> (layers, cells, ...)."""
        P, k = len(self._request.prefix), self._request.k
        last, weighted = arrays.get("last_row"), arrays.get("norm_weighted")
        if self._request.needs.norm_weighted and weighted is None:
            L, H = int(self._model.config.num_hidden_layers), int(self._model.config.num_attention_heads)
            weighted = np.full((L, len(row), H, k, k), np.nan, np.float32)
        data = TextData(
            ids=(*self._request.prefix, *(token for cell in row for token in (*cell, -1))),
            band=_band(arrays["sink"], arrays["inside"], P) if "sink" in arrays else None,
            last_row=None if last is None else np.moveaxis(last, 1, 0),
            norm_weighted=None if weighted is None else np.moveaxis(weighted, 1, 0),
            residual=_line(arrays["residual"], P) if "residual" in arrays else None,
            head_outputs=_line(arrays["head_outputs"], P) if "head_outputs" in arrays else None,
        )
        states = arrays["states"].copy() if "states" in arrays else None  # so that the batch is not kept for it
        return CellData(first=0, count=len(row), prefix=P, k=k, data=data, states=states)


class _PackedCapture(_CellCapture):
    """Of rows that hold the prefix and C cells: T = P + C k."""

    def weights(self, attention: Attention) -> Tensor:
        P, k = len(self._request.prefix), self._request.k
        B, H, T, _ = attention.query.shape
        C = (T - P) // k
        index = torch.arange(P, T, device=attention.query.device).expand(B, -1)
        p = attention.probabilities(index).view(B, H, C, k, T)
        own = p[..., P:].view(B, H, C, k, C, k).diagonal(0, 2, 4)  # (B, H, k, k, C): each cell's weights in itself
        parts = [p[..., :P].transpose(1, 2), own.movedim(-1, 1)]
        return torch.cat(parts, -1).flatten(0, 1)

    def values(self, attention: Attention) -> Tensor:
        P, k = len(self._request.prefix), self._request.k
        B, groups, _, d = attention.value.shape
        own = attention.value[:, :, P:].reshape(B, groups, -1, k, d).transpose(1, 2)  # (B, C, H_kv, k, d)
        front = attention.value[:, None, :, :P].expand(-1, own.shape[1], -1, -1, -1)
        return torch.cat([front, own], 3).flatten(0, 1)

    def tokens(self, x: Tensor) -> Tensor:
        P, k = len(self._request.prefix), self._request.k
        return x[:, P:].reshape(-1, k, *x.shape[2:])


class _BatchCapture(_CellCapture):
    """Of cells that are a batch. A layer with a sliding window may have dropped keys in front: their weight is 0."""

    def weights(self, attention: Attention) -> Tensor:
        n, k = len(attention.query), self._request.k
        p = attention.probabilities(torch.arange(k, device=attention.query.device).expand(n, k))
        return torch.nn.functional.pad(p, (self._dropped(attention), 0))

    def values(self, attention: Attention) -> Tensor:
        return torch.nn.functional.pad(attention.value, (0, 0, self._dropped(attention), 0))

    def _dropped(self, attention: Attention) -> int:
        return len(self._request.prefix) + self._request.k - attention.key.shape[2]

    def tokens(self, x: Tensor) -> Tensor:
        return x


def _band(sink: NDArray[np.float32], inside: NDArray[np.float32], prefix: int) -> NDArray[np.float32]:
    """sink (L, n, H, k) and inside (L, n, H, k, k) as the band of `TextData`: (L, H, prefix + n (k + 1), k)."""
    L, n, H, k = sink.shape
    band = np.full((L, n, k, H, k), np.nan, np.float32)
    band[..., 0] = sink.swapaxes(2, 3)
    for i in range(1, k):
        for d in range(1, i + 1):
            band[:, :, i, :, d] = inside[..., i, i - d]
    return np.moveaxis(_line(band, prefix), 1, 2)


def _line(x: NDArray[np.float32], prefix: int) -> NDArray[np.float32]:
    """(L, n, k, ...) as (L, prefix + n (k + 1), ...), NaN for the prefix and behind each cell."""
    L, n, k, *rest = x.shape
    out = np.full((L, prefix + n * (k + 1), *rest), np.nan, np.float32)
    places = prefix + (np.arange(n)[:, None] * (k + 1) + np.arange(k)).ravel()
    out[:, places] = x.reshape(L, n * k, *rest)
    return out
