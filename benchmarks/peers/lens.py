"""What both versions of TransformerLens compute: the attention patterns, prompt by prompt and in batches.

`binding_demo` keeps everything and predicts every token, as the library's main demo does
(https://transformerlensorg.github.io/TransformerLens/generated/demos/Main_Demo.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from work import Work, batches, eb_star, padded
from worker import Job


def _patterns(model: Any) -> list[str]:
    return [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]


def binding(model: Any, work: Work, groups: list[list[int]], **wanted: Any) -> Mapping[str, np.ndarray]:
    """groups: indices of the rows that go through the model together; wanted: what is kept of a pass."""
    names = _patterns(model)
    values = np.empty(len(work.binding))
    for group in groups:
        rows = [work.binding[i] for i in group]
        _, cache = model.run_with_cache(torch.from_numpy(padded([row.ids for row in rows])), **wanted)
        for b, i in enumerate(group):
            values[i] = eb_star([cache[name][b].numpy() for name in names], rows[b].span)
    return {"eb_star": values}


def jobs(model: Any, work: Work) -> Mapping[str, Job]:
    """model: a HookedTransformer or a TransformerBridge."""
    alone = [[i] for i in range(len(work.binding))]
    together = list(batches([row.ids for row in work.binding]))
    patterns = {"names_filter": _patterns(model), "return_type": None}
    return {
        "binding": partial(binding, model, work, alone, **patterns),
        "binding_batched": partial(binding, model, work, together, **patterns),
        "binding_demo": partial(binding, model, work, alone),
    }
