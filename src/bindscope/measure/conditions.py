"""Many edits of one model on the same rows, for little more than the layers that they change.

Conditions are run side by side in one batch, a mask saying which row loses which heads. Layers below the lowest edited
one are computed once per batch of rows and shared by all conditions; a prompt and its choices share one packed row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bindscope.measure.attention import Edit, Rewire, recording
from bindscope.measure.edits import Head, Spans, bins, cutting, mask, replacing
from bindscope.measure.forward import Packed, Row, forward, pack
from bindscope.measure.memory import Fitting
from bindscope.measure.trunk import kept, repeated, starting_above
from bindscope.records import Mode

#: Packed tokens of the rows in one batch, and of rows times conditions in one forward pass.
ROW_TOKENS, PASS_TOKENS = 512, 2048

Logs = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Material:
    """What edits need beside the heads. means: layer -> (bins, H, d) by position over neutral text; last: its longest
    position; donors: for each row, the tokens of another prompt at least as long; spans: each row's term;
    biases: layer -> (H, d)."""

    means: dict[int, Tensor] | None = None
    last: int = 0
    donors: Sequence[tuple[int, ...]] | None = None
    spans: Sequence[tuple[int, ...]] | None = None
    biases: dict[int, Tensor] | None = None


@torch.inference_mode()
def run(
    model: PreTrainedModel,
    rows: Sequence[Row],
    conditions: Sequence[Sequence[Head]],
    mode: Mode,
    material: Material,
    *,
    share: bool = True,
    progress: Callable[[float], None] | None = None,
) -> list[list[Logs]]:
    """log P of every continuation's tokens: [condition][row][continuation]. The model must be under `hooked`.

    share: skip the layers below the lowest edited head of each group of conditions (False is for checking that this
    changes nothing). progress gets shares of a condition that were done.
    """
    lowest: dict[int, list[int]] = {}
    for c, chosen in enumerate(conditions):
        lowest.setdefault(min((layer for layer, _ in chosen), default=0) if share else 0, []).append(c)
    out: list[list[Logs]] = [[[] for _ in rows] for _ in conditions]
    work = _Work(model, rows, conditions, mode, material, lowest, Fitting())
    fitting = Fitting()
    for members in _row_batches(rows):
        for i, found in zip(members, fitting.run(members, work.of), strict=True):
            for c, logs in enumerate(found):
                out[c][i] = logs
        if progress is not None:
            progress(len(conditions) * len(members) / len(rows))
    return out


@dataclass(frozen=True)
class _Work:
    """What `run` was asked for; lowest: layer -> the conditions whose lowest edited head is there."""

    model: PreTrainedModel
    rows: Sequence[Row]
    conditions: Sequence[Sequence[Head]]
    mode: Mode
    material: Material
    lowest: dict[int, list[int]]
    fitting: Fitting

    def of(self, members: Sequence[int]) -> list[list[Logs]]:
        """[row][condition][continuation], for rows that share their batches."""
        batch = pack([self.rows[i] for i in members], self.model.device)
        out: list[list[Logs]] = [[[] for _ in self.conditions] for _ in members]
        below = {layer - 1 for layer in self.lowest if layer > 0}
        with kept(self.model, below) as outputs:
            if below:
                forward(self.model, batch)
        size = max(1, PASS_TOKENS // batch.ids.numel())
        for layer, group in self.lowest.items():

            def some(part: Sequence[int], layer: int = layer) -> list[list[Logs]]:
                return self._edited(part, members, batch, layer, outputs.get(layer - 1))

            for start in range(0, len(group), size):
                part = group[start : start + size]
                for c, found in zip(part, self.fitting.run(part, some), strict=True):
                    for n, logs in enumerate(found):
                        out[n][c] = logs
        return out

    def _edited(
        self, part: Sequence[int], members: Sequence[int], batch: Packed, lowest: int, below: Any
    ) -> list[list[Logs]]:
        """[condition][row][continuation] of one forward pass; below: what leaves the layer under the lowest edit."""
        model = self.model
        heads = int(model.config.num_attention_heads)
        gone = mask([self.conditions[c] for c in part], len(members), heads, model.device)
        edit, rewire = _edits(model, self.mode, gone, self.material, batch, members, len(part))
        with starting_above(model, lowest - 1, repeated(below, len(part))):
            _, logs = forward(model, batch.times(len(part)), edit=edit, rewire=rewire)
        return [logs[n * len(members) : (n + 1) * len(members)] for n in range(len(part))]


def _row_batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        size = max(1, ROW_TOKENS // max(1, len(rows[order[start]])))
        yield order[start : start + size]
        start += size


def _edits(
    model: PreTrainedModel,
    mode: Mode,
    gone: dict[int, Tensor],
    material: Material,
    batch: Packed,
    members: Sequence[int],
    copies: int,
) -> tuple[Edit | None, Rewire | None]:
    if mode == "knockout":
        assert material.spans is not None
        spans = [material.spans[i] for i in members]
        width = max(len(s) for s in spans)
        tokens = torch.tensor([[*s, *[-1] * (width - len(s))] for s in spans], device=model.device)
        return None, cutting(gone, Spans(tokens.repeat(copies, 1)))
    if mode == "zero":
        return replacing(gone, None), None
    if mode == "published":
        assert material.biases is not None
        return replacing(gone, {layer: material.biases[layer] for layer in gone}), None
    if mode == "mean":
        assert material.means is not None
        places = bins(batch.positions, material.last).repeat(copies, 1)
        return replacing(gone, {n: m[places.to(m.device)] for n, m in material.means.items() if n in gone}), None
    assert material.donors is not None
    said = outputs_of(model, [material.donors[i] for i in members], set(gone))
    positions = batch.positions
    values = {
        layer: z.gather(1, positions.to(z.device)[:, :, None, None].expand(-1, -1, *z.shape[2:])).repeat(
            copies, 1, 1, 1
        )
        for layer, z in said.items()
    }
    return replacing(gone, values), None


def outputs_of(model: PreTrainedModel, texts: Sequence[tuple[int, ...]], wanted: set[int]) -> dict[int, Tensor]:
    """Layer -> heads' outputs (B, T, H, d) on plain texts, padded at the end to the longest."""
    T = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (T - len(text))] for text in texts], device=model.device)
    found: dict[int, Tensor] = {}

    def keep(layer: int, z: Tensor) -> Tensor:
        if layer in wanted:
            found[layer] = z
        return z

    with recording(edit=keep):
        model(ids, use_cache=False)
    return found


@torch.inference_mode()
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
