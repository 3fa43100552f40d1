"""Folders of weights that every program can read, with transformers 4 and 5.

    python benchmarks/peers/model.py pythia-160m FOLDER --tokenizer tokenizer.json
    python benchmarks/peers/model.py smollm2-135m FOLDER

pythia-160m has the shape of Pythia-160M and random weights: speed does not depend on their values. smollm2-135m is the
real model of the catalogue, as bindscope loads it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

#: What the original's config.json says, in the words of transformers 4; those of 5 are read from it.
PYTHIA_160M = {
    "vocab_size": 50304,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 2048,
    "use_parallel_residual": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}


def pythia_160m(tokenizer: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Random weights from seed 0, and the tokenizer of that file."""
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**PYTHIA_160M)).float().eval()
    end = "<|endoftext|>"
    words = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), bos_token=end, eos_token=end, unk_token=end)
    if words.bos_token_id != model.config.bos_token_id:
        raise ValueError(f"{tokenizer} gives {end} the id {words.bos_token_id}, not 0; give that of GPT-NeoX")
    return model, words


def smollm2_135m() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The real weights, and their tokenizer."""
    from bindscope.checkpoints.load import load
    from bindscope.checkpoints.suites import one

    loaded = load(one("smollm2-135m", None)[0], dtype="float32", device="cpu")
    return loaded.model, loaded.tokenizer


def resident(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, every weight read once: those of a mapped file count in a process's memory from then on."""
    for weight in model.parameters():
        weight.sum()
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write both. transformers 4 looks for rotary parameters outside `rope_parameters`, and takes its own defaults,
    silently, where they are missing; it knows no tokenizer class TokenizersBackend."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _add(folder / "config.json", _older(model.config.rope_parameters, model.config.model_type))
    _add(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def _older(rope: dict[str, float | str], kind: str) -> dict[str, float | str]:
    """Rotary parameters as transformers 4 names them."""
    if rope["rope_type"] != "default":
        raise ValueError(f"rotary embedding of type {rope['rope_type']!r} has no plain form in transformers 4")
    if kind == "gpt_neox":
        return {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    return {"rope_theta": rope["rope_theta"]}


def _add(path: Path, values: dict[str, float | str]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("pythia-160m", "smollm2-135m"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of GPT-NeoX, for pythia-160m")
    arguments = parser.parse_args()
    if arguments.name == "pythia-160m" and arguments.tokenizer is None:
        parser.error("pythia-160m needs --tokenizer, the tokenizer.json of GPT-NeoX")
    model, tokenizer = pythia_160m(arguments.tokenizer) if arguments.name == "pythia-160m" else smollm2_135m()
    save(model, tokenizer, arguments.folder)


if __name__ == "__main__":
    main()
