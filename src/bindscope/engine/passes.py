"""Token ids -> what measures ask for, from one forward pass over batches of texts.

A `TextInput` is a prompt with any number of continuations. Packed, they share one sequence: the prompt is encoded once,
each continuation sees the prompt and itself, at positions that follow the prompt. The vocabulary projection is applied
only where a token of a continuation is predicted; where none is, the pass ends after the attention of the last layer.

The functions here expect the hook of `attention.py` to be installed: `engine.Engine` does that.
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

from bindscope.engine.attention import Attention, Edit, Observer, Packing, Rewire, during, require_hook, unsupported
from bindscope.engine.batches import ShrinkingBatches
from bindscope.engine.capture import Capture, TextInput
from bindscope.engine.data import Needs, TextData
from bindscope.engine.projections import Grams
from bindscope.errors import MeasureError

#: Padded tokens in one batch.
BATCH_TOKENS = 2048
#: A text shorter than this share of the longest does not join a batch that is a quarter full.
_LEAST_SHARE = 0.8
#: Bytes of residual streams that one batch may leave.
RESIDUAL_BYTES = 1 << 28
#: Rows of logits whose softmax is taken at a time: they stay in a processor's cache.
_SOFTMAX_ROWS = 16

#: log P of each token of one continuation.
LogProbs = NDArray[np.float32]


def stream(
    model: PreTrainedModel,
    inputs: Sequence[TextInput],
    *,
    packed: bool,
    needs: Needs,
    grams: Grams | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[int, TextData]]:
    """Each text's index and what was read of it, longest texts first.

    grams: of the model's output projections, for `Needs.carried`; None where they are not known
    What the caller does not keep is not kept at all, so memory does not grow with the number of texts. A batch for
    which there is no memory is halved.
    Raises MeasureError where a log-probability or attention weight is not finite.
    """
    require_hook(model)
    batches = ShrinkingBatches()
    for batch in _batches(inputs, _budget(model, needs, batch_tokens) if packed else 0):
        part = [inputs[i] for i in batch]
        outputs = batches.run(
            part,
            lambda some: (
                _read_packed(model, some, needs, grams) if packed else _read_with_cache(model, some[0], needs, grams)
            ),
        )
        for i, data in zip(batch, outputs, strict=True):
            yield i, _finite(data, inputs[i])


def _budget(model: PreTrainedModel, needs: Needs, batch_tokens: int) -> int:
    """Padded tokens of a batch: fewer where the residual stream of every layer is kept."""
    if not (needs.residual or needs.alone):
        return batch_tokens
    each = (int(model.config.num_hidden_layers) + 1) * int(model.config.hidden_size) * 4
    return max(1, min(batch_tokens, RESIDUAL_BYTES // each))


def _batches(inputs: Sequence[TextInput], budget: int) -> Iterator[list[int]]:
    """Texts of similar length together, longest first, so that a batch too large for memory fails at once.

    A batch that is a quarter full ends where a text would be padded by more than a fifth: prompts and questions differ
    much in length.
    """
    batch: list[int] = []
    for i in sorted(range(len(inputs)), key=lambda i: -len(inputs[i])):
        T = len(inputs[batch[0]]) if batch else 0
        short = len(inputs[i]) < _LEAST_SHARE * T and len(batch) * T >= budget / 4
        if batch and ((len(batch) + 1) * T > budget or short):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True)
class Packed:
    """Texts with their continuations side by side.

    ids, positions, segments: (B, T) tensors; positions are logical, segments as in `Packing`
    reads: (row, position) pairs whose logits are needed
    targets: for each text and continuation, indices into `reads` and the token ids predicted there
    """

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
        return Packed(ids=ids, positions=positions, segments=segments, reads=reads, targets=targets)


def pack(inputs: Sequence[TextInput], device: torch.device | str) -> Packed:
    """Each text with its continuations in one sequence, padded to the longest."""
    T = max(len(text) for text in inputs)
    ids = torch.zeros(len(inputs), T, dtype=torch.long)
    positions = torch.zeros(len(inputs), T, dtype=torch.long)
    segments = torch.full((len(inputs), T), -1, dtype=torch.long)
    reads: list[tuple[int, int]] = []
    targets = []
    for b, text in enumerate(inputs):
        n = len(text.ids)
        ids[b, :n] = torch.tensor(text.ids)
        positions[b, :n] = torch.arange(n)
        segments[b, :n] = 0
        first, at, mine = len(reads), n, []
        if text.continuations:
            reads.append((b, n - 1))  # every continuation's first token is predicted here
        for c, tokens in enumerate(text.continuations, 1):
            body = len(tokens) - 1
            ids[b, at : at + body] = torch.tensor(tokens[:-1], dtype=torch.long)
            positions[b, at : at + body] = torch.arange(n, n + body)
            segments[b, at : at + body] = c
            mine.append(([first, *range(len(reads), len(reads) + body)], tokens))
            reads += [(b, p) for p in range(at, at + body)]
            at += body
        targets.append(tuple(mine))
    return Packed(
        ids=ids.to(device),
        positions=positions.to(device),
        segments=segments.to(device),
        reads=tuple(reads),
        targets=tuple(targets),
    )


@torch.no_grad()
def _read_packed(
    model: PreTrainedModel, inputs: Sequence[TextInput], needs: Needs, grams: Grams | None
) -> list[TextData]:
    capture = Capture(model, inputs, needs, grams)
    with capture.residual_hooks():
        logprobs = forward(model, pack(inputs, model.device), look=capture.observer, edit=capture.keep_outputs)
    return capture.outputs(logprobs)


@torch.no_grad()
def forward(
    model: PreTrainedModel,
    batch: Packed,
    *,
    look: Observer | None = None,
    edit: Edit | None = None,
    rewire: Rewire | None = None,
) -> list[list[LogProbs]]:
    """One forward pass: for each text and continuation the log P of its tokens (nats)."""
    packing, extra = None, {}
    if batch.reads:
        # The mask of ones keeps transformers from reading jumps in the positions as separate documents.
        packing = Packing(batch.positions, batch.segments)
        extra = {"attention_mask": torch.ones_like(batch.segments), "position_ids": batch.positions}
    elif look is not None and edit is None and _may_stop_early(model):
        look = _stop_after_last(look, int(model.config.num_hidden_layers))
    # Padding stands behind every real token, so without packing plain causal attention never sees it.
    with during(look, packing, edit, rewire), logits_at(model, batch.reads):
        try:
            logits = model(batch.ids, use_cache=False, **extra).logits[0]
        except _AllSeen:
            return [[] for _ in batch.targets]
    flat = iter(_logprobs(logits, [t for row in batch.targets for t in row]))
    return [[next(flat) for _ in row] for row in batch.targets]


class _AllSeen(Exception):
    """Ends a forward pass from which nothing more is wanted."""


def _stop_after_last(look: Observer, layers: int) -> Observer:
    """The same observer, which ends the pass when it has seen every layer."""
    left = set(range(layers))

    def then(layer: int, attention: Attention) -> None:
        look(layer, attention)
        left.discard(layer)
        if not left:
            raise _AllSeen

    return then


def _may_stop_early(model: PreTrainedModel) -> bool:
    """Whether a pass may end early: not where something done before a module (somebody's hook, weights brought in
    from elsewhere) waits for its end."""
    return not any(part._forward_pre_hooks or hasattr(part, "_hf_hook") for part in model.modules())


def _logprobs(logits: Tensor, targets: list[tuple[list[int], tuple[int, ...]]]) -> list[NDArray[np.float32]]:
    """logits (N, V); targets: for each continuation, the rows of `logits` and the ids predicted there."""
    if not targets:
        return []
    where = torch.tensor([i for reads, _ in targets for i in reads], device=logits.device)
    token = torch.tensor([t for _, tokens in targets for t in tokens], device=logits.device)
    parts = zip(torch.split(where, _SOFTMAX_ROWS), torch.split(token, _SOFTMAX_ROWS), strict=True)
    logs = [logits[at].float().log_softmax(-1).gather(1, ids[:, None])[:, 0] for at, ids in parts]
    flat = torch.cat(logs).cpu().numpy()
    ends = np.cumsum([len(tokens) for _, tokens in targets])[:-1]
    return list(np.split(flat, ends))


@contextmanager
def logits_at(model: PreTrainedModel, reads: Sequence[tuple[int, int]]) -> Iterator[None]:
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
def _read_with_cache(model: PreTrainedModel, text: TextInput, needs: Needs, grams: Grams | None) -> list[TextData]:
    """One text without packing: the prompt's keys and values are computed once and shared by its continuations."""
    device, n = model.device, len(text.ids)
    capture = Capture(model, [text], needs, grams)
    hooks = during(capture.observer, edit=capture.keep_outputs)
    with capture.residual_hooks(), hooks, logits_at(model, [(0, n - 1)]):
        out = model(torch.tensor([text.ids], device=device), use_cache=bool(text.continuations))
    if not text.continuations:
        return capture.outputs([()])
    C, m = len(text.continuations), max(len(c) for c in text.continuations)
    first = out.logits[0, :1]  # (1, V)
    logits = first.expand(C, -1)[:, None]
    if m > 1:
        name = "cache" if "cache" in out else "past_key_values"  # before transformers 5.24
        cache = out[name]
        cache.batch_repeat_interleave(C)
        ids = torch.zeros(C, m - 1, dtype=torch.long, device=device)
        for c, tokens in enumerate(text.continuations):
            ids[c, : len(tokens) - 1] = torch.tensor(tokens[:-1], dtype=torch.long)
        positions = torch.arange(n, n + m - 1, device=device).expand(C, -1)
        rest = model(ids, position_ids=positions, use_cache=True, **{name: cache}).logits
        logits = torch.cat([logits, rest], 1)  # (C, m, V)
    flat = logits.flatten(0, 1)
    targets = [([c * m + i for i in range(len(tokens))], tokens) for c, tokens in enumerate(text.continuations)]
    return capture.outputs([_logprobs(flat, targets)])


def _finite(data: TextData, text: TextInput) -> TextData:
    """Raises MeasureError where a number that was read is not finite."""
    wrong = ""
    if not all(np.isfinite(values).all() for values in data.logprobs):
        wrong = "log-probabilities"
    elif data.band is not None and np.isnan(data.band[..., 0]).any():
        wrong = "attention weights"
    elif data.residual is not None and not np.isfinite(data.residual).all():
        wrong = "a residual stream"
    if wrong:
        raise not_finite(wrong, len(text.ids))
    return data


def not_finite(what: str, n: int) -> MeasureError:
    """The error for numbers that are not finite; n: tokens of the text."""
    return MeasureError(
        f"the model gives {what} that are not finite on a prompt of {n} tokens; "
        "use float32 or bfloat16 (float16 overflows on some models)"
    )
