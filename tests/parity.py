"""How far the hook is from eager attention and from one forward pass per choice, by architecture.

    python tests/parity.py | python docs/sections.py performance parity

Small random models, float32: those of models.py. The same comparisons run as tests, with 1e-5 as the limit.
"""

from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import models
from bindscope.engine.attention import Attention, during, hooked
from bindscope.engine.capture import TextInput


@torch.inference_mode()
def rows_and_logits(model: PreTrainedModel) -> tuple[float, float]:
    """Largest deviation from eager attention over a batch of three with padding on the left."""
    T = 20
    ids = torch.randint(3, 64, (3, T), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :9] = 0
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    eager = model(ids, attention_mask=mask, output_attentions=True, use_cache=False)
    model.set_attn_implementation(before)
    found: dict[int, Tensor] = {}

    def observe(layer: int, attention: Attention) -> None:
        found[layer] = attention.probabilities(torch.arange(T).expand(3, T))

    with hooked(model), during(observe):
        logits = model(ids, attention_mask=mask, use_cache=False).logits
    real = mask.bool()
    rows = max(
        float((found[layer][b][:, real[b]] - weights[b][:, real[b]].float()).abs().max())
        for layer, weights in enumerate(eager.attentions)
        for b in range(3)
    )
    return rows, float((logits - eager.logits)[real].abs().max())


@torch.inference_mode()
def choices(model: PreTrainedModel, packed: bool) -> float:
    """Largest deviation of a token's log-probability from one plain forward pass per choice."""
    rng = np.random.default_rng(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, 64, n))

    inputs = [TextInput(ids(n), tuple(ids(m) for m in (3, 1, 6, 2))) for n in (9, 17, 23)]
    with models.engine(model, packed) as engine:
        outputs = engine.read(inputs)
    worst = 0.0
    for text, data in zip(inputs, outputs, strict=True):
        for tokens, got in zip(text.continuations, data.logprobs, strict=True):
            logs = model(torch.tensor([text.ids + tokens]), use_cache=False).logits[0].double().log_softmax(-1)
            expected = logs[len(text.ids) - 1 : -1][range(len(tokens)), list(tokens)].numpy()
            worst = max(worst, float(np.abs(got - expected).max()))
    return worst


def main() -> None:
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    print(f"{versions}, CPU, float32; random models of three layers.\n")
    print("| architecture | rows, from eager | logits, from eager | choices, packed | choices, shared cache |")
    print("|---|---:|---:|---:|---:|")
    for name, (kind, config) in models.ARCHITECTURES.items():
        model = models.build(kind, config)
        values = (*rows_and_logits(model), choices(model, True), choices(model, False))
        print(f"| {name} | " + " | ".join(f"{v:.1e}" for v in values) + " |")
    print("\nRefused, by name and with the reason: " + ", ".join(models.REFUSED) + ".")


if __name__ == "__main__":
    main()
