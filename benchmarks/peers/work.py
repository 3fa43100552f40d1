"""What every program gets, and the reduction that all share: attention weights -> EB*.

Token ids are given, so all see the same input; rows are padded on the right, where causal attention never sees it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

#: Padded tokens in one batch, as bindscope has it.
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Row:
    """A prompt: its text and ids, the positions of the term (empty: none), the choices as ids and as text."""

    id: str
    text: str
    ids: tuple[int, ...]
    span: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    choice_texts: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """Rows by what is measured on them; neutral and premises: the texts that bindscope also reads, for its controls."""

    binding: tuple[Row, ...]
    recognition: tuple[Row, ...]
    generation: tuple[Row, ...]
    max_new_tokens: int
    neutral: tuple[Row, ...] = ()
    premises: tuple[Row, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Work:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            Row(
                row["id"],
                row["text"],
                tuple(row["ids"]),
                tuple(row.get("span") or ()),
                tuple(map(tuple, row.get("choices") or ())),
                tuple(row.get("choice_texts") or ()),
            )
            for row in raw["rows"]
        ]
        binding, recognition, generation, neutral, premises = (
            tuple(rows[i] for i in raw.get(name, ()))
            for name in ("binding", "recognition", "generation", "neutral", "premises")
        )
        return cls(binding, recognition, generation, raw["max_new_tokens"], neutral, premises)


def batches(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of texts of like length together, longest first, at most BATCH_TOKENS padded tokens in a batch.

    One that is a quarter full ends where a text would be padded by more than a fifth. As bindscope has it.
    """
    batch: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        longest = len(texts[batch[0]]) if batch else 0
        short = len(texts[i]) < 0.8 * longest and len(batch) * longest >= BATCH_TOKENS / 4
        if batch and ((len(batch) + 1) * longest > BATCH_TOKENS or short):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(texts: Sequence[Sequence[int]]) -> np.ndarray:
    """(B, T) ids, padded on the right with 0."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for b, text in enumerate(texts):
        ids[b, : len(text)] = text
    return ids


def eb_star(layers: Iterable[np.ndarray], span: Sequence[int]) -> float:
    """layers: attention weights (H, T, T) of one prompt, layer by layer.

    BSI is the mean over pairs i > j of the span of the weight from i to j, EB of a layer the largest head's less the
    mean head's, EB* the largest layer's (Tran 2026).
    """
    pairs = [(i, j) for n, i in enumerate(span) for j in span[:n]]
    later, earlier = (list(side) for side in zip(*pairs, strict=True))
    bsi = np.stack([layer[:, later, earlier].mean(-1) for layer in layers])  # (L, H)
    return float((bsi.max(1) - bsi.mean(1)).max())


def tokens(continuations: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """(N, length) generated ids, -1 behind the end of each."""
    out = np.full((len(continuations), length), -1, np.int64)
    for n, ids in enumerate(continuations):
        out[n, : len(ids)] = ids
    return out
