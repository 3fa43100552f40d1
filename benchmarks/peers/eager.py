"""transformers with eager attention, which returns the attention weights of all layers: `binding` in batches, and
`binding_neutral` with the neutral text too, from which bindscope computes previous-token scores.

https://huggingface.co/docs/transformers/main_classes/output (attentions)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from model import resident
from transformers import AutoModelForCausalLM, PreTrainedModel
from work import Row, Work, batches, eb_star, padded
from worker import Job, serve


def binding(model: PreTrainedModel, texts: Sequence[Row]) -> Mapping[str, np.ndarray]:
    """EB* of the texts with a term."""
    values = np.empty(len(texts))
    for batch in batches([row.ids for row in texts]):
        rows = [texts[i] for i in batch]
        ids = torch.from_numpy(padded([row.ids for row in rows]))
        layers = model.base_model(ids, use_cache=False, output_attentions=True).attentions  # L of (B, H, T, T)
        for b, i in enumerate(batch):
            if rows[b].span:
                values[i] = eb_star([layer[b].numpy() for layer in layers], rows[b].span)
    return {"eb_star": values[[bool(row.span) for row in texts]]}


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    model = resident(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    )
    return {
        "binding": partial(binding, model, work.binding),
        "binding_neutral": partial(binding, model, work.binding + work.neutral),
    }


if __name__ == "__main__":
    serve(load, "transformers")
