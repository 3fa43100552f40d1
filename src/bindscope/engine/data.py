"""What a measure needs of the forward pass (`Needs`) and what the pass returns (`TextData`).

This module does not import torch, so measures can be declared without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from bindscope.records import Prompt, Sampling

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Needs:
    """What a measure needs of a forward pass; `measures.view.SpanView` gives it to the measure's function.

    attention: weights inside the span, and to position 0, of every layer and head
    last_row: the whole attention row of the span's last token (not available for the null's windows)
    norm_weighted: weights inside the span, each times the norm of the projected value vector (not available for the
        null's windows)
    residual: residual stream at the span's tokens and at the token after them, of every layer
    head_outputs: outputs of the heads before the output projection, at the span's tokens
    alone: residual stream of each token of the span in a text that holds only this token
    previous_token: every head's mean attention to the previous token on neutral text
    """

    attention: bool = False
    last_row: bool = False
    norm_weighted: bool = False
    residual: bool = False
    head_outputs: bool = False
    alone: bool = False
    previous_token: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(**{name: getattr(self, name) or getattr(other, name) for name in self.__dataclass_fields__})


def together(needs: Iterable[Needs]) -> Needs:
    """The union of the needs of several measures that share one pass."""
    return reduce(Needs.__or__, needs, Needs())


@dataclass(frozen=True)
class TextData:
    """What the forward pass computed for one text; None for what `Needs` did not name.

    ids: (T,) token ids
    band: (L, H, T, 1 + W) attention of position i to position 0, and to positions i - 1 ... i - W (NaN before the
        start)
    last_row: (L, H, S) attention of the term's last token to each of the S positions up to its own
    norm_weighted: (L, H, k, k) attention inside the term, each weight times the norm of the projected value vector;
        NaN where the output projection of the architecture is not known
    residual: (L + 1, T, D) residual stream: the embeddings, then what leaves each layer
    head_outputs: (L, T, H, d) outputs of the heads before the output projection
    logprobs: for each continuation, log P of each of its tokens (nats)
    alone: token id -> (L + 1, D) residual stream of the token in a text that holds only the special tokens and it
    previous_token: (L, H) mean attention to the previous token on neutral text
    """

    ids: tuple[int, ...]
    band: NDArray[np.float32] | None = None
    last_row: NDArray[np.float32] | None = None
    norm_weighted: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None
    head_outputs: NDArray[np.float32] | None = None
    logprobs: tuple[NDArray[np.float32], ...] = ()
    alone: Mapping[int, NDArray[np.float32]] | None = None
    previous_token: Array | None = None


@dataclass(frozen=True)
class CellData:
    """What forward passes left of some cells: k tokens each, behind one prefix that they share.

    first: place of the first of them among all cells
    count: how many there are
    prefix: tokens in front of them
    k: tokens of each
    data: as of a text in which the cells stand one after another behind the prefix, each from `starts` on; the prefix
        and a position behind each cell hold NaN; last_row and norm_weighted have the cells as their first axis
    states: (layers, count, D) residual stream at the last token of each cell, of the layers that were asked for
    """

    first: int
    count: int
    prefix: int
    k: int
    data: TextData
    states: NDArray[np.float32] | None = None

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where in `data` each cell begins; in the text that it is read in, every cell begins behind the prefix."""
        return self.prefix + np.arange(self.count, dtype=np.int64) * (self.k + 1)


@dataclass(frozen=True)
class CompletionView:
    """A prompt and its completion.

    prompt: the prompt
    sampling: how tokens were chosen
    text: the completion, decoded without special tokens
    new_tokens: number of tokens of the completion
    ended: whether the model ended the text itself, before the limit
    decoded_alone: whether the prompt was decoded a second time in a batch of its own, because two logits were nearly
        equal
    """

    prompt: Prompt
    sampling: Sampling
    text: str
    new_tokens: int
    ended: bool
    decoded_alone: bool
