"""The inputs of measure functions: spans in one text, choices of a question, a completion, neutral text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bindscope.engine.data import Array, CompletionView, TextData
from bindscope.records import Prompt

_Array = TypeVar("_Array", bound=Any)

__all__ = ["ChoiceView", "CompletionView", "NeutralView", "SpanView"]


class SpanView:
    """n spans of k tokens: the term in a text (n = 1), windows of its null, or recombined pairings behind one prefix.

    Every array has the spans as its first axis. L layers, H heads, d width of a head, D width of the residual stream, S
    positions of a row. Reading a property that the measure's `Needs` do not name raises ValueError.

    starts: (n,) position of the first token of each span
    k: tokens of a span
    """

    def __init__(self, data: TextData, starts: Sequence[int] | NDArray[np.int64], k: int) -> None:
        """View the spans of a text.

        data: what the forward pass computed for the text
        starts: (n,) position of the first token of each span
        k: tokens of a span
        """
        self._data = data
        self.starts: NDArray[np.int64] = np.asarray(starts, dtype=np.int64)
        self.k = k

    @property
    def n(self) -> int:
        """Number of spans."""
        return len(self.starts)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Token ids of the spans, (n, k)."""
        return np.asarray(self._data.ids, dtype=np.int64)[self._positions]

    @property
    def _positions(self) -> NDArray[np.int64]:
        return self.starts[:, None] + np.arange(self.k)

    @cached_property
    def pairs(self) -> Array:
        """A[s_i, s_j] of all pairs i > j in the span, nearest first: (n, L, H, k (k - 1) / 2)."""
        return np.stack([self._weight(i, d) for i in range(1, self.k) for d in range(1, i + 1)], -1)

    @cached_property
    def attention(self) -> Array:
        """A[s_i, s_j] inside the span, 0 on and above the diagonal: (n, L, H, k, k)."""
        out = np.zeros((*self.pairs.shape[:3], self.k, self.k))
        places = [(i, i - d) for i in range(1, self.k) for d in range(1, i + 1)]
        for p, (i, j) in enumerate(places):
            out[..., i, j] = self.pairs[..., p]
        return out

    @cached_property
    def bsi(self) -> Array:
        """BSI, the binding strength of every head: the mean over pairs i > j of A[s_i, s_j], (n, L, H) (Tran 2026)."""
        return np.asarray(self.pairs.mean(-1))

    @cached_property
    def sink(self) -> Array:
        """A[s_i, 0]: attention of the span's tokens to the first position of the text, (n, L, H, k)."""
        return np.stack([self._weight(i, 0) for i in range(self.k)], -1)

    def _weight(self, i: int, d: int) -> Array:
        """Attention (n, L, H) of token i to the token d positions before it, or to position 0 where d is 0."""
        band = _given(self._data.band, "attention")
        return np.moveaxis(band[:, :, self.starts + i, d].astype(np.float64), -1, 0)

    @property
    def last_row(self) -> NDArray[np.float32]:
        """Attention of the last token to every position up to its own, (n, L, H, S). Not available for windows."""
        rows = _given(self._data.last_row, "last_row")
        return rows.reshape(-1, *rows.shape[-3:])

    @property
    def norm_weighted(self) -> Array:
        """Norm-weighted attention inside the span, (n, L, H, k, k). Not available for windows.

        Each weight is ||A v W_O|| divided by the sum over all keys (Kobayashi et al. 2020, arXiv:2004.10102).
        """
        inside = _given(self._data.norm_weighted, "norm_weighted").astype(np.float64)
        return inside.reshape(-1, *inside.shape[-4:])

    @cached_property
    def residual(self) -> NDArray[np.float32]:
        """Residual stream at the span's tokens, (n, k, L + 1, D): the embeddings, then the output of each layer."""
        return np.moveaxis(_given(self._data.residual, "residual")[:, self._positions], 0, 2)

    @cached_property
    def residual_next(self) -> NDArray[np.float32]:
        """Residual stream at the token after the span, (n, L + 1, D); NaN where the text ends with the span."""
        stream = _given(self._data.residual, "residual")
        at = self.starts + self.k
        out = np.moveaxis(stream[:, np.minimum(at, stream.shape[1] - 1)], 0, 1).copy()
        out[at >= stream.shape[1]] = np.nan
        return out

    @cached_property
    def head_outputs(self) -> NDArray[np.float32]:
        """Outputs of the heads before the output projection at the span's tokens, (n, k, L, H, d)."""
        return np.moveaxis(_given(self._data.head_outputs, "head_outputs")[:, self._positions], 0, 2)

    @cached_property
    def alone(self) -> NDArray[np.float32]:
        """Residual stream of each token of the span in a text that holds only this token, (n, k, L + 1, D)."""
        by_id = _given(self._data.alone, "alone")
        return np.stack([np.stack([by_id[int(token)] for token in span]) for span in self.ids])

    @property
    def previous_token(self) -> Array:
        """Mean attention of every head to the previous token on neutral text, (L, H)."""
        return _given(self._data.previous_token, "previous_token")


def _given(value: _Array | None, need: str) -> _Array:
    if value is None:
        raise ValueError(f"the measure reads {need}, which it does not declare; declare Needs({need}=True)")
    return value


@dataclass(frozen=True)
class ChoiceView:
    """A question and its choices.

    prompt: the question; its right choice is `prompt.choices[prompt.answer]`

    logprobs: for each choice, log P of each of its tokens after the prompt (nats)
    unconditional: for each choice, log P of the whole text after a neutral premise (nats)
    """

    prompt: Prompt
    logprobs: tuple[NDArray[np.float32], ...]
    unconditional: tuple[float, ...]


@dataclass(frozen=True)
class NeutralView:
    """Attention on neutral text.

    bands: for each text (L, H, T, 2): attention of position i to position 0, and to position i - 1
    first: the first position that counts; positions before it hold special tokens
    """

    bands: tuple[NDArray[np.float32], ...]
    first: int
