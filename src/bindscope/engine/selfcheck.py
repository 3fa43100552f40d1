"""Cheap checks, at every load, that what is read and edited is what the model uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bindscope.engine.attention import Attention, Edit, during, hooked, set_implementation, unsupported
from bindscope.engine.capture import TextInput
from bindscope.engine.data import Needs
from bindscope.engine.passes import LogProbs, stream
from bindscope.errors import UnsupportedArchitecture

#: Largest deviation from eager attention that is accepted, by dtype: of probabilities, and of logits relative to
#: their spread. bfloat16 keeps 8 bits of a number, float16 11; bindscope computes rows in float32 whatever the dtype.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


#: Tokens back that the band of the probe reads.
_WIDTH = 3


@dataclass(frozen=True)
class SelfCheck:
    """What was found: largest deviation of rows and logits from eager attention, how far the logits move when a
    head is silenced, and whether packed rows equal separate ones (else continuations share cached keys and values)."""

    rows: float
    logits: float
    edit: float
    packed: bool


def self_check(model: PreTrainedModel, length: int = 64) -> SelfCheck:
    """Run the checks on a probe of `length` tokens. Raises UnsupportedArchitecture, with the reason, if one fails."""
    if getattr(model.config, "index_topk", None):
        raise unsupported(model, "its attention keeps the index_topk highest keys only, which the hook does not see")
    length = min(length, getattr(model.config, "max_position_embeddings", None) or length)
    limit = TOLERANCE[model.dtype]
    V = int(model.config.vocab_size)
    ids = torch.tensor([[(7 * i * i + 3) % V for i in range(1, length + 1)]], device=model.device)
    layers = int(model.config.num_hidden_layers)
    with torch.no_grad():
        eager_rows, eager = _eager(model, ids)
        with hooked(model):
            looks = [_looked(model, ids, short) for short in (0, length)]
            with during(edit=_silence(layers // 2)):
                edited = model(ids, use_cache=False).logits
            packed = _packing_holds(model, tuple(ids[0].tolist()), limit)
    spread = float(eager.float().std()) or 1.0
    # numpy's maximum keeps what is not a number, Python's loses it.
    off_rows = np.max([_deviation(x.rows[i], x.bands[i], eager_rows[i].float()) for x in looks for i in x.rows])
    sums = np.max([float(rows.sum(-1).max()) for x in looks for rows in x.rows.values()])
    # The worst position, by its root mean square over the vocabulary: single logits are noise in half precision.
    off_logits = np.max([float((x.logits - eager).float().square().mean(-1).sqrt().max()) for x in looks]) / spread
    moved = float((edited - looks[0].logits).float().abs().max()) / spread
    if not (np.isfinite(off_rows) and off_rows <= limit):
        raise unsupported(model, f"rows read differ from its eager attention by {off_rows:.1e} (limit {limit:.0e})")
    if not (np.isfinite(off_logits) and off_logits <= limit):
        raise unsupported(
            model,
            f"logits under the hook differ from eager ones by {off_logits:.1e} of their spread (limit {limit:.0e})",
        )
    if sums > 1 + limit:
        raise unsupported(model, f"attention rows sum to {sums:.4f}, more than 1")
    if moved == 0:
        raise unsupported(model, "silencing a head leaves the logits unchanged, so the hook does not reach them")
    return SelfCheck(float(off_rows), float(off_logits), moved, packed)


@dataclass
class _Looked:
    """Whole rows and bands by layer, and logits, of one pass."""

    rows: dict[int, Tensor]
    bands: dict[int, Tensor]
    logits: Tensor


def _looked(model: PreTrainedModel, ids: Tensor, short: int) -> _Looked:
    """What a pass under `hooked` shows, with the kernel (short 0) or with the plain softmax."""
    rows: dict[int, Tensor] = {}
    bands: dict[int, Tensor] = {}

    def look(layer: int, attention: Attention) -> None:
        rows[layer] = attention.probabilities(torch.arange(ids.shape[1], device=attention.query.device)[None])
        bands[layer] = attention.band(_WIDTH)

    with during(look, short=short):
        logits = model(ids, use_cache=False).logits
    layers = int(model.config.num_hidden_layers)
    if missing := sorted(set(range(layers)) - set(rows)):
        raise unsupported(model, f"layers {missing} of {layers} have no attention rows (linear or recurrent layers)")
    return _Looked(rows, bands, logits)


def _deviation(rows: Tensor, band: Tensor, eager: Tensor) -> float:
    """Of whole rows, and of the band that is computed on another way, from eager attention."""
    near = [band[..., 0] - eager[..., 0]]
    near += [band[..., d:, d] - eager.diagonal(-d, 2, 3) for d in range(1, band.shape[-1])]
    return float(np.max([float(part.abs().max()) for part in (rows - eager, *near)]))


def _eager(model: PreTrainedModel, ids: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    before = model.config._attn_implementation
    set_implementation(model, "eager")
    try:
        out = model(ids, use_cache=False, output_attentions=True)
    finally:
        set_implementation(model, before)
    if not getattr(out, "attentions", None) or any(a is None for a in out.attentions):
        raise unsupported(model, "it gives no attention rows in eager mode to check against")
    return out.attentions, out.logits


def _silence(layer: int) -> Edit:
    def edit(at: int, z: Tensor) -> Tensor:
        return z if at != layer else torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, 1:]], 2)

    return edit


def _packing_holds(model: PreTrainedModel, ids: tuple[int, ...], limit: float) -> bool:
    """Whether continuations packed behind a prompt score as in one forward pass each; else the cache must do so.

    Packed, a continuation must not feel its neighbors: in the dtype's own arithmetic it is the same computation,
    whatever stands beside it. Nor may it be further from its own forward pass than the shared cache is.
    """
    n = len(ids) // 2
    prompt, tails = ids[:n], (ids[n : n + 5], ids[n + 5 : n + 9], ids[3:9])
    expected = []
    for tail in tails:
        row = torch.tensor([prompt + tail], device=model.device)
        logs = model(row, use_cache=False).logits[0, n - 1 : -1].float().log_softmax(-1)
        expected.append(logs[range(len(tail)), list(tail)].cpu().numpy())
    alone = _off(_scores(model, prompt, tails, packed=True), expected)
    other = (tuple(reversed(tails[0])), *tails[1:])
    neighbors = _off(*(_scores(model, prompt, t, packed=True)[1:] for t in (tails, other)))
    if neighbors <= 1e-4 and alone <= (10 * limit if model.dtype == torch.float32 else 0.05):
        return True
    try:
        shared = _off(_scores(model, prompt, tails, packed=False), expected)
    except UnsupportedArchitecture:
        raise
    except Exception as error:  # a cache that cannot be repeated fails in ways of its own
        raise unsupported(
            model, f"its key-value cache cannot be shared: {' '.join(str(error).split())[:200]}"
        ) from error
    if shared > 10 * limit:
        raise unsupported(model, "continuations that share a prompt do not score as they do one by one")
    return neighbors <= 1e-4 and alone <= 4 * shared


def _scores(
    model: PreTrainedModel, prompt: tuple[int, ...], tails: Sequence[tuple[int, ...]], *, packed: bool
) -> tuple[LogProbs, ...]:
    """log P of the tokens of each tail after the prompt."""
    ((_, data),) = stream(model, [TextInput(prompt, tuple(tails))], packed=packed, needs=Needs())
    return data.logprobs


def _off(measured: Sequence[LogProbs], expected: Sequence[LogProbs]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(measured, expected, strict=True))
