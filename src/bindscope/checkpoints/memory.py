"""How much memory a model needs, from its config alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig


@dataclass(frozen=True)
class Batch:
    """The largest batch of a run.

    tokens: tokens of all its rows.
    scored: tokens of which probabilities over the vocabulary are needed.
    band: how many tokens back attention is kept.
    cached: tokens whose keys and values are kept while completions are generated.
    """

    tokens: int
    scored: int
    band: int
    cached: int


@dataclass(frozen=True)
class Memory:
    """Bytes of memory; None where not known.

    weights: of the weights, in the dtype of the computation.
    batch: of what a batch needs beside them (an estimate).
    """

    weights: int | None = None
    batch: int | None = None


def memory(config: PreTrainedConfig, dtype: torch.dtype, batch: Batch) -> Memory:
    """The memory that a model needs, from the shapes of its architecture; no weights are read."""
    with torch.device("meta"):  # shapes without storage
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    D, L, H = int(config.hidden_size), int(config.num_hidden_layers), int(config.num_attention_heads)
    F = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * D
    groups = getattr(config, "num_key_value_heads", None) or H
    size = (getattr(config, "head_dim", None) or D // H) * groups
    layer = batch.tokens * (6 * D + 3 * F) * dtype.itemsize  # residuals, norms, projections, the MLP's two halves
    rows = 2 * batch.tokens * L * H * (1 + batch.band) * 4  # by layer, then stacked
    logits = batch.scored * int(config.vocab_size) * (dtype.itemsize + 4)
    cache = batch.cached * 2 * L * size * dtype.itemsize
    return Memory(weights, max(layer + rows + logits, cache))
