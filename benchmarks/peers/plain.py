"""transformers with SDPA attention, its default, and no measurement: what a forward pass and decoding cost at least.

`forward` runs the base model over all rows with a term, `forward_logits` adds the vocabulary projection at the last
token of each row, `generation` decodes greedily, one prompt at a time
(https://huggingface.co/docs/transformers/llm_tutorial, https://huggingface.co/docs/transformers/main_classes/text_generation).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from work import Work, batches, padded, tokens
from worker import Job, serve


def forward(model: PreTrainedModel, work: Work, logits: bool) -> Mapping[str, np.ndarray]:
    """The last token's hidden state, or the id that the model finds most likely to follow."""
    found: dict[int, Tensor] = {}
    for batch in batches(work.binding):
        rows = [work.binding[i] for i in batch]
        hidden = model.base_model(torch.from_numpy(padded(rows)), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows)), torch.tensor([len(row.ids) - 1 for row in rows])]
        found |= zip(batch, model.get_output_embeddings()(last).argmax(-1) if logits else last, strict=True)
    values = torch.stack([found[i] for i in range(len(found))])
    return {"next" if logits else "hidden": values.numpy()}


def generation(model: PreTrainedModel, work: Work) -> Mapping[str, np.ndarray]:
    found = []
    for row in work.generation:
        ids = torch.tensor([row.ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=work.max_new_tokens,
            do_sample=False,
            pad_token_id=model.config.eos_token_id,
        )
        found.append(out[0, len(row.ids) :].tolist())
    return {"tokens": tokens(found, work.max_new_tokens)}


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return {
        "forward": partial(forward, model, work, False),
        "forward_logits": partial(forward, model, work, True),
        "generation": partial(generation, model, work),
    }


if __name__ == "__main__":
    serve(load, "transformers")
