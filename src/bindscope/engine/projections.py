"""The heads' output projections, and attention counted by the norm of what it carries through them.

The weight of key j for head h at position i is ||A[i, j] v_j W_O^h|| as a share of the same over all keys of i
(Kobayashi et al. 2020, arXiv:2004.10102), W_O^h the head's rows of the output projection.
"""

from __future__ import annotations

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bindscope.engine.trunk import layers

#: What architectures call the projection of the heads' outputs.
_PROJECTIONS = ("o_proj", "dense", "c_proj", "out_proj", "wo")

#: Layer -> W_O W_O^T of every head, (H, d, d): ||v W_O||^2 = v (W_O W_O^T) v^T.
Grams = dict[int, Tensor]


def carried_attention(p: Tensor, value: Tensor, gram: Tensor, spans: Tensor) -> Tensor:
    """Attention inside each span of one layer, counted by the norm of what it carries: (B, H, k, k).

    p: (B, H, k, S) attention of the tokens of each row's span, the last one repeated where it has fewer than k
    value: (B, H_kv, S, d) of the keys
    gram: (H, d, d), see `grams`
    spans: (B, k) positions of those tokens
    """
    v = value.float()[:, :, None]  # (B, H_kv, 1, S, d)
    g = gram.to(v.device).reshape(value.shape[1], -1, *gram.shape[1:])  # (H_kv, H / H_kv, d, d)
    size: Tensor = ((v @ g) * v).sum(-1).clamp(min=0).sqrt().flatten(1, 2)  # (B, H, S)
    carried: Tensor = p * size[:, :, None]
    carried = carried / carried.sum(-1, keepdim=True)
    B, H, k, _ = carried.shape
    return carried.gather(3, spans[:, None, None].expand(B, H, k, k))


def grams(model: PreTrainedModel) -> Grams | None:
    """Of every layer; None where the architecture's projection is not known."""
    weights = projections(model)
    return None if weights is None else {i: w @ w.transpose(1, 2) for i, w in weights.items()}


@torch.no_grad()
def projections(model: PreTrainedModel) -> dict[int, Tensor] | None:
    """Layer -> W_O as (H, d, D) in float32; None where the architecture's projection is not known."""
    heads, out = int(model.config.num_attention_heads), {}
    for i, layer in enumerate(layers(model)):
        attention = next(part for part in layer.modules() if getattr(part, "layer_idx", None) == i)
        attention = next((p for p in layer.modules() if getattr(p, "layer_idx", None) == i and _named(p)), attention)
        module = _named(attention)
        if module is None:
            return None
        with align_module_device(module):  # brings in what lies on the disk
            rows = _matrix(module)
        if rows is None or rows.shape[0] % heads:
            return None
        out[i] = rows.reshape(heads, -1, rows.shape[1])
    return out


def _matrix(module: torch.nn.Module) -> Tensor | None:
    """What a linear module multiplies by, (in, out) in float32: its weight where that is plain, else (quantised
    weights, adapters) what it makes of the unit vectors."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return None
    if type(module) in (torch.nn.Linear, Conv1D) and type(weight) is torch.nn.Parameter:  # adapters have like names
        return (weight if type(module) is Conv1D else weight.T).detach().float()
    size = getattr(module, "in_features", None)
    if size is None:
        return None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    unit = torch.eye(size, dtype=dtype, device=weight.device)
    found: Tensor = module(unit) - module(torch.zeros_like(unit[:1]))
    return found.float()


def _named(attention: torch.nn.Module) -> torch.nn.Module | None:
    return next((getattr(attention, name) for name in _PROJECTIONS if hasattr(attention, name)), None)
