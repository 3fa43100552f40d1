"""Forward passes over batches of texts: from token ids to the data that measures need.

A `TextInput` is a prompt with any number of continuations. Packed, they share one sequence: the prompt is encoded once,
and each continuation sees the prompt and itself, at positions that follow the prompt. The vocabulary projection is
applied only to positions that predict a token of a continuation. Where a batch has no continuations and only attention
is read, the pass ends after the attention of the last layer.

The functions here need the hook of `attention.py`, which `engine.Engine` installs.
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
#: A text shorter than this fraction of the longest starts a new batch where the current one is a quarter full.
_LEAST_SHARE = 0.8
#: Bytes of residual streams that one batch keeps at most.
RESIDUAL_BYTES = 1 << 28
#: The softmax of logits is computed for this many rows at a time, which fit into the cache of a processor.
_SOFTMAX_ROWS = 16

#: (tokens,) log P of each token of one continuation, in nats.
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
    """Yield the index and the data of each text, longest texts first.

    The function keeps no data that it has yielded, so memory does not grow with the number of texts. It halves a batch
    that does not fit into memory.

    model: the model, with the hook installed
    inputs: the texts
    packed: whether continuations share one row with their prompt; else they share its cached keys and values
    needs: what to read besides the log-probabilities of continuations
    grams: layer -> (H, d, d), see `projections.grams`; None where the output projection is not known
    batch_tokens: padded tokens of one batch at most
    Raises MeasureError where a number that was read is not finite, RuntimeError where the hook is not installed.
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
    """Padded tokens of a batch at most: fewer where the batch keeps the residual stream of every layer."""
    if not (needs.residual or needs.alone):
        return batch_tokens
    each = (int(model.config.num_hidden_layers) + 1) * int(model.config.hidden_size) * 4
    return max(1, min(batch_tokens, RESIDUAL_BYTES // each))


def _batches(inputs: Sequence[TextInput], budget: int) -> Iterator[list[int]]:
    """Indices of the texts of each batch: texts of similar length together, longest first.

    The longest come first so that a batch that is too large for memory fails at the start. Openings and questions
    differ much in length, so a batch that is a quarter full ends where more than a fifth of the next row would be
    padding.
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

    ids: (B, T) token ids
    positions: (B, T) logical positions
    segments: (B, T) as in `Packing`
    reads: (row, position) pairs whose logits are needed
    targets: for each text and continuation, indices into `reads` and the token ids predicted there
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    reads: tuple[tuple[int, int], ...]
    targets: tuple[tuple[tuple[list[int], tuple[int, ...]], ...], ...]

    def times(self, n: int) -> Packed:
        """A batch of n copies of the rows, copy after copy."""
        B, N = len(self.ids), len(self.reads)
        reads = tuple((b + c * B, t) for c in range(n) for b, t in self.reads)
        targets = tuple(
            tuple(([i + c * N for i in at], tokens) for at, tokens in row) for c in range(n) for row in self.targets
        )
        ids, positions, segments = (x.repeat(n, 1) for x in (self.ids, self.positions, self.segments))
        return Packed(ids=ids, positions=positions, segments=segments, reads=reads, targets=targets)


def pack(inputs: Sequence[TextInput], device: torch.device | str) -> Packed:
    """Put each text with its continuations into one sequence, padded at the end to the longest.

    inputs: the texts
    device: where the tensors are put
    """
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
        first, at, of_text = len(reads), n, []
        if text.continuations:
            reads.append((b, n - 1))  # every continuation's first token is predicted here
        for c, tokens in enumerate(text.continuations, 1):
            body = len(tokens) - 1
            ids[b, at : at + body] = torch.tensor(tokens[:-1], dtype=torch.long)
            positions[b, at : at + body] = torch.arange(n, n + body)
            segments[b, at : at + body] = c
            of_text.append(([first, *range(len(reads), len(reads) + body)], tokens))
            reads += [(b, p) for p in range(at, at + body)]
            at += body
        targets.append(tuple(of_text))
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
        logprobs = forward(
            model, pack(inputs, model.device), observer=capture.observer, edit=capture.head_output_observer
        )
    return capture.outputs(logprobs)


@torch.no_grad()
def forward(
    model: PreTrainedModel,
    batch: Packed,
    *,
    observer: Observer | None = None,
    edit: Edit | None = None,
    rewire: Rewire | None = None,
) -> list[list[LogProbs]]:
    """Run one forward pass: for each text and continuation, log P of its tokens in nats.

    model: the model, with the hook installed
    batch: the packed texts
    observer, edit, rewire: see `attention.Pass`
    """
    packing, extra = None, {}
    if batch.reads:
        # Without a mask, transformers takes jumps in the positions for the borders of separate documents.
        packing = Packing(batch.positions, batch.segments)
        extra = {"attention_mask": torch.ones_like(batch.segments), "position_ids": batch.positions}
    elif observer is not None and edit is None and _may_stop_early(model):
        observer = _stop_after_last(observer, int(model.config.num_hidden_layers))
    # Padding follows every real token, so causal attention never sees it in rows without continuations.
    with during(observer, packing, edit, rewire), logits_at(model, batch.reads):
        try:
            logits = model(batch.ids, use_cache=False, **extra).logits[0]
        except _LastLayerRead:
            return [[] for _ in batch.targets]
    flat = iter(_logprobs(logits, [t for row in batch.targets for t in row]))
    return [[next(flat) for _ in row] for row in batch.targets]


class _LastLayerRead(Exception):
    """Ends a forward pass after the attention of the last layer.

    The pass then leaves out the feed-forward block of the last layer, which saves 5 to 6% of the CPU seconds (60
    prompts of 15 to 60 tokens, Pythia-160M shape, one thread).
    """


def _stop_after_last(observer: Observer, layers: int) -> Observer:
    """An observer that calls the given one and ends the pass after it has read every layer."""
    left = set(range(layers))

    def observe(layer: int, attention: Attention) -> None:
        observer(layer, attention)
        left.discard(layer)
        if not left:
            raise _LastLayerRead

    return observe


def _may_stop_early(model: PreTrainedModel) -> bool:
    """Whether an exception may end a pass: not where a hook has started work before a module and finishes it after.

    Such hooks are pre-hooks of a caller, and those of accelerate that bring in weights from another device.
    """
    return not any(part._forward_pre_hooks or hasattr(part, "_hf_hook") for part in model.modules())


def _logprobs(logits: Tensor, targets: list[tuple[list[int], tuple[int, ...]]]) -> list[NDArray[np.float32]]:
    """For each continuation (tokens,) log P of its tokens.

    logits: (N, V)
    targets: for each continuation, rows of `logits` and the token ids predicted there
    """
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
    """Within this block the vocabulary projection gets only the hidden states at `reads`, so logits are (1, N, V)."""
    head = model.get_output_embeddings()
    if head is None:
        raise unsupported(model, "it has no output embedding, so it predicts no next token")
    b, t = (torch.tensor([read[axis] for read in reads], dtype=torch.long) for axis in (0, 1))

    def select(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        device = args[0].device  # that of the last layer; the projection may be on another device
        return (args[0][b.to(device), t.to(device)][None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _read_with_cache(model: PreTrainedModel, text: TextInput, needs: Needs, grams: Grams | None) -> list[TextData]:
    """Read one text without packing: its continuations share the cached keys and values of the prompt."""
    device, n = model.device, len(text.ids)
    capture = Capture(model, [text], needs, grams)
    hooks = during(capture.observer, edit=capture.head_output_observer)
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
    """The same data. Raises MeasureError where one of its numbers is not finite."""
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
