"""TransformerLens 2, HookedTransformer: `binding` prompt by prompt and in batches.

run_with_cache with a names_filter, and return_type=None, which leaves out the vocabulary projection
(https://transformerlensorg.github.io/TransformerLens/generated/code/transformer_lens.HookedTransformer.html). A batch
is padded on the right, its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformer_lens.loading_from_pretrained as loading
from transformer_lens import HookedTransformer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from work import Work, batches, eb_star, padded
from worker import Job, serve


def hooked(folder: Path) -> HookedTransformer:
    """The model of a folder, processed as from_pretrained does by default.

    Its config is fetched from the hub by an official name; here it is that of the folder. A Llama model whose name is
    not in its table is computed with a rotary base of 10,000 whatever its config says, so only GPT-NeoX is taken.
    """
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "gpt_neox":
        raise ValueError(f"HookedTransformer would not read all of a {config.model_type} config; give a gpt_neox model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked, loading.AutoConfig.from_pretrained = loading.AutoConfig.from_pretrained, lambda *_, **__: config
    try:
        return HookedTransformer.from_pretrained(
            "EleutherAI/pythia-160m-deduped",
            hf_model=model,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device="cpu",
        )
    finally:
        loading.AutoConfig.from_pretrained = asked


def binding(model: HookedTransformer, work: Work, groups: list[list[int]]) -> Mapping[str, np.ndarray]:
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


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    model = hooked(folder)
    return {
        "binding": partial(binding, model, work, [[i] for i in range(len(work.binding))]),
        "binding_batched": partial(binding, model, work, list(batches([row.ids for row in work.binding]))),
    }


if __name__ == "__main__":
    serve(load, "transformer-lens", "transformers")
