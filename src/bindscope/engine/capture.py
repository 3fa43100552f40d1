"""Collects attention, head outputs and the residual stream from every layer of a forward pass over one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from bindscope.engine.attention import Attention, Edit, Observer, unsupported
from bindscope.engine.data import Needs, TextData
from bindscope.engine.projections import Grams, norm_weighted_attention
from bindscope.engine.trunk import layers


@dataclass(frozen=True)
class TextInput:
    """One text for a forward pass.

    ids: (T,) its token ids
    continuations: token ids of each continuation whose log-probabilities are computed
    band: how many positions back attention is kept, 0 for none
    span: (k,) positions of the term's tokens, empty for none
    """

    ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...] = ()
    band: int = 0
    span: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens in the packed sequence. It leaves out the last token of each continuation, which predicts nothing."""
        return len(self.ids) + sum(len(c) - 1 for c in self.continuations)


class Capture:
    """Reads one batch.

    Use it in three steps: pass `observer` and `head_output_observer` to the forward pass, run the pass inside
    `residual_hooks`, then call `outputs`.
    """

    def __init__(self, model: PreTrainedModel, inputs: Sequence[TextInput], needs: Needs, grams: Grams | None) -> None:
        """Prepare to read a batch.

        model: the model that runs the pass
        inputs: the texts of the batch
        needs: what to keep of the pass
        grams: layer -> (H, d, d), see `projections.grams`; None where the output projection is not known
        """
        self._model, self._inputs, self._needs, self._grams = model, inputs, needs, grams
        self._width = max(text.band for text in inputs) if needs.attention or needs.previous_token else 0
        spans = [text.span for text in inputs]
        rows = needs.last_row or needs.norm_weighted
        self._end = max((span[-1] + 1 for span in spans if span), default=0) if rows else 0
        k = max(map(len, spans))
        self._spans = torch.tensor([span + span[-1:] * (k - len(span)) if span else (0,) * k for span in spans])
        self._bands: dict[int, Tensor] = {}
        self._last: dict[int, Tensor] = {}
        self._norm_weighted: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}
        self._residual: dict[int, Tensor] = {}

    @property
    def observer(self) -> Observer | None:
        """The function that reads attention in each layer; None where no attention is needed."""
        return self._observe if self._width or self._end else None

    def _observe(self, layer: int, attention: Attention) -> None:
        if self._width:
            self._bands[layer] = attention.band(self._width).cpu()  # (B, H, T, 1 + width)
        if self._end:
            spans = self._spans.to(attention.query.device)
            p = attention.probabilities(spans, self._end)  # (B, H, k, end)
            if self._needs.last_row:
                self._last[layer] = p[:, :, -1].cpu()
            if self._needs.norm_weighted and self._grams is not None:
                value = attention.value[:, :, : self._end]
                self._norm_weighted[layer] = norm_weighted_attention(p, value, self._grams[layer], spans).cpu()

    @property
    def head_output_observer(self) -> Edit | None:
        """The edit that keeps the heads' outputs and changes nothing; None where they are not needed."""
        return self._keep if self._needs.head_outputs else None

    def _keep(self, layer: int, z: Tensor) -> Tensor:
        self._outputs[layer] = z.detach().float().cpu()  # (B, T, H, d)
        return z

    def residual_hooks(self) -> AbstractContextManager[None]:
        """Within this block hooks keep the residual stream: the input of the first layer, the output of each layer."""
        if not (self._needs.residual or self._needs.alone):
            return nullcontext()
        return residual_stream(self._model, self._take)

    def _take(self, place: int, hidden: Tensor) -> None:
        self._residual[place] = hidden.float().cpu()

    def outputs(self, logprobs: Sequence[Sequence[NDArray[np.float32]]]) -> list[TextData]:
        """What the pass computed for each text.

        logprobs: for each text and continuation, (tokens,) log P of each token in nats
        Raises UnsupportedArchitecture where a layer gave nothing.
        """
        count = int(self._model.config.num_hidden_layers)
        bands, last, weighted, heads = (
            self._stacked(kept, range(count)) for kept in (self._bands, self._last, self._norm_weighted, self._outputs)
        )
        residual = self._stacked(self._residual, range(count + 1))
        return [self._text(b, logprobs[b], bands, last, weighted, heads, residual) for b in range(len(self._inputs))]

    def _text(self, b: int, logprobs: Sequence[NDArray[np.float32]], *read: NDArray[np.float32] | None) -> TextData:
        bands, last, weighted, heads, residual = read
        text = self._inputs[b]
        n, k = len(text.ids), len(text.span)
        unknown = self._needs.norm_weighted and self._grams is None and k
        shape = (int(self._model.config.num_hidden_layers), int(self._model.config.num_attention_heads), k, k)
        inside = np.full(shape, np.nan, np.float32) if unknown else None
        return TextData(
            ids=text.ids,
            band=bands[b, :, :, :n, : 1 + text.band] if bands is not None and text.band else None,
            last_row=last[b, :, :, : text.span[-1] + 1] if last is not None and k else None,
            norm_weighted=weighted[b, :, :, :k, :k] if weighted is not None and k else inside,
            residual=residual[b, :, :n] if residual is not None else None,
            head_outputs=heads[b, :, :n] if heads is not None else None,
            logprobs=tuple(logprobs),
        )

    def _stacked(self, kept: dict[int, Tensor], places: range) -> NDArray[np.float32] | None:
        """Layer -> (B, ...) as (B, L, ...); None where nothing was kept."""
        if not kept:
            return None
        if missing := sorted(set(places) - set(kept)):
            raise unsupported(self._model, f"layers {missing} of {len(places)} have no attention rows")
        return torch.stack([kept[place] for place in places], 1).numpy()


@contextmanager
def residual_stream(model: PreTrainedModel, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Forward passes inside this block give `take` the residual stream (B, T, D): 0 and what enters the first layer,
    then 1 ... L and what leaves each.

    Raises UnsupportedArchitecture where layers do not pass on one such tensor.
    """

    def give(place: int, hidden: Any) -> None:
        if not isinstance(hidden, Tensor) or hidden.dim() != 3:
            shape = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
            raise unsupported(model, f"its layers pass on {shape}, not one residual stream (B, T, D)")
        take(place, hidden.detach())

    def enters(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        give(0, args[0] if args else kwargs["hidden_states"])

    def leaves(place: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, out: Any) -> None:
            give(place, out[0] if isinstance(out, tuple) else out)

        return hook

    stack = layers(model)
    handles = [stack[0].register_forward_pre_hook(enters, with_kwargs=True)]
    handles += [layer.register_forward_hook(leaves(i + 1)) for i, layer in enumerate(stack)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
