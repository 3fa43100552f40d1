"""TransformerLens 2, HookedTransformer: `binding` prompt by prompt and in batches.

run_with_cache with a names_filter, and return_type=None, which leaves out the vocabulary projection
(https://transformerlensorg.github.io/TransformerLens/generated/code/transformer_lens.HookedTransformer.html). A batch
is padded on the right, its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformer_lens.loading_from_pretrained as loading
from lens import jobs
from transformer_lens import HookedTransformer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from work import Work
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


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    model = hooked(folder)
    return jobs(model, work)


if __name__ == "__main__":
    serve(load, "transformer-lens", "transformers")
