"""transformers with SDPA attention, its default, and no measurement: the least that a pass and decoding can cost.

`forward` runs the base model over all rows with a term; `forward_neutral` over the neutral text too, from which
bindscope computes previous-token scores. `read` and `read_controls` run it over all tokens once (each prompt, each
choice's tokens behind it, as one causal text) with the vocabulary projection where a token of a choice is predicted,
the second over the texts of the controls too. `generation` decodes greedily, one prompt at a time
(https://huggingface.co/docs/transformers/llm_tutorial).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from model import resident
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from work import Row, Work, batches, padded, tokens
from worker import Job, serve


def forward(model: PreTrainedModel, rows: Sequence[Row]) -> Mapping[str, np.ndarray]:
    """The last token's hidden state."""
    found: dict[int, Tensor] = {}
    for batch in batches([row.ids for row in rows]):
        ids = torch.from_numpy(padded([rows[i].ids for i in batch]))
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
        last = torch.tensor([len(rows[i].ids) - 1 for i in batch])
        found |= zip(batch, hidden[torch.arange(len(batch)), last], strict=True)
    return {"hidden": torch.stack([found[i] for i in range(len(found))]).numpy()}


def read(model: PreTrainedModel, rows: Sequence[Row]) -> Mapping[str, np.ndarray]:
    """The ids found most likely where a token of a choice is predicted, row after row."""
    texts = [row.ids + tuple(i for choice in row.choices for i in choice[:-1]) for row in rows]
    found: dict[int, list[int]] = {}
    for batch in batches(texts):
        ids = torch.from_numpy(padded([texts[i] for i in batch]))
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
        scored = [(b, rows[i], texts[i]) for b, i in enumerate(batch) if rows[i].choices]
        if scored:
            reads = [(b, t) for b, row, text in scored for t in range(len(row.ids) - 1, len(text))]
            b, t = zip(*reads, strict=True)
            next_ids = iter(model.get_output_embeddings()(hidden[list(b), list(t)]).argmax(-1).tolist())
            for i in (i for i in batch if rows[i].choices):
                found[i] = list(islice(next_ids, len(texts[i]) - len(rows[i].ids) + 1))
    return {"next": np.array([token for i in sorted(found) for token in found[i]])}


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
    model = resident(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    return {
        "forward": partial(forward, model, work.binding),
        "forward_neutral": partial(forward, model, work.binding + work.neutral),
        "read": partial(read, model, work.binding),
        "read_controls": partial(read, model, work.binding + work.neutral + work.premises),
        "generation": partial(generation, model, work),
    }


if __name__ == "__main__":
    serve(load, "transformers")
