"""The protocol of the reference study (Tran 2026), rewritten from its description: one prompt at a time throughout.

Pythia is read through TransformerLens 2: for every prompt and every layer a forward pass that stops after that layer,
whose attention weights are then read one by one. Other architectures are read through transformers with eager
attention, one whole pass a prompt. Recognition is one whole pass for each choice, with the vocabulary projection at
every position; generation is greedy.

Each of its scripts loads the model, so `load_binding`, `load_recognition` and `load_generation` do so too;
`battery` is a whole checkpoint as that study runs it, one script for binding and one for behavior, with a load each.
`binding`, `recognition` and `generation` use a model that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformer_lens_2 import hooked
from transformers import AutoConfig, AutoModelForCausalLM
from work import Work, tokens
from worker import Job, serve


class Model(Protocol):
    """What the protocol asks of a model; ids: (1, T)."""

    def attentions(self, ids: Tensor) -> Iterator[Tensor]: ...  # (1, H, T, T), layer by layer
    def logits(self, ids: Tensor) -> Tensor: ...  # (1, T, V)
    def generate(self, ids: Tensor, length: int) -> Tensor: ...  # (1, T + new)


class Hooked:
    """A Pythia in TransformerLens 2."""

    def __init__(self, folder: Path) -> None:
        self.model = hooked(folder)

    def attentions(self, ids: Tensor) -> Iterator[Tensor]:
        for layer in range(self.model.cfg.n_layers):
            name = f"blocks.{layer}.attn.hook_pattern"
            _, cache = self.model.run_with_cache(ids, names_filter=[name], stop_at_layer=layer + 1)
            yield cache[name]

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def generate(self, ids: Tensor, length: int) -> Tensor:
        return self.model.generate(ids, max_new_tokens=length, do_sample=False, verbose=False)


class Eager:
    """Any other model in transformers."""

    def __init__(self, folder: Path) -> None:
        eager = {"dtype": torch.float32, "attn_implementation": "eager"}
        self.model = AutoModelForCausalLM.from_pretrained(folder, **eager).eval()

    def attentions(self, ids: Tensor) -> Iterator[Tensor]:
        yield from self.model(ids, output_attentions=True).attentions

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits

    def generate(self, ids: Tensor, length: int) -> Tensor:
        end, seen = self.model.config.eos_token_id, torch.ones_like(ids)
        return self.model.generate(ids, attention_mask=seen, max_new_tokens=length, do_sample=False, pad_token_id=end)


def binding(model: Model, work: Work) -> Mapping[str, np.ndarray]:
    values = []
    for row in work.binding:
        pairs = [(i, j) for i in row.span for j in row.span if i > j]
        layers = []
        for weights in model.attentions(torch.tensor([row.ids])):
            heads = [sum(float(head[i, j]) for i, j in pairs) / len(pairs) for head in weights[0]]
            layers.append(max(heads) - sum(heads) / len(heads))
        values.append(max(layers))
    return {"eb_star": np.array(values)}


def recognition(model: Model, work: Work) -> Mapping[str, np.ndarray]:
    sums = []
    for row in work.recognition:
        for choice in row.choices:
            logs = model.logits(torch.tensor([row.ids + choice])).log_softmax(-1)[0]
            first = len(row.ids) - 1
            sums.append(sum(float(logs[first + n, token]) for n, token in enumerate(choice)))
    return {"logprob": np.array(sums).reshape(len(work.recognition), -1)}


def generation(model: Model, work: Work) -> Mapping[str, np.ndarray]:
    found = []
    for row in work.generation:
        out = model.generate(torch.tensor([row.ids]), work.max_new_tokens)
        found.append(out[0, len(row.ids) :].tolist())
    return {"tokens": tokens(found, work.max_new_tokens)}


def behavior(model: Model, work: Work) -> Mapping[str, np.ndarray]:
    return {**recognition(model, work), **generation(model, work)}


def battery(new: Callable[[], Model], work: Work) -> Mapping[str, np.ndarray]:
    """A checkpoint: two scripts, two loads."""
    return {**binding(new(), work), **behavior(new(), work)}


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    kind = Hooked if AutoConfig.from_pretrained(folder).model_type == "gpt_neox" else Eager
    new, model = partial(kind, folder), kind(folder)
    jobs: dict[str, Job] = {"battery": lambda: battery(new, work)}
    for measure in (binding, recognition, generation):
        jobs[measure.__name__] = partial(measure, model, work)
        jobs[f"load_{measure.__name__}"] = lambda measure=measure: measure(new(), work)
    return jobs


if __name__ == "__main__":
    serve(load, "transformer-lens", "transformers")
