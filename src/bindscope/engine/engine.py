"""The engine: runs a loaded model with the attention hook installed and checked.

    with Engine(loaded) as engine:
        for index, data in engine.stream(inputs, needs): ...

Entering installs the hook and checks once that the attention it reads is the attention of the model (`selfcheck.py`);
leaving restores the model's own attention function. The check also tells whether continuations may be packed into one
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bindscope.checkpoints.load import Loaded
from bindscope.engine import conditions, edits, generate, passes
from bindscope.engine.attention import during, hooked
from bindscope.engine.capture import TextInput
from bindscope.engine.cells import cell_request, stream_cells
from bindscope.engine.conditions import EditValues, LayerCache, Logs
from bindscope.engine.data import CellData, Needs, TextData
from bindscope.engine.generate import Completion
from bindscope.engine.projections import Grams, grams
from bindscope.engine.selfcheck import SelfCheck, self_check
from bindscope.errors import MeasureError
from bindscope.records import Head, Mode, Sampling


class Engine:
    """A loaded model with the attention hook, used as a context manager."""

    def __init__(self, loaded: Loaded, check: SelfCheck | None = None) -> None:
        """Keep the model; entering the block installs the hook.

        loaded: the model and its tokenizer
        check: the self-check of an earlier engine for the same model, so that monitoring a training run checks once
        """
        self.loaded, self.model = loaded, loaded.model
        self._check = check
        self._hook: AbstractContextManager[None] | None = None
        self._grams: Grams | None = None
        self._has_grams = False

    def __enter__(self) -> Engine:
        """Check the model and install the hook. Raises UnsupportedArchitecture, with the reason, where that fails."""
        if self._check is None:
            self._check = self_check(self.model)
        self._hook = hooked(self.model)
        self._hook.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hook is not None
        self._hook.__exit__(kind, error, trace)
        self._hook = None

    @property
    def check(self) -> SelfCheck:
        """The result of the self-check. Raises RuntimeError outside of the `with` block."""
        if self._check is None:
            raise RuntimeError("the engine has not been entered; use `with Engine(loaded) as engine:`")
        return self._check

    def stream(
        self, inputs: Sequence[TextInput], needs: Needs | None = None, *, batch_tokens: int = passes.BATCH_TOKENS
    ) -> Iterator[tuple[int, TextData]]:
        """Yield the index and the data of each text, longest first; memory does not grow with the number of texts.

        inputs: the texts
        needs: what to read besides the log-probabilities of continuations
        batch_tokens: padded tokens of one batch at most
        Raises MeasureError for numbers that are not finite.
        """
        needs = needs or Needs()
        weights = self._projections() if needs.norm_weighted else None
        return passes.stream(
            self.model, inputs, packed=self.check.packed, needs=needs, grams=weights, batch_tokens=batch_tokens
        )

    def read(
        self, inputs: Sequence[TextInput], needs: Needs | None = None, *, batch_tokens: int = passes.BATCH_TOKENS
    ) -> list[TextData]:
        """The data that `stream` yields, in the order of the texts; the arguments are those of `stream`."""
        by_index = dict(self.stream(inputs, needs, batch_tokens=batch_tokens))
        return [by_index[i] for i in range(len(inputs))]

    def stream_cells(
        self,
        prefix: Sequence[int],
        cells: Sequence[tuple[int, ...]],
        needs: Needs | None = None,
        *,
        states: Sequence[int] = (),
        batch_tokens: int = passes.BATCH_TOKENS,
    ) -> Iterator[CellData]:
        """What was read of short texts of equal length behind one prefix, which is computed once for many of them.

        cells: token ids of each; every one sees the prefix and itself
        needs: what to read, as for `stream`; `SpanView(part.data, part.starts, part.k)` shows it to a span measure
        states: layers (0 for the embeddings) whose residual stream is kept at the last token of every cell
        They come a part at a time, in order; memory does not grow with their number.
        Raises RequestError for an empty prefix or cells of different length, MeasureError for numbers that are not
        finite.
        """
        needs = needs or Needs()
        weights = self._projections() if needs.norm_weighted else None
        request = cell_request(prefix, cells, needs, states, weights)
        return stream_cells(self.model, cells, request, packed=self.check.packed, batch_tokens=batch_tokens)

    def _projections(self) -> Grams | None:
        if not self._has_grams:
            self._grams, self._has_grams = grams(self.model), True
        return self._grams

    def alone(self, tokens: Sequence[int], prefix: Sequence[int]) -> Mapping[int, NDArray[np.float32]]:
        """Token id -> (L + 1, D) residual stream of the token in a text of its own.

        tokens: token ids
        prefix: ids of the special tokens in front of each token
        """
        inputs = [TextInput((*prefix, token)) for token in tokens]
        return {
            tokens[i]: data.residual[:, -1].copy()  # a view would keep the arrays of the whole batch in memory
            for i, data in self.stream(inputs, Needs(alone=True))
            if data.residual is not None
        }

    def complete(
        self,
        ids: Sequence[Sequence[int]],
        limits: Sequence[int],
        samplings: Sequence[Sampling],
        *,
        batch_tokens: int = generate.BATCH_TOKENS,
        progress: Callable[[int], None] | None = None,
        batch_context: generate.BatchContext | None = None,
    ) -> list[Completion]:
        """Continue every prompt; the arguments and errors are those of `generate.complete`."""
        return generate.complete(
            self.model,
            ids,
            limits,
            samplings,
            batch_tokens=batch_tokens,
            progress=progress,
            batch_context=batch_context or generate.no_context,
        )

    def edited(
        self,
        inputs: Sequence[TextInput],
        sets: Sequence[Sequence[Head]],
        mode: Mode,
        values: EditValues,
        *,
        share: bool = True,
        cache: LayerCache | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[list[Logs]]:
        """log P of every continuation's tokens while each set of heads is ablated: [set][text][continuation], in nats.

        The arguments are those of `conditions.run`. Raises MeasureError where the model does not support packed rows.
        """
        if not self.check.packed:
            raise MeasureError(
                f"{self.loaded.ref.suite}: heads cannot be ablated, because this model does not score packed "
                "continuations as separate ones; leave the measure ablation out"
            )
        return conditions.run(self.model, inputs, sets, mode, values, share=share, cache=cache, progress=progress)

    def value_biases(self) -> dict[int, Tensor]:
        """Layer -> (H, d): the value bias of every head; see `edits.value_biases`."""
        return edits.value_biases(self.model)

    def neutral_means(self, texts: Sequence[tuple[int, ...]]) -> tuple[dict[int, Tensor], int]:
        """Layer -> (bins, H, d) mean head outputs over texts, and their last position.

        See `conditions.neutral_means`.
        """
        return conditions.neutral_means(self.model, texts)

    @contextmanager
    def decoding(self, heads: Sequence[Head], mode: Mode, values: EditValues, batch: Sequence[int]) -> Iterator[None]:
        """Within this block the heads are ablated while one batch of prompts of equal length is decoded.

        heads: the heads to ablate
        mode: how they are ablated
        values: for all prompts; donors must be as long as a prompt with its completion
        batch: indices of the batch's prompts in `values`
        """
        edit, rewire = conditions.decoding(self.model, heads, mode, values, batch)
        with during(edit=edit, rewire=rewire):
            yield
