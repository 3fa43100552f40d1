"""Many edits of one model on the same texts, for little more than the cost of the layers that they change.

Conditions run side by side in one batch; a mask says which heads are ablated in which row. Layers below the lowest
edited one are computed once per batch of texts for all conditions, and kept between calls (`LayerCache`). A prompt
and its choices share one packed row.
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
#: Conditions that go side by side in one pass over a full batch of rows.
SIDE = PASS_TOKENS // ROW_TOKENS
#: Bytes of layer outputs that `LayerCache` keeps.
ROOM = 1 << 30

Logs = list[LogProbs]


@dataclass(frozen=True)
class EditValues:
    """What edits need beside the heads. means: layer -> (bins, H, d) by position over neutral text; last: its longest
    position; donors: for each row, the tokens of another prompt at least as long; spans: each row's term;
    biases: layer -> (H, d)."""

    means: dict[int, Tensor] | None = None
    last: int = 0
    donors: Sequence[tuple[int, ...]] | None = None
    spans: Sequence[tuple[int, ...]] | None = None
    biases: dict[int, Tensor] | None = None


class LayerCache:
    """What all conditions have in common, by rows of a batch and layer: outputs of the layers below the edits, heads'
    outputs on donors. Kept between calls of `run` on the same rows while it fits into ROOM, else computed again."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[int, ...], int], Any] = {}
        self._bytes = 0

    def get(
        self, kind: str, members: Sequence[int], wanted: set[int], compute: Callable[[set[int]], dict[int, Any]]
    ) -> dict[int, Any]:
        """Layer -> value for the wanted layers; compute gives those that are not kept."""
        batch = tuple(members)
        found = {at: self._found[kind, batch, at] for at in wanted if (kind, batch, at) in self._found}
        if lacking := wanted - found.keys():
            new = compute(lacking)
            for layer, value in new.items():
                size = _bytes(value)
                if self._bytes + size <= ROOM:
                    self._found[kind, batch, layer] = value
                    self._bytes += size
            found |= new
        return found


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
    """log P of every continuation's tokens: [condition][row][continuation].

    share: skip the layers below the lowest edited head of each group of conditions (False is for checking that this
    changes nothing); cache: what earlier calls on the same rows and values left. progress gets shares of a condition
    that were done. Raises RequestError for a head that the model does not have.
    """
    heads = int(model.config.num_attention_heads)
    for chosen in conditions:
        check_heads(chosen, int(model.config.num_hidden_layers), heads)
    lowest: dict[int, list[int]] = {}
    for c, chosen in enumerate(conditions):
        lowest.setdefault(min((layer for layer, _ in chosen), default=0) if share else 0, []).append(c)
    out: list[list[Logs]] = [[[] for _ in rows] for _ in conditions]
    work = _Work(model, rows, conditions, mode, values, lowest, cache or LayerCache(), ShrinkingBatches())
    batches = ShrinkingBatches()
    for members in _row_batches(rows):
        for i, found in zip(members, batches.run(members, work.of), strict=True):
            for c, logs in enumerate(found):
                out[c][i] = logs
        if progress is not None:
            progress(len(conditions) * len(members) / len(rows))
    return out


@dataclass(frozen=True)
class _Work:
    """What `run` was asked for; lowest: layer -> the conditions whose lowest edited head is there."""

    model: PreTrainedModel
    rows: Sequence[TextInput]
    conditions: Sequence[Sequence[Head]]
    mode: Mode
    values: EditValues
    lowest: dict[int, list[int]]
    cache: LayerCache
    batches: ShrinkingBatches

    def of(self, members: Sequence[int]) -> list[list[Logs]]:
        """[row][condition][continuation], for rows that share their batches."""
        batch = pack([self.rows[i] for i in members], self.model.device)
        out: list[list[Logs]] = [[[] for _ in self.conditions] for _ in members]
        below = {layer - 1 for layer in self.lowest if layer > 0}
        outputs = self.cache.get("below", members, below, partial(_below, self.model, batch))
        size = max(1, PASS_TOKENS // batch.ids.numel())
        for layer, group in self.lowest.items():
            some = partial(self._edited, members, batch, layer, outputs.get(layer - 1))
            for start in range(0, len(group), size):
                part = group[start : start + size]
                for c, found in zip(part, self.batches.run(part, some), strict=True):
                    for n, logs in enumerate(found):
                        out[n][c] = logs
        return out

    def _edited(
        self, members: Sequence[int], batch: Packed, lowest: int, below: Any, part: Sequence[int]
    ) -> list[list[Logs]]:
        """[condition][row][continuation] of one forward pass; below: what leaves the layer under the lowest edit."""
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
    """What the heads say on the members' donors, where the mode asks for it."""
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
    """The edit of `copies` conditions of the same rows. positions: (B, T) of the rows' tokens; donated: layer ->
    (B, S, H, d) on donors, S at least the largest position + 1."""
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
    """The edit of one condition while the members' texts, all of one length, are continued token by token; made anew
    for every batch. Donors must be as long as a text with its continuation."""
    count = int(model.config.num_attention_heads)
    ablated = mask([heads], len(members), count, model.device)
    donated = _donor_outputs(model, mode, values, members, LayerCache(), set(ablated))
    seen: Counter[int] = Counter()

    def now(layer: int, z: Tensor) -> tuple[Edit | None, Rewire | None]:
        B, T = z.shape[:2]
        start = seen[layer]
        seen[layer] += T
        positions = torch.arange(start, start + T, device=z.device).expand(B, T)
        mine = {layer: donated[layer]} if donated else None
        return _edits(mode, {layer: ablated[layer]}, values, positions, mine, members, 1)

    def edit(layer: int, z: Tensor) -> Tensor:
        found = now(layer, z)[0] if layer in ablated else None
        return found(layer, z) if found else z

    def rewire(layer: int, z: Tensor, attention: Attention) -> Tensor:
        if layer not in ablated or seen[layer]:  # the term stands in the text, none of it in what is written
            return z
        found = now(layer, z)[1]
        return found(layer, z, attention) if found else z

    return (None, rewire) if mode == "knockout" else (edit, None)


@torch.no_grad()
def outputs_of(model: PreTrainedModel, texts: Sequence[tuple[int, ...]], wanted: set[int]) -> dict[int, Tensor]:
    """Layer -> heads' outputs (B, T, H, d) on plain texts, padded at the end to the longest."""
    T = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (T - len(text))] for text in texts], device=model.device)
    found: dict[int, Tensor] = {}

    def keep(layer: int, z: Tensor) -> Tensor:
        if layer in wanted:
            found[layer] = z
        return z

    with during(edit=keep):
        model(ids, use_cache=False)
    return found


@torch.no_grad()
def neutral_means(model: PreTrainedModel, texts: Sequence[tuple[int, ...]]) -> tuple[dict[int, Tensor], int]:
    """Layer -> (bins, H, d): mean head outputs over texts by position bin; and the last position that is covered."""
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
