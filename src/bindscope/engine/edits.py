"""Ways to ablate heads: what a head's output z_h (before the output projection) is replaced by.

zero       z_h = 0
mean       its mean over neutral text, by position (1, 2-3, 4-7, ...): the head keeps its average output
resample   its output at the same position of another prompt: a typical output, about something else
published  z_h = b_V,h, the head's value bias: what is left where the attention pattern is set to zero after value
           biases are folded (Tran 2026; zero in architectures without a value bias)
knockout   only the edges inside the term, A[s_i, s_j] with i > j, are cut, and the rows renormalised to their sum

A batch may hold many conditions: a mask says for each row which heads are ablated.
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
    """Layer -> (conditions * rows, heads) booleans: true where a head is ablated; rows of one condition together."""
    out: dict[int, Tensor] = {}
    for c, chosen in enumerate(conditions):
        for layer, head in chosen:
            if layer not in out:
                out[layer] = torch.zeros(len(conditions) * rows, heads, dtype=torch.bool, device=device)
            out[layer][c * rows : (c + 1) * rows, head] = True
    return out


def replacing(ablated: dict[int, Tensor], values: dict[int, Tensor] | None) -> Edit:
    """The edit that puts `values[layer]`, broadcast to (B, T, H, d), or zero in the place of an ablated head."""

    def edit(layer: int, z: Tensor) -> Tensor:
        if layer not in ablated:
            return z
        new = torch.zeros((), dtype=z.dtype, device=z.device) if values is None else values[layer].to(z)
        return torch.where(ablated[layer].to(z.device)[:, None, :, None], new, z)

    return edit


@dataclass(frozen=True)
class Spans:
    """tokens: (B, k) positions of each row's term, -1 where it has fewer."""

    tokens: Tensor


def knocking_out(ablated: dict[int, Tensor], spans: Spans) -> Rewire:
    """Knock out the edges inside the term, in the heads of the mask."""

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
        # Padding of the span points at position 0, whose own row must stay as it is: written last to first.
        out = z.clone()
        for i in reversed(range(k)):
            at = index[:, i : i + 1]
            keep = torch.where(real[:, i : i + 1], new[:, i : i + 1], out.gather(1, at))
            out.scatter_(1, at, keep)
        return out

    return rewire


@torch.no_grad()
def value_biases(model: PreTrainedModel) -> dict[int, Tensor]:
    """Layer -> (H, d): a head's output when the layer's input is zero, which is its value bias."""
    require_hook(model)
    found: dict[int, Tensor] = {}
    taken: dict[int, Tensor] = {}
    zero = [_zeroed(part) for layer in layers(model) for part in layer.modules() if hasattr(part, "layer_idx")]

    def keep(layer: int, z: Tensor) -> Tensor:
        found[layer] = z[0, 0].clone()
        return z

    first = torch.zeros(1, 1, dtype=torch.long, device=model.device)

    def look(layer: int, attention: Attention) -> None:
        taken[layer] = attention.probabilities(first.to(attention.query.device))[0, :, 0]

    try:
        with during(look, edit=keep):
            model(first, use_cache=False)
    finally:
        for handle in zero:
            handle.remove()
    # Where a sink takes a share of the row, the one token in it has the rest.
    return {layer: z / taken[layer].to(z.dtype) for layer, z in found.items()}


def _zeroed(attention: torch.nn.Module) -> torch.utils.hooks.RemovableHandle:
    def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        def blank(x: Any) -> Any:
            return torch.zeros_like(x) if isinstance(x, Tensor) else x

        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": blank(kwargs["hidden_states"])}
        return (blank(args[0]), *args[1:]), kwargs

    return attention.register_forward_pre_hook(hook, with_kwargs=True)


def bins(positions: Tensor, last: int) -> Tensor:
    """Position -> bin as in `position_bins`, from 0 for position 0; positions after `last` take its bin."""
    table = torch.from_numpy(position_bins(np.arange(last + 1)) + 1).to(positions.device)
    return table[positions.clamp(max=last)]
