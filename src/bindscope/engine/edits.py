"""Ways to ablate heads: each mode replaces a head's output z_h (before the output projection).

zero       z_h = 0
mean       z_h = its mean over neutral text in the same position bin (1, 2-3, 4-7, ...)
resample   z_h = its output at the same position of another prompt
published  z_h = b_V,h, the head's value bias: the output of a head whose attention pattern is set to zero after value
           biases are folded (Tran 2026; zero in architectures without a value bias)
knockout   only the edges inside the term, A[s_i, s_j] with i > j, are set to zero; each row keeps its sum

A batch may hold many conditions: a mask gives the ablated heads of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bindscope.engine.attention import Attention, Edit, Rewire, during, require_hook
from bindscope.engine.positions import position_bins
from bindscope.engine.trunk import layers
from bindscope.records import Head


def mask(conditions: Sequence[Sequence[Head]], rows: int, heads: int, device: torch.device) -> dict[int, Tensor]:
    """Layer -> (conditions * rows, heads) booleans, true where a head is ablated; condition by condition.

    conditions: (layer, head) of the heads that each condition ablates
    rows: number of texts
    heads: number of heads in a layer
    device: where the mask is put
    """
    out: dict[int, Tensor] = {}
    for c, chosen in enumerate(conditions):
        for layer, head in chosen:
            if layer not in out:
                out[layer] = torch.zeros(len(conditions) * rows, heads, dtype=torch.bool, device=device)
            out[layer][c * rows : (c + 1) * rows, head] = True
    return out


def replacing(ablated: dict[int, Tensor], values: dict[int, Tensor] | None) -> Edit:
    """The edit that replaces the outputs of ablated heads.

    ablated: layer -> (B, H) booleans
    values: layer -> new outputs, broadcast to (B, T, H, d); None for zero
    """

    def edit(layer: int, z: Tensor) -> Tensor:
        if layer not in ablated:
            return z
        new = torch.zeros((), dtype=z.dtype, device=z.device) if values is None else values[layer].to(z)
        return torch.where(ablated[layer].to(z.device)[:, None, :, None], new, z)

    return edit


@dataclass(frozen=True)
class Spans:
    """Where the term stands in each row of a batch.

    tokens: (B, k) positions of the term's tokens, -1 where a term has fewer than k
    """

    tokens: Tensor


def knocking_out(ablated: dict[int, Tensor], spans: Spans) -> Rewire:
    """The rewiring that knocks out the edges inside the term.

    ablated: layer -> (B, H) booleans, true for the heads whose edges are knocked out
    spans: where the term stands in each row
    """

    def rewire(layer: int, z: Tensor, attention: Attention) -> Tensor:
        if layer not in ablated:
            return z
        tokens = spans.tokens.to(z.device)
        queries = tokens.clamp(min=0)
        p = attention.probabilities(queries)  # (B, H, k, S)
        B, H, k, S = p.shape
        value = attention.value.repeat_interleave(H // attention.value.shape[1], 1)
        inside = torch.zeros(B, k, S, dtype=torch.bool, device=p.device)
        for i in range(1, k):
            for j in range(i):
                real = (tokens[:, i] >= 0) & (tokens[:, j] >= 0)
                rows = real.nonzero()[:, 0]
                inside[rows, i, tokens[rows, j]] = True
        left = p.masked_fill(inside[:, None], 0.0)
        total, rest = p.sum(-1, keepdim=True), left.sum(-1, keepdim=True)
        left = torch.where(rest > 0, left * (total / rest.clamp(min=1e-12)), left)
        new = (left.to(value.dtype) @ value).transpose(1, 2).to(z.dtype)  # (B, k, H, d)
        index = queries[:, :, None, None].expand(-1, -1, H, z.shape[-1])
        real = (tokens >= 0)[:, :, None, None] & ablated[layer].to(z.device)[:, None, :, None]
        # Padding of a span has index 0. Going from the last token to the first writes the row of a term at position 0
        # after the padding, so the padding cannot overwrite it.
        out = z.clone()
        for i in reversed(range(k)):
            at = index[:, i : i + 1]
            keep = torch.where(real[:, i : i + 1], new[:, i : i + 1], out.gather(1, at))
            out.scatter_(1, at, keep)
        return out

    return rewire


@torch.no_grad()
def value_biases(model: PreTrainedModel) -> dict[int, Tensor]:
    """Layer -> (H, d): the value bias of every head, which is its output when the input of the layer is zero.

    Raises RuntimeError where the hook is not installed.
    """
    require_hook(model)
    outputs: dict[int, Tensor] = {}
    weights: dict[int, Tensor] = {}
    zero = [_zeroed(part) for layer in layers(model) for part in layer.modules() if hasattr(part, "layer_idx")]

    def keep(layer: int, z: Tensor) -> Tensor:
        outputs[layer] = z[0, 0].clone()
        return z

    first = torch.zeros(1, 1, dtype=torch.long, device=model.device)

    def observe(layer: int, attention: Attention) -> None:
        weights[layer] = attention.probabilities(first.to(attention.query.device))[0, :, 0]

    try:
        with during(observe, edit=keep):
            model(first, use_cache=False)
    finally:
        for handle in zero:
            handle.remove()
    # With an attention sink the weight of the only token is below 1, so the output is divided by that weight.
    return {layer: z / weights[layer].to(z.dtype) for layer, z in outputs.items()}


def _zeroed(attention: torch.nn.Module) -> torch.utils.hooks.RemovableHandle:
    def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        def blank(x: Any) -> Any:
            return torch.zeros_like(x) if isinstance(x, Tensor) else x

        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": blank(kwargs["hidden_states"])}
        return (blank(args[0]), *args[1:]), kwargs

    return attention.register_forward_pre_hook(hook, with_kwargs=True)


def bins(positions: Tensor, last: int) -> Tensor:
    """The bin of each position as in `position_bins` plus one, so that position 0 has bin 0.

    positions: token positions, of any shape
    last: positions after this one have its bin
    """
    table = torch.from_numpy(position_bins(np.arange(last + 1)) + 1).to(positions.device)
    return table[positions.clamp(max=last)]
