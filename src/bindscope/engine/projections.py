"""The heads' output projections, and norm-weighted attention.

The norm-weighted weight of key j for head h at position i is ||A[i, j] v_j W_O^h||, divided by the sum of these norms
over all keys of i (Kobayashi et al. 2020, arXiv:2004.10102). W_O^h is the head's rows of the output projection.
"""

from __future__ import annotations

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bindscope.engine.trunk import layers

#: Names of the output projection in the architectures of transformers.
_PROJECTIONS = ("o_proj", "dense", "c_proj", "out_proj", "wo")

#: Layer -> W_O W_O^T of every head, (H, d, d): ||v W_O||^2 = v (W_O W_O^T) v^T.
Grams = dict[int, Tensor]


def norm_weighted_attention(p: Tensor, value: Tensor, gram: Tensor, spans: Tensor) -> Tensor:
    """Norm-weighted attention inside each span of one layer: (B, H, k, k).

    p: (B, H, k, S) attention rows of the tokens of each row's span, the last token repeated in spans shorter than k
    value: (B, H_kv, S, d) value vectors of the keys
    gram: (H, d, d) of the layer, see `grams`
    spans: (B, k) positions of the spans' tokens
    """
    v = value.float()[:, :, None]  # (B, H_kv, 1, S, d)
    g = gram.to(v.device).reshape(value.shape[1], -1, *gram.shape[1:])  # (H_kv, H / H_kv, d, d)
    size: Tensor = ((v @ g) * v).sum(-1).clamp(min=0).sqrt().flatten(1, 2)  # (B, H, S)
    weights: Tensor = p * size[:, :, None]
    weights = weights / weights.sum(-1, keepdim=True)
    B, H, k, _ = weights.shape
    return weights.gather(3, spans[:, None, None].expand(B, H, k, k))


def grams(model: PreTrainedModel) -> Grams | None:
    """Layer -> (H, d, d) products W_O W_O^T; None where the architecture's output projection is not known."""
    weights = projections(model)
    return None if weights is None else {i: w @ w.transpose(1, 2) for i, w in weights.items()}


@torch.no_grad()
def projections(model: PreTrainedModel) -> dict[int, Tensor] | None:
    """Layer -> (H, d, D) output projection W_O in float32; None where the architecture's is not known."""
    heads, out = int(model.config.num_attention_heads), {}
    for i, layer in enumerate(layers(model)):
        attention = next(part for part in layer.modules() if getattr(part, "layer_idx", None) == i)
        attention = next((p for p in layer.modules() if getattr(p, "layer_idx", None) == i and _named(p)), attention)
        module = _named(attention)
        if module is None:
            return None
        with align_module_device(module):  # loads weights that are offloaded
            rows = _matrix(module)
        if rows is None or rows.shape[0] % heads:
            return None
        out[i] = rows.reshape(heads, -1, rows.shape[1])
    return out


def _matrix(module: torch.nn.Module) -> Tensor | None:
    """The matrix (in, out) of a linear module in float32; None where its input size is not known.

    A plain module has it as its weight. For quantised weights and adapters it is the module's output on unit vectors.
    """
    weight = getattr(module, "weight", None)
    if weight is None:
        return None
    # Exact types, since adapters and quantised modules are subclasses whose weight is not the whole matrix.
    if type(module) in (torch.nn.Linear, Conv1D) and type(weight) is torch.nn.Parameter:
        return (weight if type(module) is Conv1D else weight.T).detach().float()
    size = getattr(module, "in_features", None)
    if size is None:
        return None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    unit = torch.eye(size, dtype=dtype, device=weight.device)
    matrix: Tensor = module(unit) - module(torch.zeros_like(unit[:1]))
    return matrix.float()


def _named(attention: torch.nn.Module) -> torch.nn.Module | None:
    return next((getattr(attention, name) for name in _PROJECTIONS if hasattr(attention, name)), None)
