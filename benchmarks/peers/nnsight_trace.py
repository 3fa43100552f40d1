"""nnsight 0.8, TransformersModel with eager attention: `binding` prompt by prompt and in batches.

The weights are the second output of `attention_interface_1` inside each attention module
(https://github.com/ndif-team/nnsight/blob/main/docs/patterns/attention-patterns.md). Prompts are given as lists of
token ids, which nnsight pads on the left with a mask and positions of its own
(https://github.com/ndif-team/nnsight/blob/main/docs/models/transformers-model.md). The pass stops when the last
layer's weights are read (https://github.com/ndif-team/nnsight/blob/main/docs/usage/stop-and-early-exit.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import nnsight
import numpy as np
import torch
from nnsight import TransformersModel
from work import Work, batches, eb_star
from worker import Job, serve


def attentions(model: TransformersModel) -> list[object]:
    """The attention module of every layer."""
    if model.config.model_type == "gpt_neox":
        return [layer.attention for layer in model.gpt_neox.layers]
    return [layer.self_attn for layer in model.model.layers]


def binding(model: TransformersModel, work: Work, groups: list[list[int]]) -> Mapping[str, np.ndarray]:
    """groups: indices of the rows that go through the model together."""
    modules = attentions(model)
    values = np.empty(len(work.binding))
    for group in groups:
        rows = [work.binding[i] for i in group]
        with model.trace([list(row.ids) for row in rows]) as tracer:
            layers = nnsight.save([])
            for module in modules:
                _, weights = module.source.attention_interface_1.output
                layers.append(weights)
            tracer.stop()
        longest = max(len(row.ids) for row in rows)
        for b, i in enumerate(group):
            shift = longest - len(rows[b].ids)
            values[i] = eb_star([layer[b].numpy() for layer in layers], [shift + s for s in rows[b].span])
    return {"eb_star": values}


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    model = TransformersModel(
        str(folder), task="text-generation", dispatch=True, attn_implementation="eager", dtype=torch.float32
    )
    return {
        "binding": partial(binding, model, work, [[i] for i in range(len(work.binding))]),
        "binding_batched": partial(binding, model, work, list(batches([row.ids for row in work.binding]))),
    }


if __name__ == "__main__":
    serve(load, "nnsight", "transformers")
