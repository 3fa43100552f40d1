"""A check at every load that the hook reads and edits the attention that the model uses."""

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

#: Largest accepted deviation from eager attention, by dtype: of attention weights, and of logits divided by their
#: standard deviation. The formats differ in precision (bfloat16 8 bits, float16 11); rows are always float32.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


#: How many positions back the check reads the band.
_WIDTH = 3


@dataclass(frozen=True)
class SelfCheck:
    """The result of a self-check.

    rows: largest deviation of an attention weight from eager attention
    logits: largest deviation of the logits from those of eager attention, in their standard deviations
    edit: largest change of a logit when the output of one head is set to zero, in standard deviations
    packed: whether packed continuations score as separate ones; where they do not, they share cached keys and values
    """

    rows: float
    logits: float
    edit: float
    packed: bool


def self_check(model: PreTrainedModel, length: int = 64) -> SelfCheck:
    """Check a model on a made-up text.

    model: the model
    length: tokens of the text
    Raises UnsupportedArchitecture, with the reason, where a check fails.
    """
    if getattr(model.config, "index_topk", None):
        raise unsupported(
            model, "its attention uses only the index_topk highest keys of each query, which the hook does not see"
        )
    length = min(length, getattr(model.config, "max_position_embeddings", None) or length)
    limit = TOLERANCE[model.dtype]
    V = int(model.config.vocab_size)
    ids = torch.tensor([[(7 * i * i + 3) % V for i in range(1, length + 1)]], device=model.device)
    layers = int(model.config.num_hidden_layers)
    with torch.no_grad():
        eager_rows, eager = _eager(model, ids)
        with hooked(model):
            read = [_read(model, ids, explicit) for explicit in (0, length)]
            with during(edit=_zero_first_head(layers // 2)):
                edited = model(ids, use_cache=False).logits
            packed = _packing_holds(model, tuple(ids[0].tolist()), limit)
    spread = float(eager.float().std()) or 1.0
    # np.max returns NaN where one of the values is NaN; Python's max may not.
    off_rows = np.max([_deviation(x.rows[i], x.bands[i], eager_rows[i].float()) for x in read for i in x.rows])
    sums = np.max([float(rows.sum(-1).max()) for x in read for rows in x.rows.values()])
    # The root mean square over the vocabulary at the worst position, since single logits are noisy in half precision.
    off_logits = np.max([float((x.logits - eager).float().square().mean(-1).sqrt().max()) for x in read]) / spread
    moved = float((edited - read[0].logits).float().abs().max()) / spread
    if not (np.isfinite(off_rows) and off_rows <= limit):
        raise unsupported(
            model, f"attention rows under the hook differ from eager ones by {off_rows:.1e} (limit {limit:.0e})"
        )
    if not (np.isfinite(off_logits) and off_logits <= limit):
        raise unsupported(
            model,
            f"logits under the hook differ from eager ones by {off_logits:.1e} standard deviations (limit {limit:.0e})",
        )
    if sums > 1 + limit:
        raise unsupported(model, f"attention rows sum to {sums:.4f}, more than 1")
    if moved == 0:
        raise unsupported(model, "setting a head's output to zero leaves the logits unchanged, so edits have no effect")
    return SelfCheck(float(off_rows), float(off_logits), moved, packed)


@dataclass
class _Hooked:
    """What one pass under the hook gives.

    rows: layer -> (1, H, T, T) attention rows
    bands: layer -> (1, H, T, 1 + _WIDTH), see `Attention.band`
    logits: (1, T, V)
    """

    rows: dict[int, Tensor]
    bands: dict[int, Tensor]
    logits: Tensor


def _read(model: PreTrainedModel, ids: Tensor, explicit_tokens: int) -> _Hooked:
    """One pass under the hook: with the kernel (explicit_tokens 0) or with the explicit softmax."""
    rows: dict[int, Tensor] = {}
    bands: dict[int, Tensor] = {}

    def observe(layer: int, attention: Attention) -> None:
        rows[layer] = attention.probabilities(torch.arange(ids.shape[1], device=attention.query.device)[None])
        bands[layer] = attention.band(_WIDTH)

    with during(observe, explicit_tokens=explicit_tokens):
        logits = model(ids, use_cache=False).logits
    layers = int(model.config.num_hidden_layers)
    if missing := sorted(set(range(layers)) - set(rows)):
        raise unsupported(model, f"layers {missing} of {layers} have no attention rows (linear or recurrent layers)")
    return _Hooked(rows, bands, logits)


def _deviation(rows: Tensor, band: Tensor, eager: Tensor) -> float:
    """Largest deviation from eager attention, of the whole rows and of the band, which is computed in another way."""
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
        raise unsupported(model, "it returns no attention rows in eager mode, so the hook cannot be checked")
    return out.attentions, out.logits


def _zero_first_head(layer: int) -> Edit:
    def edit(at: int, z: Tensor) -> Tensor:
        return z if at != layer else torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, 1:]], 2)

    return edit


def _packing_holds(model: PreTrainedModel, ids: tuple[int, ...], limit: float) -> bool:
    """Whether continuations packed after a prompt score as in one forward pass each.

    Two conditions must hold. The score of a packed continuation must not depend on the other continuations of its row.
    It must be as close to the score of a separate forward pass as the score with a shared key-value cache is.

    Raises UnsupportedArchitecture where neither packing nor the shared cache gives the scores of separate passes.
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
    except Exception as error:  # architectures raise different errors for a cache that cannot be repeated
        raise unsupported(
            model, f"its key-value cache cannot be shared: {' '.join(str(error).split())[:200]}"
        ) from error
    if shared > 10 * limit:
        raise unsupported(
            model,
            f"log-probabilities of continuations that share a prompt differ by {shared:.1e} from those of separate "
            f"passes (limit {10 * limit:.0e})",
        )
    return neighbors <= 1e-4 and alone <= 4 * shared


def _scores(
    model: PreTrainedModel, prompt: tuple[int, ...], tails: Sequence[tuple[int, ...]], *, packed: bool
) -> tuple[LogProbs, ...]:
    """For each continuation in `tails` the log P of its tokens after the prompt."""
    ((_, data),) = stream(model, [TextInput(prompt, tuple(tails))], packed=packed, needs=Needs())
    return data.logprobs


def _off(measured: Sequence[LogProbs], expected: Sequence[LogProbs]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(measured, expected, strict=True))
