"""Runs many conditions (sets of ablated heads) of one model on the same texts.

Conditions run side by side in one batch; a mask gives the heads that are ablated in each row. The layers below the
lowest edited layer give the same outputs under every condition, so they are computed once for each batch of texts and
kept between calls (`LayerCache`). A prompt and its choices share one packed row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bindscope.engine.attention import Attention, Edit, Rewire, during
from bindscope.engine.batches import ShrinkingBatches
from bindscope.engine.capture import TextInput
from bindscope.engine.edits import Spans, bins, knocking_out, mask, replacing
from bindscope.engine.passes import LogProbs, Packed, forward, pack
from bindscope.engine.trunk import kept, repeated, starting_above
from bindscope.records import Head, Mode, check_heads

#: Packed tokens of the rows in one batch, and of rows times conditions in one forward pass.
ROW_TOKENS, PASS_TOKENS = 512, 2048
#: Conditions that run side by side in one pass over a full batch of rows.
CONDITIONS_PER_PASS = PASS_TOKENS // ROW_TOKENS
#: Bytes of layer outputs that `LayerCache` keeps at most.
CACHE_BYTES = 1 << 30

#: For each continuation of a text, log P of each of its tokens (nats).
Logs = list[LogProbs]


@dataclass(frozen=True)
class EditValues:
    """The values that replace the outputs of ablated heads; None for what the mode does not use.

    means: layer -> (bins, H, d) mean head outputs over neutral text, by position bin
    last: last position of the neutral text; later positions use its bin
    donors: for each row, the token ids of another prompt that is at least as long
    spans: for each row, the positions of the term's tokens
    biases: layer -> (H, d) value biases
    """

    means: dict[int, Tensor] | None = None
    last: int = 0
    donors: Sequence[tuple[int, ...]] | None = None
    spans: Sequence[tuple[int, ...]] | None = None
    biases: dict[int, Tensor] | None = None


class LayerCache:
    """Values that are the same under all conditions: outputs of layers below the edits, head outputs on donors.

    The cache keeps them between calls of `run` on the same rows, up to `CACHE_BYTES`; `run` computes the rest again.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[int, ...], int], Any] = {}
        self._bytes = 0

    def get(
        self, kind: str, members: Sequence[int], wanted: set[int], compute: Callable[[set[int]], dict[int, Any]]
    ) -> dict[int, Any]:
        """Layer -> value for each of some layers.

        kind: name of the value ("below", "donated")
        members: indices of the rows in the batch
        wanted: layers
        compute: gives layer -> value for the layers that the cache does not hold
        """
        batch = tuple(members)
        values = {at: self._values[kind, batch, at] for at in wanted if (kind, batch, at) in self._values}
        if lacking := wanted - values.keys():
            computed = compute(lacking)
            for layer, value in computed.items():
                size = _bytes(value)
                if self._bytes + size <= CACHE_BYTES:
                    self._values[kind, batch, layer] = value
                    self._bytes += size
            values |= computed
        return values


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, tuple) else 0


@torch.no_grad()
def run(
    model: PreTrainedModel,
    rows: Sequence[TextInput],
    conditions: Sequence[Sequence[Head]],
    mode: Mode,
    values: EditValues,
    *,
    share: bool = True,
    cache: LayerCache | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[list[Logs]]:
    """log P of every continuation's tokens under every condition: [condition][row][continuation], in nats.

    model: the model, with the hook installed
    rows: the texts with their continuations
    conditions: the heads that each condition ablates
    mode: how heads are ablated, see `edits`
    values: what replaces the outputs of ablated heads
    share: compute the layers below the lowest edited head once for all conditions; tests set it to False to check that
        sharing changes no number
    cache: the cache of earlier calls on the same rows and values
    progress: called with the number of conditions, or the fraction of one, that has been computed
    Raises RequestError for a head that the model does not have.
    """
    heads = int(model.config.num_attention_heads)
    for chosen in conditions:
        check_heads(chosen, int(model.config.num_hidden_layers), heads)
    lowest: dict[int, list[int]] = {}
    for c, chosen in enumerate(conditions):
        lowest.setdefault(min((layer for layer, _ in chosen), default=0) if share else 0, []).append(c)
    out: list[list[Logs]] = [[[] for _ in rows] for _ in conditions]
    work = _Work(
        model=model,
        rows=rows,
        conditions=conditions,
        mode=mode,
        values=values,
        lowest=lowest,
        cache=cache or LayerCache(),
        batches=ShrinkingBatches(),
    )
    batches = ShrinkingBatches()
    for members in _row_batches(rows):
        for i, by_condition in zip(members, batches.run(members, work.of), strict=True):
            for c, logs in enumerate(by_condition):
                out[c][i] = logs
        if progress is not None:
            progress(len(conditions) * len(members) / len(rows))
    return out


@dataclass(frozen=True)
class _Work:
    """The arguments of `run`, with the conditions grouped by their lowest edited layer.

    lowest: layer -> indices of the conditions whose lowest edited head is in it
    """

    model: PreTrainedModel
    rows: Sequence[TextInput]
    conditions: Sequence[Sequence[Head]]
    mode: Mode
    values: EditValues
    lowest: dict[int, list[int]]
    cache: LayerCache
    batches: ShrinkingBatches

    def of(self, members: Sequence[int]) -> list[list[Logs]]:
        """log P for the rows of one batch: [row][condition][continuation]."""
        batch = pack([self.rows[i] for i in members], self.model.device)
        out: list[list[Logs]] = [[[] for _ in self.conditions] for _ in members]
        below = {layer - 1 for layer in self.lowest if layer > 0}
        outputs = self.cache.get("below", members, below, partial(_below, self.model, batch))
        size = max(1, PASS_TOKENS // batch.ids.numel())
        for layer, group in self.lowest.items():
            some = partial(self._edited, members, batch, layer, outputs.get(layer - 1))
            for start in range(0, len(group), size):
                part = group[start : start + size]
                for c, by_row in zip(part, self.batches.run(part, some), strict=True):
                    for n, logs in enumerate(by_row):
                        out[n][c] = logs
        return out

    def _edited(
        self, members: Sequence[int], batch: Packed, lowest: int, below: Any, part: Sequence[int]
    ) -> list[list[Logs]]:
        """log P from one forward pass: [condition][row][continuation].

        below: output of the layer under the lowest edited one
        """
        model = self.model
        heads = int(model.config.num_attention_heads)
        ablated = mask([self.conditions[c] for c in part], len(members), heads, model.device)
        donated = _donor_outputs(model, self.mode, self.values, members, self.cache, set(ablated))
        edit, rewire = _edits(self.mode, ablated, self.values, batch.positions, donated, members, len(part))
        with starting_above(model, lowest - 1, repeated(below, len(part))):
            logs = forward(model, batch.times(len(part)), edit=edit, rewire=rewire)
        return [logs[n * len(members) : (n + 1) * len(members)] for n in range(len(part))]


def _below(model: PreTrainedModel, batch: Packed, wanted: set[int]) -> dict[int, Any]:
    with kept(model, wanted) as outputs:
        forward(model, batch)
    return outputs


def _donor_outputs(
    model: PreTrainedModel, mode: Mode, values: EditValues, members: Sequence[int], cache: LayerCache, wanted: set[int]
) -> dict[int, Tensor] | None:
    """Layer -> (B, S, H, d) outputs of the heads on the donors of the members; None unless the mode is resample."""
    if mode != "resample":
        return None
    assert values.donors is not None
    texts = [values.donors[i] for i in members]
    return cache.get("donated", members, wanted, partial(outputs_of, model, texts))


def _row_batches(rows: Sequence[TextInput]) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        size = max(1, ROW_TOKENS // max(1, len(rows[order[start]])))
        yield order[start : start + size]
        start += size


def _edits(
    mode: Mode,
    ablated: dict[int, Tensor],
    values: EditValues,
    positions: Tensor,
    donated: dict[int, Tensor] | None,
    members: Sequence[int],
    copies: int,
) -> tuple[Edit | None, Rewire | None]:
    """The edit of `copies` conditions of the same rows.

    positions: (B, T) positions of the rows' tokens
    donated: layer -> (B, S, H, d) head outputs on the donors, S at least the largest position + 1
    """
    if mode == "knockout":
        assert values.spans is not None
        spans = [values.spans[i] for i in members]
        width = max(len(s) for s in spans)
        padded = [[*s, *[-1] * (width - len(s))] for s in spans]
        tokens = torch.tensor(padded, dtype=torch.long, device=positions.device).repeat(copies, 1)
        return None, knocking_out(ablated, Spans(tokens))
    if mode == "zero":
        return replacing(ablated, None), None
    if mode == "published":
        assert values.biases is not None
        return replacing(ablated, {layer: values.biases[layer] for layer in ablated}), None
    if mode == "mean":
        assert values.means is not None
        places = bins(positions, values.last).repeat(copies, 1)
        means = {layer: values.means[layer] for layer in ablated}
        return replacing(ablated, {layer: m[places.to(m.device)] for layer, m in means.items()}), None
    assert donated is not None
    at = positions[:, :, None, None]
    there = {layer: z.gather(1, at.to(z.device).expand(-1, -1, *z.shape[2:])) for layer, z in donated.items()}
    return replacing(ablated, {layer: z.repeat(copies, 1, 1, 1) for layer, z in there.items()}), None


def decoding(
    model: PreTrainedModel, heads: Sequence[Head], mode: Mode, values: EditValues, members: Sequence[int]
) -> tuple[Edit | None, Rewire | None]:
    """The edit of one condition during decoding, for one batch of texts of equal length. Make a new one for each batch.

    model: the model
    heads: the heads to ablate
    mode: how they are ablated
    values: what replaces their outputs; donors must be as long as a text with its completion
    members: indices of the batch's texts in `values`
    """
    count = int(model.config.num_attention_heads)
    ablated = mask([heads], len(members), count, model.device)
    donated = _donor_outputs(model, mode, values, members, LayerCache(), set(ablated))
    seen: Counter[int] = Counter()

    def now(layer: int, z: Tensor) -> tuple[Edit | None, Rewire | None]:
        B, T = z.shape[:2]
        start = seen[layer]
        seen[layer] += T
        positions = torch.arange(start, start + T, device=z.device).expand(B, T)
        here = {layer: donated[layer]} if donated else None
        return _edits(mode, {layer: ablated[layer]}, values, positions, here, members, 1)

    def edit(layer: int, z: Tensor) -> Tensor:
        replace = now(layer, z)[0] if layer in ablated else None
        return replace(layer, z) if replace else z

    def rewire(layer: int, z: Tensor, attention: Attention) -> Tensor:
        if layer not in ablated or seen[layer]:  # new tokens hold no token of the span, so only the prompt is edited
            return z
        knock_out = now(layer, z)[1]
        return knock_out(layer, z, attention) if knock_out else z

    return (None, rewire) if mode == "knockout" else (edit, None)


@torch.no_grad()
def outputs_of(model: PreTrainedModel, texts: Sequence[tuple[int, ...]], wanted: set[int]) -> dict[int, Tensor]:
    """Layer -> (B, T, H, d) outputs of the heads on texts, which are padded at the end to the longest.

    texts: token ids of each text
    wanted: layers
    """
    T = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (T - len(text))] for text in texts], device=model.device)
    outputs: dict[int, Tensor] = {}

    def keep(layer: int, z: Tensor) -> Tensor:
        if layer in wanted:
            outputs[layer] = z
        return z

    with during(edit=keep):
        model(ids, use_cache=False)
    return outputs


@torch.no_grad()
def neutral_means(model: PreTrainedModel, texts: Sequence[tuple[int, ...]]) -> tuple[dict[int, Tensor], int]:
    """Layer -> (bins, H, d) mean head outputs over texts by position bin, and the last position of the longest text."""
    layers, last = int(model.config.num_hidden_layers), max(map(len, texts)) - 1
    sums: dict[int, Tensor] = {}
    counts: Tensor | None = None
    for text in texts:
        places = bins(torch.arange(len(text), device=model.device), last)
        size = int(bins(torch.tensor([last]), last)[0]) + 1
        for layer, z in outputs_of(model, [text], set(range(layers))).items():
            total = sums.setdefault(layer, torch.zeros(size, *z.shape[2:], dtype=torch.float32, device=z.device))
            total.index_add_(0, places.to(z.device), z[0].float())
        counts = (0 if counts is None else counts) + torch.bincount(places, minlength=size)
    assert counts is not None
    counts = counts[:, None, None].clamp(min=1)
    return {layer: total / counts.to(total.device) for layer, total in sums.items()}, last
