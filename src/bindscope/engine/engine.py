"""The engine: a loaded model with the attention hook in place, checked, and the only way to run it.

    with Engine(loaded) as engine:
        for index, data in engine.stream(inputs, needs): ...

Entering installs the hook and checks, once, that what is read is what the model computes (`selfcheck.py`); leaving puts
the model's own attention function back. Whether continuations may be packed into one row is the engine's to know.
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
    """loaded: model, tokenizer and what results record of them; check: of an earlier engine around the same model,
    which saves the time of a self-check (a training run that is watched checks once)."""

    def __init__(self, loaded: Loaded, check: SelfCheck | None = None) -> None:
        self.loaded, self.model = loaded, loaded.model
        self._check = check
        self._hook: AbstractContextManager[None] | None = None
        self._grams: Grams | None = None
        self._has_grams = False

    def __enter__(self) -> Engine:
        """Raises UnsupportedArchitecture, with the reason, for a model that cannot be read or edited."""
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
        """What the self-check measured."""
        if self._check is None:
            raise RuntimeError("the engine has not been entered; use `with Engine(loaded) as engine:`")
        return self._check

    def stream(
        self, inputs: Sequence[TextInput], needs: Needs | None = None, *, batch_tokens: int = passes.BATCH_TOKENS
    ) -> Iterator[tuple[int, TextData]]:
        """Each text's index and what was read of it, longest first; memory does not grow with the number of texts.

        needs: what to read beside the log-probabilities of continuations
        Raises MeasureError for numbers that are not finite.
        """
        needs = needs or Needs()
        weights = self._projections() if needs.carried else None
        return passes.stream(
            self.model, inputs, packed=self.check.packed, needs=needs, grams=weights, batch_tokens=batch_tokens
        )

    def read(
        self, inputs: Sequence[TextInput], needs: Needs | None = None, *, batch_tokens: int = passes.BATCH_TOKENS
    ) -> list[TextData]:
        """What `stream` gives, in the order of the texts."""
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
        weights = self._projections() if needs.carried else None
        request = cell_request(prefix, cells, needs, states, weights)
        return stream_cells(self.model, cells, request, packed=self.check.packed, batch_tokens=batch_tokens)

    def _projections(self) -> Grams | None:
        if not self._has_grams:
            self._grams, self._has_grams = grams(self.model), True
        return self._grams

    def alone(self, tokens: Sequence[int], prefix: Sequence[int]) -> Mapping[int, NDArray[np.float32]]:
        """Token id -> (L + 1, D) residual stream of the token behind the special tokens `prefix`, read by itself."""
        inputs = [TextInput((*prefix, token)) for token in tokens]
        return {
            tokens[i]: data.residual[:, -1].copy()  # a copy, so that the batch is not kept for it
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
        under: generate.Under | None = None,
    ) -> list[Completion]:
        """Continue every prompt, as `generate` would continue each alone. See `generate.complete`."""
        return generate.complete(
            self.model,
            ids,
            limits,
            samplings,
            batch_tokens=batch_tokens,
            progress=progress,
            under=under or generate.no_context,
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
        """log P of every continuation's tokens while each set of heads is ablated: [set][text][continuation].

        See `conditions.run`. Raises MeasureError where packed rows do not hold for the model.
        """
        if not self.check.packed:
            raise MeasureError(
                f"{self.loaded.ref.suite}: heads cannot be ablated, since continuations cannot be packed for this model"
            )
        return conditions.run(self.model, inputs, sets, mode, values, share=share, cache=cache, progress=progress)

    def value_biases(self) -> dict[int, Tensor]:
        """Layer -> (H, d): a head's output when the layer's input is zero."""
        return edits.value_biases(self.model)

    def neutral_means(self, texts: Sequence[tuple[int, ...]]) -> tuple[dict[int, Tensor], int]:
        """Layer -> (bins, H, d) mean head outputs over texts by position bin, and the last position they cover."""
        return conditions.neutral_means(self.model, texts)

    @contextmanager
    def decoding(self, heads: Sequence[Head], mode: Mode, values: EditValues, batch: Sequence[int]) -> Iterator[None]:
        """Within this block the batch's prompts, all of one length, are continued while the heads are ablated.

        values: for every prompt that can be in a batch; donors must be as long as a prompt with its completion
        """
        edit, rewire = conditions.decoding(self.model, heads, mode, values, batch)
        with during(edit=edit, rewire=rewire):
            yield
