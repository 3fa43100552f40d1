"""Token rows -> log-probabilities of continuations and bands of attention, from one forward pass.

A row is a prompt with any number of continuations. Packed, they share one sequence: the prompt is encoded once, each
continuation sees the prompt and itself at positions that follow the prompt. The vocabulary projection is applied only
where a token of a continuation is predicted; where none is, the pass ends behind the attention of the last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bindscope.engine.attention import Attention, Edit, Look, Packing, Rewire, during, unsupported
from bindscope.engine.batches import Fitting
from bindscope.engine.projections import Grams, pairs, shares
from bindscope.errors import MeasureError

#: Padded tokens in one batch.
BATCH_TOKENS = 2048
#: A row shorter than this share of the longest does not join a batch that is a quarter full.
_LEAST_SHARE = 0.8

#: Rows of logits whose softmax is taken at a time: they stay in a processor's cache.
_CACHED = 16


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt and of each continuation; `band`: how far below the diagonal attention is read, or 0;
    `span`: positions of the term's tokens, whose whole rows are read, or none."""

    ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...] = ()
    band: int = 0
    span: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens in the packed sequence: nothing is predicted from the last token of a continuation."""
        return len(self.ids) + sum(len(c) - 1 for c in self.continuations)


@dataclass(frozen=True)
class Reading:
    """logprobs[c]: log P of each token of continuation c. band: (L, H, T, 1 + width) float32 attention of position i
    to position 0 and to positions i - 1 ... i - width (NaN where that is before the start), or None.

    Of a row with a span, last: (L, H, S) attention of the term's last token to each of the S positions up to its own;
    valued: (L, H) value-weighted BSI, None where it was not asked for."""

    logprobs: tuple[NDArray[np.float32], ...]
    band: NDArray[np.float32] | None = None
    last: NDArray[np.float32] | None = None
    valued: NDArray[np.float64] | None = None


def stream(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    packed: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    grams: Grams | None = None,
) -> Iterator[tuple[int, Reading]]:
    """Each row's index and reading, longest rows first; the model must be under `hooked`.

    grams: of the model's output projections, where value-weighted BSI is wanted. What is not kept by the caller is
    not kept at all, so memory does not grow with the number of rows. A batch for which there is no memory is halved.
    Raises MeasureError where a log-probability or attention weight is not finite.
    """
    fitting = Fitting()
    for batch in _batches(rows, batch_tokens if packed else 0):
        part = [rows[i] for i in batch]
        found = fitting.run(
            part, lambda some: _packed(model, some, grams) if packed else _cached(model, some[0], grams)
        )
        for i, reading in zip(batch, found, strict=True):
            yield i, _finite(reading, rows[i])


def read(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    packed: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    grams: Grams | None = None,
) -> list[Reading]:
    """Readings of all rows, in their order."""
    found = dict(stream(model, rows, packed=packed, batch_tokens=batch_tokens, grams=grams))
    return [found[i] for i in range(len(rows))]


def _batches(rows: Sequence[Row], budget: int) -> Iterator[list[int]]:
    """Rows of like length together, longest first, so that a batch too large for memory fails at once.

    A batch of some size ends where a row would be padded by more than a fifth: prompts and questions differ much.
    """
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        T = len(rows[batch[0]]) if batch else 0
        short = len(rows[i]) < _LEAST_SHARE * T and len(batch) * T >= budget / 4
        if batch and ((len(batch) + 1) * T > budget or short):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True)
class Packed:
    """Rows side by side in tensors (B, T): ids, logical positions, segments (see `Packing`); reads: (row, position)
    whose logits are needed; targets: per row and continuation, indices into `reads` and the ids predicted there."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    reads: tuple[tuple[int, int], ...]
    targets: tuple[tuple[tuple[list[int], tuple[int, ...]], ...], ...]

    def times(self, n: int) -> Packed:
        """The same rows n times, copy after copy."""
        B, N = len(self.ids), len(self.reads)
        reads = tuple((b + c * B, t) for c in range(n) for b, t in self.reads)
        targets = tuple(
            tuple(([i + c * N for i in at], tokens) for at, tokens in row) for c in range(n) for row in self.targets
        )
        ids, positions, segments = (x.repeat(n, 1) for x in (self.ids, self.positions, self.segments))
        return Packed(ids, positions, segments, reads, targets)


def pack(rows: Sequence[Row], device: torch.device | str) -> Packed:
    """Each row with its continuations in one sequence, padded to the longest."""
    T = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), T, dtype=torch.long)
    positions = torch.zeros(len(rows), T, dtype=torch.long)
    segments = torch.full((len(rows), T), -1, dtype=torch.long)
    reads: list[tuple[int, int]] = []
    targets = []
    for b, row in enumerate(rows):
        n = len(row.ids)
        ids[b, :n] = torch.tensor(row.ids)
        positions[b, :n] = torch.arange(n)
        segments[b, :n] = 0
        first, at, mine = len(reads), n, []
        if row.continuations:
            reads.append((b, n - 1))  # every continuation's first token is predicted here
        for c, tokens in enumerate(row.continuations, 1):
            body = len(tokens) - 1
            ids[b, at : at + body] = torch.tensor(tokens[:-1], dtype=torch.long)
            positions[b, at : at + body] = torch.arange(n, n + body)
            segments[b, at : at + body] = c
            mine.append(([first, *range(len(reads), len(reads) + body)], tokens))
            reads += [(b, p) for p in range(at, at + body)]
            at += body
        targets.append(tuple(mine))
    return Packed(ids.to(device), positions.to(device), segments.to(device), tuple(reads), tuple(targets))


@torch.no_grad()
def _packed(model: PreTrainedModel, rows: Sequence[Row], grams: Grams | None) -> list[Reading]:
    seen = _Seen(rows, grams)
    logs = forward(model, pack(rows, model.device), look=seen.look)
    return seen.readings(model, logs)


class _Seen:
    """Takes from every layer of a forward pass what the rows of the batch ask for."""

    def __init__(self, rows: Sequence[Row], grams: Grams | None) -> None:
        self.rows, self.grams = rows, grams
        self.width = max(row.band for row in rows)
        spans = [row.span for row in rows]
        self.end = max((span[-1] + 1 for span in spans if span), default=0)
        k = max(map(len, spans))
        self.queries = torch.tensor([span + span[-1:] * (k - len(span)) if span else (0,) * k for span in spans])
        self.weights = None if grams is None else pairs(spans, k, self.end)
        self.bands: dict[int, Tensor] = {}
        self.last: dict[int, Tensor] = {}
        self.valued: dict[int, Tensor] = {}

    @property
    def look(self) -> Look | None:
        return self._look if self.width or self.end else None

    def _look(self, layer: int, attention: Attention) -> None:
        if self.width:
            self.bands[layer] = attention.band(self.width).cpu()  # (B, H, T, 1 + width)
        if self.end:
            p = attention.probabilities(self.queries.to(attention.query.device), self.end)  # (B, H, k, end)
            self.last[layer] = p[:, :, -1].cpu()
            if self.grams is not None and self.weights is not None:
                self.valued[layer] = shares(p, attention.value[:, :, : self.end], self.grams[layer], self.weights)

    def readings(self, model: PreTrainedModel, logs: Sequence[Sequence[NDArray[np.float32]]]) -> list[Reading]:
        """A reading for each row; logs: its log-probabilities."""
        bands, last, valued = (_stacked(model, found) for found in (self.bands, self.last, self.valued))
        out = []
        for b, row in enumerate(self.rows):
            out.append(
                Reading(
                    tuple(logs[b]),
                    bands[b, :, :, : len(row.ids), : 1 + row.band] if bands is not None and row.band else None,
                    last[b, :, :, : row.span[-1] + 1] if last is not None and row.span else None,
                    valued[b].astype(np.float64) if valued is not None and row.span else None,
                )
            )
        return out


def _stacked(model: PreTrainedModel, found: dict[int, Tensor]) -> NDArray[np.float32] | None:
    """Layer -> (B, ...) as (B, L, ...); None where nothing was asked for."""
    layers = int(model.config.num_hidden_layers)
    if not found:
        return None
    if missing := sorted(set(range(layers)) - set(found)):
        raise unsupported(model, f"layers {missing} of {layers} have no attention rows")
    return torch.stack([found[layer] for layer in range(layers)], 1).numpy()


@torch.no_grad()
def forward(
    model: PreTrainedModel,
    batch: Packed,
    *,
    look: Look | None = None,
    edit: Edit | None = None,
    rewire: Rewire | None = None,
) -> list[list[NDArray[np.float32]]]:
    """One forward pass under `hooked`: per row and continuation the log P of its tokens."""
    packing, extra = None, {}
    if batch.reads:
        # The mask of ones keeps transformers from reading jumps in the positions as separate documents.
        packing = Packing(batch.positions, batch.segments)
        extra = {"attention_mask": torch.ones_like(batch.segments), "position_ids": batch.positions}
    elif look is not None and _stoppable(model):
        look = _last_ends(look, int(model.config.num_hidden_layers))
    # Padding stands behind every real token, so without packing plain causal attention never sees it.
    with during(look, packing, edit, rewire), _logits_at(model, batch.reads):
        try:
            logits = model(batch.ids, use_cache=False, **extra).logits[0]
        except _Enough:
            return [[] for _ in batch.targets]
    flat = iter(_logprobs(logits, [t for row in batch.targets for t in row]))
    return [[next(flat) for _ in row] for row in batch.targets]


class _Enough(Exception):
    """Ends a forward pass from which nothing more is wanted."""


def _last_ends(look: Look, layers: int) -> Look:
    """The same look, which ends the pass when it has seen every layer."""
    left = set(range(layers))

    def then(layer: int, attention: Attention) -> None:
        look(layer, attention)
        left.discard(layer)
        if not left:
            raise _Enough

    return then


def _stoppable(model: PreTrainedModel) -> bool:
    """Whether a pass may end early: not where something done before a module (somebody's hook, weights brought in
    from elsewhere) waits for its end."""
    return not any(part._forward_pre_hooks or hasattr(part, "_hf_hook") for part in model.modules())


def _logprobs(logits: Tensor, targets: list[tuple[list[int], tuple[int, ...]]]) -> list[NDArray[np.float32]]:
    """logits (N, V); targets: for each continuation, the rows of `logits` and the ids predicted there."""
    if not targets:
        return []
    where = torch.tensor([i for reads, _ in targets for i in reads], device=logits.device)
    token = torch.tensor([t for _, tokens in targets for t in tokens], device=logits.device)
    parts = zip(torch.split(where, _CACHED), torch.split(token, _CACHED), strict=True)
    logs = [logits[at].float().log_softmax(-1).gather(1, ids[:, None])[:, 0] for at, ids in parts]
    flat = torch.cat(logs).cpu().numpy()
    ends = np.cumsum([len(tokens) for _, tokens in targets])[:-1]
    return list(np.split(flat, ends))


@contextmanager
def _logits_at(model: PreTrainedModel, reads: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Within this block the vocabulary projection receives only the hidden states at `reads`: logits are (1, N, V)."""
    head = model.get_output_embeddings()
    if head is None:
        raise unsupported(model, "it has no output embedding, so it predicts no next token")
    b, t = (torch.tensor([read[axis] for read in reads], dtype=torch.long) for axis in (0, 1))

    def select(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        device = args[0].device  # of the last layer; the weights of the projection may lie elsewhere
        return (args[0][b.to(device), t.to(device)][None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _cached(model: PreTrainedModel, row: Row, grams: Grams | None) -> list[Reading]:
    """One row without packing: the prompt's keys and values are computed once and shared by its continuations."""
    device, n = model.device, len(row.ids)
    seen = _Seen([row], grams)
    with during(seen.look), _logits_at(model, [(0, n - 1)]):
        out = model(torch.tensor([row.ids], device=device), use_cache=bool(row.continuations))
    if not row.continuations:
        return seen.readings(model, [()])
    C, m = len(row.continuations), max(len(c) for c in row.continuations)
    first = out.logits[0, :1]  # (1, V)
    logits = first.expand(C, -1)[:, None]
    if m > 1:
        name = "cache" if "cache" in out else "past_key_values"  # before transformers 5.24
        cache = out[name]
        cache.batch_repeat_interleave(C)
        ids = torch.zeros(C, m - 1, dtype=torch.long, device=device)
        for c, tokens in enumerate(row.continuations):
            ids[c, : len(tokens) - 1] = torch.tensor(tokens[:-1], dtype=torch.long)
        positions = torch.arange(n, n + m - 1, device=device).expand(C, -1)
        rest = model(ids, position_ids=positions, use_cache=True, **{name: cache}).logits
        logits = torch.cat([logits, rest], 1)  # (C, m, V)
    flat = logits.flatten(0, 1)
    targets = [([c * m + i for i in range(len(tokens))], tokens) for c, tokens in enumerate(row.continuations)]
    return seen.readings(model, [_logprobs(flat, targets)])


def _finite(reading: Reading, row: Row) -> Reading:
    for values in reading.logprobs:
        if not np.isfinite(values).all():
            raise MeasureError(
                f"the model gives log-probabilities that are not finite on a prompt of {len(row.ids)} tokens; "
                "use float32 or bfloat16 (float16 overflows on some models)"
            )
    if reading.band is not None and np.isnan(reading.band[..., 0]).any():
        raise MeasureError(
            f"the model gives attention weights that are not finite on a prompt of {len(row.ids)} tokens; "
            "use float32 or bfloat16 (float16 overflows on some models)"
        )
    return reading
