"""The attention hook: one function reads attention rows and edits heads in every architecture.

transformers calls a registered function with query, key and value after rotary embedding, the mask and the scaling; the
function returns the heads' outputs *before* the output projection. bindscope registers its own function under the name
"bindscope". PyTorch's SDPA kernel computes the outputs. Attention probabilities are computed only where an observer
asks for them: weights near the diagonal from the log-sum-exp of each row, which the kernel for CPUs returns, and whole
rows for a few queries. No T x T tensor is kept. A mask function is registered under the same name: without it,
transformers passes no mask and attention becomes bidirectional without any error.

A forward pass can be *packed*: one row holds a prompt and several continuations, and each continuation sees only the
prompt and itself. The mask function receives the architecture's own rule (causal, sliding window, ...) as a function of
positions. The mask of a packed row is that rule at the logical positions, combined by "and" with which segments may see
each other.

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

#: Receives a layer index and the inputs of its heads; returns nothing.
Observer = Callable[[int, "Attention"], None]

#: Receives a layer index and the heads' outputs (B, T, H, d) before the output projection; returns the same shape.
Edit = Callable[[int, Tensor], Tensor]

#: The same, with the inputs of the heads as well.
Rewire = Callable[[int, Tensor, "Attention"], Tensor]

#: At most this many scores are computed at a time, which bounds the memory that a layer's rows take.
_MAX_SCORES = 1 << 24

#: For texts of at most this many tokens that an observer reads, an explicit softmax is faster than the kernel.
EXPLICIT_TOKENS = 96


@dataclass(frozen=True)
class Packing:
    """Where the tokens of packed rows belong.

    positions: (B, T) logical positions
    segments: (B, T) 0 for the prompt, 1, 2, ... for its continuations, -1 for padding
    """

    positions: Tensor
    segments: Tensor


@dataclass
class Pass:
    """The settings of one forward pass through the hook.

    observer: reads the heads of each layer
    packing: positions and segments of packed rows, None where rows are not packed
    edit: changes the heads' outputs
    rewire: changes the heads' outputs and also receives the heads' inputs
    explicit_tokens: the longest text, in tokens, that uses the explicit softmax; see `EXPLICIT_TOKENS`
    """

    observer: Observer | None = None
    packing: Packing | None = None
    edit: Edit | None = None
    rewire: Rewire | None = None
    explicit_tokens: int = EXPLICIT_TOKENS
    _masks: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def additive(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask as numbers that are added to scores, converted once for all layers that share the mask."""
        if mask.dtype != torch.bool:
            return mask
        key = id(mask), dtype
        if key not in self._masks:  # keeping the mask itself ensures that no other tensor gets its id
            self._masks[key] = mask, torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
        return self._masks[key][1]


_CURRENT: ContextVar[Pass | None] = ContextVar("bindscope_pass", default=None)


def require_hook(model: PreTrainedModel) -> None:
    """Check that the model's attention goes through the hook. Raises RuntimeError where it does not."""
    if model.config._attn_implementation != NAME:
        raise RuntimeError("the attention hook is not installed; use the model inside `with Engine(...)`")


@contextmanager
def hooked(model: PreTrainedModel) -> Iterator[None]:
    """Within this block the model's attention goes through the hook; the block restores the former implementation.

    Raises UnsupportedArchitecture, naming the architecture, where transformers cannot replace its attention.
    """
    before = model.config._attn_implementation
    set_implementation(model, NAME)
    try:
        yield
    finally:
        set_implementation(model, before)


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """Switch the model's attention function. Raises UnsupportedArchitecture where the model does not allow it."""
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise unsupported(model, " ".join(str(error).split())) from error
    if model.config._attn_implementation != name:
        raise unsupported(
            model,
            "it has its own attention code, which does not use the attention interface of transformers, so its heads "
            "can be neither read nor edited",
        )


def unsupported(model: PreTrainedModel, reason: str) -> UnsupportedArchitecture:
    """The error for a model whose heads cannot be read; it names the architecture and the reason."""
    return UnsupportedArchitecture(
        f"{type(model).__name__} (model_type {model.config.model_type!r}) cannot be measured: {reason}"
    )


@contextmanager
def during(
    observer: Observer | None = None,
    packing: Packing | None = None,
    edit: Edit | None = None,
    rewire: Rewire | None = None,
    explicit_tokens: int = EXPLICIT_TOKENS,
) -> Iterator[None]:
    """Within this block forward passes are observed and edited; the arguments are the fields of `Pass`."""
    token = _CURRENT.set(
        Pass(observer=observer, packing=packing, edit=edit, rewire=rewire, explicit_tokens=explicit_tokens)
    )
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
        raise UnsupportedArchitecture(
            f"{type(module).__name__} adds a position bias to its scores, which the hook does not support"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attention = Attention(
        query=query, key=key, value=value, mask=attention_mask, scaling=scale, softcap=softcap, sinks=s_aux
    )
    current = _CURRENT.get()
    observed = (
        current is not None and current.observer is not None and not dropout and _causal(module, attention, kwargs)
    )
    settings = current if observed else None
    explicit = settings is not None and query.shape[2] <= settings.explicit_tokens and query.dtype == torch.float32
    if explicit or softcap is not None or s_aux is not None:
        z = attention.output()  # SDPA supports neither soft-capping nor sinks
    elif settings is not None and attention.fusible:
        z = attention.fused(settings)
    else:
        z, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if current is not None:
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise UnsupportedArchitecture(f"{type(module).__name__} has no layer_idx, so its layer is not known")
        if current.observer is not None:
            current.observer(layer, attention)
        if current.rewire is not None:
            z = current.rewire(layer, z, attention)
        if current.edit is not None:
            z = current.edit(layer, z)
    return z, None


def _causal(module: torch.nn.Module, attention: Attention, kwargs: dict[str, Any]) -> bool:
    """Whether the mask alone (None: plain causal) decides which keys a query sees, as it does for SDPA."""
    if attention.mask is not None:
        return attention.mask.dim() == 4
    causal = getattr(module, "is_causal", True) and kwargs.get("is_causal") in (None, True)
    return bool(causal and attention.query.shape[2] == attention.key.shape[2])


@dataclass
class Attention:
    """The inputs of the heads of one layer, after rotary embedding, and what is computed from them.

    query: (B, H, T, d)
    key, value: (B, H_kv, S, d)
    mask: (B or 1, 1 or H, T, S), None for plain causal attention
    scaling: factor of the scores
    softcap: bound of the scores under tanh, None for none
    sinks: (H,) score of each head's attention sink, None for none
    norms: (B, H, T) log-sum-exp of each row of scores, None until it is needed
    weights: (B, H, T, S) the whole softmax, None where it was not computed at once
    """

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
        """Whether SDPA would use its flash kernel for CPUs, which also returns the log-sum-exp of every row."""
        ready = all(x.stride(-1) == 1 for x in (self.query, self.key, self.value))
        return ready and self.query.device.type == "cpu" and self.query.shape[-1] == self.value.shape[-1]

    def probabilities(self, index: Tensor, keys: int | None = None) -> Tensor:
        """Attention rows of some query positions: (B, H, R, S) in float32.

        index: (B, R) query positions
        keys: compute only the first so many keys, where the queries see no others; None for all
        """
        S = self.key.shape[2] if keys is None else keys
        if self.weights is None:
            return self._softmax(self._scores(index, S))
        return _at(self.weights[..., :S], index)

    def band(self, width: int) -> Tensor:
        """Attention below the diagonal: (B, H, T, 1 + width) in float32.

        Entry 0 is the weight of position i on position 0, entry d the weight on position i - d (NaN where that is
        before the start). The queries must be the whole text (T = S).
        """
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
        norms = norms.masked_fill(~norms.isfinite(), torch.nan)  # the scores of the row overflowed
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
        """The heads' outputs (B, T, H, d) from the kernel that SDPA uses on a CPU, which also fills `norms`."""
        mask = None if self.mask is None else current.additive(self.mask, self.query.dtype)
        z: Tensor
        z, self.norms = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            self.query, self.key, self.value, 0.0, mask is None, attn_mask=mask, scale=self.scaling
        )
        return z.transpose(1, 2).contiguous()

    def output(self) -> Tensor:
        """The heads' outputs (B, T, H, d) by explicit softmax; fills `weights` where the scores fit into one part."""
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
            # A query that sees no key (padding on the left) has no defined output, and no real token attends to it.
            visible = self.mask if self.mask.dtype == torch.bool else ~self.mask.isneginf()
            z.masked_fill_(~visible.any(-1, keepdim=True), 0.0)
        return z.transpose(1, 2).to(self.value.dtype).contiguous()

    def _norms(self) -> Tensor:
        if self.norms is None:
            norms = torch.cat([self._scores(index, self.key.shape[2]).logsumexp(-1) for index in self._chunks()], 2)
            self.norms = norms if self.sinks is None else torch.logaddexp(norms, self.sinks.float().view(1, -1, 1))
        return self.norms

    def _softmax(self, s: Tensor) -> Tensor:
        """Scores (B, H, R, S) -> attention weights; an attention sink takes part of each row."""
        if self.sinks is None:
            return s.softmax(-1)
        B, H, R, S = s.shape
        sink = self.sinks.float().view(1, H, 1, 1).expand(B, H, R, 1)
        return torch.cat([s, sink], -1).softmax(-1)[..., :S]

    def _scores(self, index: Tensor | None, S: int) -> Tensor:
        """Scaled, capped and masked scores of query positions with the first S keys: (B, H, R, S) in float32.

        index: (B, R) query positions, None for all
        """
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
        """All query positions: None where their scores fit into `_MAX_SCORES`, else in parts (B, R) that do."""
        B, H, T, _ = self.query.shape
        rows = max(1, _MAX_SCORES // (B * H * self.key.shape[2]))
        if rows >= T:
            yield None
        else:
            yield from torch.split(torch.arange(T, device=self.query.device).expand(B, T), rows, 1)


def _at(x: Tensor, index: Tensor) -> Tensor:
    """The entries of x (B, H, T, n) at positions index (B, R): (B, H, R, n)."""
    B, H, _, n = x.shape
    return x.gather(2, index[:, None, :, None].expand(B, H, index.shape[1], n))


def _masked(s: Tensor, mask: Tensor) -> Tensor:
    """The scores with the mask applied, in place."""
    return s.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else s.add_(mask.float())


def _mask(*args: Any, **kwargs: Any) -> Any:
    """The mask of the current pass: a boolean (B, 1, T, T) mask where rows are packed, else that of SDPA."""
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
    of_query, of_key = segments[:, None, :, None], segments[:, None, None, :]
    i = torch.arange(T, device=device)
    before = i[None, :] <= i[:, None]
    visible = ((of_key == 0) | (of_key == of_query)) & (of_query >= 0) & before
    # Padding sees itself, because the softmax of an empty row is not defined.
    return (allowed & visible) | torch.eye(T, dtype=torch.bool, device=device)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
