"""The seven models of the reference study, small and random, in the files and revisions of their real repositories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

import models
from bindscope.checkpoints.suites import suites
from bindscope.records import CheckpointRef
from conftest import shared
from loopback import Hub

END = "<|endoftext|>"


class Family(NamedTuple):
    """The builder in `models`, the real tokenizer, the rows that the real model embeds, the config beside them."""

    architecture: str
    tokenizer: str
    rows: int
    words: dict[str, Any]
    config: dict[str, Any]


FAMILIES = {
    "pythia": Family(
        "gpt_neox",
        "neox",
        50304,
        {"tokenizer_class": "GPTNeoXTokenizer", "bos_token": END, "eos_token": END, "unk_token": END},
        {"bos_token_id": 0, "eos_token_id": 0, "dtype": "float16"},
    ),
    "olmo": Family(
        "olmo",
        "olmo",
        50304,
        {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": END, "pad_token": "<|padding|>"},
        {"eos_token_id": 50279, "tie_word_embeddings": True},
    ),
    "crfm": Family(
        "gpt2-inverse-layer",
        "gpt2",
        50257,
        {"bos_token": END, "eos_token": END, "unk_token": END, "model_max_length": 1024, "name_or_path": "gpt2"},
        {"bos_token_id": 50256, "eos_token_id": 50256, "n_positions": 1024, "reorder_and_upcast_attn": True},
    ),
    "smollm3": Family(
        "smollm3",
        "llama3",
        128256,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
        },
        {"eos_token_id": 128001, "tie_word_embeddings": True, "dtype": "bfloat16"},
    ),
    "qwen2.5": Family(
        "qwen2",
        "qwen25",
        151936,
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": END, "pad_token": END},
        {"eos_token_id": 151643, "tie_word_embeddings": True, "dtype": "bfloat16"},
    ),
}


def serve(hub: Hub, root: Path, named: list[str]) -> dict[CheckpointRef, Path]:
    """Put the checkpoints of these suites on the hub, under the names of the catalogue; their folders."""
    repos: dict[str, dict[str, Path]] = {}
    found: dict[CheckpointRef, Path] = {}
    for suite in (suite for name in named for suite in suites(name)):
        family = next(FAMILIES[prefix] for prefix in FAMILIES if suite.name.startswith(prefix))
        for ref in suite.checkpoints:
            folder = root / ref.suite / (ref.revision or "main")
            _weights(folder, family, seed=len(found), binary=ref.suite.startswith("crfm"))
            if ref.tokenizer is None:
                _words(folder, family)
            elif ref.tokenizer not in repos:
                repos[ref.tokenizer] = {"main": _words(root / ref.tokenizer, family)}
            repos.setdefault(ref.repo, {})[ref.revision or "main"] = folder
            found[ref] = folder
    for repo, revisions in repos.items():
        hub.add(repo, revisions)
    return found


def _weights(folder: Path, family: Family, seed: int, binary: bool) -> None:
    kind, base = models.ARCHITECTURES[family.architecture]
    sizes = {"n_layer": 2} if kind == "gpt2" else {"num_hidden_layers": 2, "max_position_embeddings": 2048}
    model = models.build(kind, base | sizes | {"vocab_size": family.rows} | family.config, seed)
    model.to(getattr(torch, family.config.get("dtype", "float32")))
    model.save_pretrained(folder)
    if binary:  # as they were saved in 2022: a pickle, with the buffers that attention kept then
        state = {name: tensor.half() for name, tensor in model.state_dict().items()}
        for layer in range(2):
            state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 1024, 1024, dtype=torch.uint8).tril()
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()


def _words(folder: Path, family: Family) -> Path:
    """The files of the real tokenizer: tokenizer.json, or GPT-2's vocabulary and merges."""
    folder.mkdir(parents=True, exist_ok=True)
    file = shared("tokenizers", family.tokenizer, "tokenizer.json")
    if family.tokenizer == "gpt2":
        model = json.loads(file.read_text(encoding="utf-8"))["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    else:
        shutil.copy(file, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(family.words))
    return folder
