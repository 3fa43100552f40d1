"""The one hook: reads attention rows and edits heads, in every architecture, without per-model code.

transformers routes attention through a registered function that receives query, key and value after rotary
embedding, the mask and the scaling, and returns the heads' outputs *before* the output projection. bindscope registers
its own under the name "bindscope". It delegates the output to PyTorch's SDPA kernel, and computes attention
probabilities only where somebody looks: near the diagonal from the norm of each row, which the kernel for CPUs leaves
behind, and whole rows of few queries. No T x T tensor is kept. A mask function is registered under the same name:
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

#: Receives a layer index and what its heads compute from; returns nothing.
Observer = Callable[[int, "Attention"], None]

#: Receives a layer index and the heads' outputs (B, T, H, d) before the output projection; returns the same shape.
Edit = Callable[[int, Tensor], Tensor]

#: The same, with what the heads computed from.
Rewire = Callable[[int, Tensor, "Attention"], Tensor]

#: Softmax rows are computed for at most this many scores at a time: bounds the memory of a layer's rows.
_MAX_SCORES = 1 << 24

#: Texts of at most this many tokens use the plain softmax while an observer reads them: it is faster than the kernel.
SHORT = 96


@dataclass(frozen=True)
class Packing:
    """Logical positions (B, T) and segments (B, T) of packed rows: 0 the prompt, 1.. a continuation, -1 padding."""

    positions: Tensor
    segments: Tensor


@dataclass
class Pass:
    """One forward pass through the hook: who reads the heads of each layer, and what is changed in them."""

    look: Observer | None = None
    packing: Packing | None = None
    edit: Edit | None = None
    rewire: Rewire | None = None
    short: int = SHORT
    _masks: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def additive(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask as numbers to be added to scores; layers of one kind share a mask, so it is made once."""
        if mask.dtype != torch.bool:
            return mask
        key = id(mask), dtype
        if key not in self._masks:  # the mask is kept beside it, so that its id stays its own
            self._masks[key] = mask, torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
        return self._masks[key][1]


_CURRENT: ContextVar[Pass | None] = ContextVar("bindscope_pass", default=None)


def require_hook(model: PreTrainedModel) -> None:
    """Raises RuntimeError where the model's attention does not go through the hook: nothing would be read or edited."""
    if model.config._attn_implementation != NAME:
        raise RuntimeError("the attention hook is not installed; use the model inside `with Engine(...)`")


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
def during(
    look: Observer | None = None,
    packing: Packing | None = None,
    edit: Edit | None = None,
    rewire: Rewire | None = None,
    short: int = SHORT,
) -> Iterator[None]:
    """Forward passes inside this block are observed and edited in this way; short: see `SHORT`."""
    token = _CURRENT.set(Pass(look=look, packing=packing, edit=edit, rewire=rewire, short=short))
    try:
        yield
    finally:
        _CURRENT.reset(token)


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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attention = Attention(
        query=query, key=key, value=value, mask=attention_mask, scaling=scale, softcap=softcap, sinks=s_aux
    )
    current = _CURRENT.get()
    watched = current is not None and current.look is not None and not dropout and _causal(module, attention, kwargs)
    seen = current if watched else None
    short = seen is not None and query.shape[2] <= seen.short and query.dtype == torch.float32
    if short or softcap is not None or s_aux is not None:
        z = attention.output()  # SDPA knows neither soft-capping nor sinks
    elif seen is not None and attention.fusible:
        z = attention.fused(seen)
    else:
        z, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if current is not None:
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise UnsupportedArchitecture(f"{type(module).__name__} does not say which layer it is (no layer_idx)")
        if current.look is not None:
            current.look(layer, attention)
        if current.rewire is not None:
            z = current.rewire(layer, z, attention)
        if current.edit is not None:
            z = current.edit(layer, z)
    return z, None


def _causal(module: torch.nn.Module, attention: Attention, kwargs: dict[str, Any]) -> bool:
    """Whether what the mask says (None: plain causal) is all that SDPA would know of who sees whom."""
    if attention.mask is not None:
        return attention.mask.dim() == 4
    causal = getattr(module, "is_causal", True) and kwargs.get("is_causal") in (None, True)
    return bool(causal and attention.query.shape[2] == attention.key.shape[2])


@dataclass
class Attention:
    """What the heads of one layer compute from, after rotary embedding: query (B, H, T, d), key and value
    (B, H_kv, S, d), mask (B or 1, 1 or H, T, S) or None where plain causal; norms (B, H, T): the log of the sum of
    each row's exponentials, None until it is needed; weights (B, H, T, S): the whole softmax where it was made."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    norms: Tensor | None = None
    weights: Tensor | None = None

    @property
    def fusible(self) -> bool:
        """Whether SDPA would take its flash kernel for CPUs, which can also tell the norm of every row."""
        ready = all(x.stride(-1) == 1 for x in (self.query, self.key, self.value))
        return ready and self.query.device.type == "cpu" and self.query.shape[-1] == self.value.shape[-1]

    def probabilities(self, index: Tensor, keys: int | None = None) -> Tensor:
        """Softmax rows in float32 for query positions index (B, R): (B, H, R, S). keys: only so many keys from the
        front, where it is known that the queries see no others."""
        S = self.key.shape[2] if keys is None else keys
        if self.weights is None:
            return self._softmax(self._scores(index, S))
        return _at(self.weights[..., :S], index)

    def band(self, width: int) -> Tensor:
        """Attention below the diagonal, (B, H, T, 1 + width) float32: of position i to position 0, and to positions
        i - 1 ... i - width (NaN where that is before the start). Texts from their beginning only (T = S)."""
        B, H, T, _ = self.query.shape
        out = torch.full((B, H, T, 1 + width), torch.nan, device=self.query.device)
        if self.weights is not None:
            out[..., 0] = self.weights[..., 0]
            for d in range(1, min(width + 1, T)):
                out[:, :, d:, d] = self.weights.diagonal(-d, 2, 3)
            return out
        groups = self.key.shape[1]
        q = self.query.reshape(B, groups, H // groups, T, -1).float()
        k = self.key.float()[:, :, None]
        norms = self._norms()
        norms = norms.masked_fill(~norms.isfinite(), torch.nan)  # of an overflow nothing is known
        for d in range(1 + width):
            back = slice(0, 1) if d == 0 else slice(0, T - d)
            if back.stop <= 0:
                break
            s = self._scaled((q[..., d:, :] * k[..., back, :]).sum(-1).flatten(1, 2))  # (B, H, T - d)
            if self.mask is not None:
                s = _masked(s, self.mask[..., 0] if d == 0 else self.mask.diagonal(-d, 2, 3))
            out[:, :, d:, d] = (s - norms[:, :, d:]).exp()
        return out

    def fused(self, current: Pass) -> Tensor:
        """The heads' outputs (B, T, H, d) by the kernel that SDPA takes on a CPU; it leaves the norms."""
        mask = None if self.mask is None else current.additive(self.mask, self.query.dtype)
        z: Tensor
        z, self.norms = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            self.query, self.key, self.value, 0.0, mask is None, attn_mask=mask, scale=self.scaling
        )
        return z.transpose(1, 2).contiguous()

    def output(self) -> Tensor:
        """The heads' outputs (B, T, H, d) by explicit softmax, which is kept where it was made in one part."""
        B, H, _, _ = self.query.shape
        groups, S, d = self.value.shape[1:]
        v, parts = self.value.float(), []
        for index in self._chunks():
            p = self._softmax(self._scores(index, S))
            parts.append((p.reshape(B, groups, -1, S) @ v).view(B, H, -1, d))
        if len(parts) == 1:
            self.weights = p
        z = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        if self.mask is not None:
            # A row that may see nothing (padding on the left) has no defined output; nothing visible reads it.
            seen = self.mask if self.mask.dtype == torch.bool else ~self.mask.isneginf()
            z.masked_fill_(~seen.any(-1, keepdim=True), 0.0)
        return z.transpose(1, 2).to(self.value.dtype).contiguous()

    def _norms(self) -> Tensor:
        if self.norms is None:
            norms = torch.cat([self._scores(index, self.key.shape[2]).logsumexp(-1) for index in self._chunks()], 2)
            self.norms = norms if self.sinks is None else torch.logaddexp(norms, self.sinks.float().view(1, -1, 1))
        return self.norms

    def _softmax(self, s: Tensor) -> Tensor:
        """Scores (B, H, R, S) -> weights, of which a sink takes its share."""
        if self.sinks is None:
            return s.softmax(-1)
        B, H, R, S = s.shape
        sink = self.sinks.float().view(1, H, 1, 1).expand(B, H, R, 1)
        return torch.cat([s, sink], -1).softmax(-1)[..., :S]

    def _scores(self, index: Tensor | None, S: int) -> Tensor:
        """Scaled, capped and masked, float32, of query positions index (B, R; None: all) with the first S keys:
        (B, H, R, S)."""
        B, H, T, d = self.query.shape
        groups = self.key.shape[1]
        q = (self.query if index is None else _at(self.query, index)).float()
        # Query head h reads key head h // (H / H_kv): the order of repeat_interleave.
        s = q.reshape(B, groups, -1, d) @ self.key[:, :, :S].float().transpose(2, 3)
        s = self._scaled(s.view(B, H, -1, S))
        if self.mask is None:
            # None means causal where there is more than one query, and everything visible for a single one.
            last = torch.arange(T, device=s.device)[None] if index is None else index
            last = last + (self.key.shape[2] - T)
            return s.masked_fill_((torch.arange(S, device=s.device) > last[:, :, None])[:, None], -torch.inf)
        mask = self.mask[..., :S]
        return _masked(s, mask if index is None else _at(mask.expand(B, -1, T, -1), index))

    def _scaled(self, s: Tensor) -> Tensor:
        s = s.mul_(self.scaling)
        return s if self.softcap is None else torch.tanh(s / self.softcap) * self.softcap

    def _chunks(self) -> Iterator[Tensor | None]:
        """All query positions: None where their scores stay within `_MAX_SCORES`, else in parts (B, R) that do."""
        B, H, T, _ = self.query.shape
        rows = max(1, _MAX_SCORES // (B * H * self.key.shape[2]))
        if rows >= T:
            yield None
        else:
            yield from torch.split(torch.arange(T, device=self.query.device).expand(B, T), rows, 1)


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Of x (B, H, T, n) the positions index (B, R): (B, H, R, n)."""
    B, H, _, n = x.shape
    return x.gather(2, index[:, None, :, None].expand(B, H, index.shape[1], n))


def _masked(s: Tensor, mask: Tensor) -> Tensor:
    """In place."""
    return s.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else s.add_(mask.float())


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
