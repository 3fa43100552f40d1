"""TransformerLens 4, TransformerBridge: `binding` prompt by prompt and in batches.

run_with_cache with a names_filter (https://transformerlensorg.github.io/TransformerLens/content/hook_system.html), on
the raw weights, its default. Its forward pass ends in the vocabulary projection, whatever is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lens import jobs
from transformer_lens.model_bridge import TransformerBridge
from work import Work
from worker import Job, serve


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    model = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    return jobs(model, work)


if __name__ == "__main__":
    serve(load, "transformer-lens", "transformers")
