"""The one hook: reads attention rows and edits heads, in every architecture, without per-model code.

transformers routes attention through a registered function that receives query, key and value after rotary
embedding, the mask and the scaling, and returns the heads' outputs *before* the output projection. bindscope registers
its own under the name "bindscope". It delegates the output to PyTorch's SDPA kernel and recomputes softmax rows only
for the wanted (query, key) pairs, so no T x T tensor is kept. A mask function is registered under the same name:
without one, transformers passes no mask and attention silently turns bidirectional.

A forward pass can be *packed*: one row holds a prompt and several continuations, each of which sees the prompt and
itself only. The mask function receives the architecture's own rule (causal, sliding window, ...) as a function of
positions; a packed row is that rule at logical positions, and-ed with the visibility of the segments.

The order of operations follows transformers: scale, softcap, mask, (attention sink,) softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from bindscope.errors import UnsupportedArchitecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "bindscope"

#: Receives a layer index and the heads' outputs (B, T, H, d) before the output projection; returns the same shape.
Edit = Callable[[int, Tensor], Tensor]

#: Receives a layer index, the heads' outputs, a function from query positions (B, R) to their attention probabilities
#: (B, H, R, S) in float32, and the values (B, H, S, d) of every query head; returns the heads' outputs.
Rewire = Callable[[int, Tensor, Callable[[Tensor], Tensor], Tensor], Tensor]

#: Softmax rows are computed for at most this many scores at a time: bounds the memory of a layer's rows.
_MAX_SCORES = 1 << 24


@dataclass(frozen=True)
class Want:
    """Which attention probabilities to keep: for row b and query queries[b, r], the keys keys[b, r, :].

    queries: (B, R) long; keys: (B, R, C) long. A negative entry is padding; its probability is NaN.
    """

    queries: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Packing:
    """Logical positions (B, T) and segments (B, T) of packed rows: 0 the prompt, 1.. a continuation, -1 padding."""

    positions: Tensor
    segments: Tensor


@dataclass
class Pass:
    """One forward pass under the hook. `rows[layer]` is (B, H, R, C), `sums[layer]` (B, H, R): the whole row's sum."""

    want: Want | None = None
    packing: Packing | None = None
    edit: Edit | None = None
    rewire: Rewire | None = None
    rows: dict[int, Tensor] = field(default_factory=dict)
    sums: dict[int, Tensor] = field(default_factory=dict)


_CURRENT: ContextVar[Pass | None] = ContextVar("bindscope_pass", default=None)


@contextmanager
def hooked(model: PreTrainedModel) -> Iterator[None]:
    """Route the model's attention through bindscope; the former implementation is put back at the end.

    Raises UnsupportedArchitecture, naming the architecture, where transformers offers no such route.
    """
    before = model.config._attn_implementation
    set_implementation(model, NAME)
    try:
        yield
    finally:
        set_implementation(model, before)


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """Switch the attention function. Raises UnsupportedArchitecture where the model refuses to."""
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise unsupported(model, " ".join(str(error).split())) from error
    if model.config._attn_implementation != name:
        raise unsupported(
            model,
            "its attention is code of its own, which transformers does not route through the "
            "attention interface, so its heads can be neither read nor edited",
        )


def unsupported(model: PreTrainedModel, reason: str) -> UnsupportedArchitecture:
    """The error for a model whose heads cannot be read, naming its architecture and the reason."""
    return UnsupportedArchitecture(
        f"{type(model).__name__} (model_type {model.config.model_type!r}) cannot be measured: {reason}"
    )


@contextmanager
def recording(
    want: Want | None = None, packing: Packing | None = None, edit: Edit | None = None, rewire: Rewire | None = None
) -> Iterator[Pass]:
    """Forward passes inside this block, under `hooked`, fill the returned Pass."""
    current = Pass(want, packing, edit, rewire)
    token = _CURRENT.set(current)
    try:
        yield current
    finally:
        _CURRENT.reset(token)


def band(lengths: Tensor, size: int, width: int) -> Want:
    """Ask for the band below the diagonal of every row, and for the first column.

    lengths: (B,) tokens in each row. keys[b, i, 0] = 0 (the sink); keys[b, i, d] = i - d for d = 1..width.
    """
    i = torch.arange(size, device=lengths.device)
    real = i[None, :] < lengths[:, None]  # (B, T)
    queries = torch.where(real, i, -1)
    d = torch.arange(1, width + 1, device=lengths.device)
    keys = torch.cat([torch.zeros_like(i)[:, None], i[:, None] - d], 1)  # (T, 1 + width)
    return Want(queries, torch.where(real[:, :, None], keys, -1))


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, T, d), key and value (B, H_kv, S, d) -> heads' outputs (B, T, H, d)."""
    if kwargs.get("position_bias") is not None:
        raise UnsupportedArchitecture(f"{type(module).__name__} adds a position bias to its scores, which is not read")
    scores = _Scores(
        query, key, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux
    )
    if softcap is None and s_aux is None:
        z, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    else:
        z = scores.output(value)  # SDPA knows neither soft-capping nor sinks
    current = _CURRENT.get()
    if current is not None:
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise UnsupportedArchitecture(f"{type(module).__name__} does not say which layer it is (no layer_idx)")
        if current.want is not None:
            current.rows[layer], current.sums[layer] = scores.read(current.want)
        if current.rewire is not None:
            each = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
            z = current.rewire(layer, z, scores.probabilities, each)
        if current.edit is not None:
            z = current.edit(layer, z)
    return z, None


@dataclass(frozen=True)
class _Scores:
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    sinks: Tensor | None

    def probabilities(self, index: Tensor) -> Tensor:
        """Softmax rows in float32 for query positions index (B, R): (B, H, R, S)."""
        B, H, T, d = self.query.shape
        S, groups, R = self.key.shape[2], self.key.shape[1], index.shape[1]
        q = self.query.gather(2, index[:, None, :, None].expand(B, H, R, d)).float()
        # Query head h reads key head h // (H / H_kv): the order of repeat_interleave.
        s = q.reshape(B, groups, H // groups * R, d) @ self.key.float().transpose(2, 3)
        s = s.view(B, H, R, S) * self.scaling
        if self.softcap is not None:
            s = torch.tanh(s / self.softcap) * self.softcap
        if self.mask is None:
            # None means causal where there is more than one query, and everything visible for a single one.
            last = index + (S - T)
            s = s.masked_fill((torch.arange(S, device=s.device) > last[:, :, None])[:, None], -torch.inf)
        else:
            mask = self.mask.expand(B, self.mask.shape[1], T, S)
            mask = mask.gather(2, index[:, None, :, None].expand(B, mask.shape[1], R, S))
            s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask.float()
        if self.sinks is None:
            return s.softmax(-1)
        sink = self.sinks.float().view(1, H, 1, 1).expand(B, H, R, 1)
        return torch.cat([s, sink], -1).softmax(-1)[..., :S]

    def _chunks(self, n: int) -> Iterator[slice]:
        B, H = self.query.shape[:2]
        step = max(1, _MAX_SCORES // (B * H * self.key.shape[2]))
        return (slice(start, start + step) for start in range(0, n, step))

    def read(self, want: Want) -> tuple[Tensor, Tensor]:
        """The wanted probabilities (B, H, R, C) and the sums of whole rows (B, H, R); NaN where padded."""
        rows, sums = [], []
        for part in self._chunks(want.queries.shape[1]):
            queries, keys = want.queries[:, part].to(self.query.device), want.keys[:, part].to(self.query.device)
            p = self.probabilities(queries.clamp(min=0))
            index = keys.clamp(min=0)[:, None].expand(-1, p.shape[1], -1, -1)
            gone = (keys < 0) | (queries < 0)[:, :, None]
            rows.append(p.gather(3, index).masked_fill(gone[:, None], torch.nan))
            sums.append(p.sum(-1).masked_fill((queries < 0)[:, None], torch.nan))
        return torch.cat(rows, 2), torch.cat(sums, 2)

    def output(self, value: Tensor) -> Tensor:
        """The heads' outputs (B, T, H, d) by explicit softmax."""
        B, H, T, _ = self.query.shape
        v = value.float().repeat_interleave(H // value.shape[1], 1)
        everything = torch.arange(T, device=value.device).expand(B, T)
        parts = [self.probabilities(everything[:, part]) @ v for part in self._chunks(T)]
        # A row that may see nothing (padding on the left) has no defined output; nothing visible reads it.
        return torch.cat(parts, 2).transpose(1, 2).nan_to_num().to(value.dtype).contiguous()


def _mask(*args: Any, **kwargs: Any) -> Any:
    """Boolean mask (B, 1, T, S) or None: SDPA's own, or the packed one where the current pass is packed."""
    current = _CURRENT.get()
    if current is None or current.packing is None:
        return sdpa_mask(*args, **kwargs)
    rule = kwargs["mask_function"]
    positions, segments = current.packing.positions, current.packing.segments
    B, T = positions.shape
    device = positions.device
    batch = torch.arange(B, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    allowed = rule(batch, head, positions[:, None, :, None], positions[:, None, None, :])
    mine, theirs = segments[:, None, :, None], segments[:, None, None, :]
    i = torch.arange(T, device=device)
    before = i[None, :] <= i[:, None]
    visible = ((theirs == 0) | (theirs == mine)) & (mine >= 0) & before
    return (allowed & visible) | torch.eye(T, dtype=torch.bool, device=device)  # padding sees itself: no empty row


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
