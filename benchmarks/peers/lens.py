"""What both versions of TransformerLens are asked: the attention patterns, prompt by prompt and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from work import Work, batches, eb_star, padded
from worker import Job


def binding(model: Any, work: Work, groups: list[list[int]]) -> Mapping[str, np.ndarray]:
    """groups: indices of the rows that go through the model together."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    values = np.empty(len(work.binding))
    for group in groups:
        rows = [work.binding[i] for i in group]
        _, cache = model.run_with_cache(
            torch.from_numpy(padded([row.ids for row in rows])), names_filter=names, return_type=None
        )
        for b, i in enumerate(group):
            values[i] = eb_star([cache[name][b].numpy() for name in names], rows[b].span)
    return {"eb_star": values}


def jobs(model: Any, work: Work) -> Mapping[str, Job]:
    """model: a HookedTransformer or a TransformerBridge."""
    return {
        "binding": partial(binding, model, work, [[i] for i in range(len(work.binding))]),
        "binding_batched": partial(binding, model, work, list(batches([row.ids for row in work.binding]))),
    }
