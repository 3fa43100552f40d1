"""Small random models of many architectures, and a small tokenizer, built on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bindscope.checkpoints.load import Loaded
from bindscope.engine.engine import Engine
from bindscope.engine.selfcheck import SelfCheck
from bindscope.records import CheckpointRef

_PLAIN = {
    "vocab_size": 64,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": 64,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_SMALL_HEADS = _GROUPED | {"head_dim": 8}
_WINDOW = {"sliding_window": 7}  # shorter than the test sequences
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

#: name -> (model_type, config): every one of these must be measurable.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", _PLAIN),
    "gpt2": ("gpt2", _GPT2),
    "gpt2-inverse-layer": ("gpt2", _GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "olmo": ("olmo", _GROUPED),
    "olmo2": ("olmo2", _GROUPED),
    "smollm3": ("smollm3", _GROUPED),
    "qwen2": ("qwen2", _GROUPED),
    "llama": ("llama", _GROUPED),
    "qwen3": ("qwen3", _SMALL_HEADS),
    "mistral-window": ("mistral", _GROUPED | _WINDOW),
    "mixtral": ("mixtral", _GROUPED | _EXPERTS),
    "gemma2-softcap": (
        "gemma2",
        _SMALL_HEADS
        | _WINDOW
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    ),
    "gemma3": ("gemma3_text", _SMALL_HEADS | _WINDOW | {"query_pre_attn_scalar": 8}),
    "gpt_oss-sinks": ("gpt_oss", _SMALL_HEADS | _WINDOW | _EXPERTS),
    "phi3": ("phi3", _GROUPED),
    "phi": ("phi", _PLAIN),
    "opt": (
        "opt",
        {
            "vocab_size": 64,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "ffn_dim": 64,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 48,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
    ),
    "gptj": ("gptj", _GPT2 | {"rotary_dim": 4}),  # since transformers 5.24
    "cohere": ("cohere", _GROUPED),
    "granite": ("granite", _GROUPED | {"logits_scaling": 2.0}),
    "phi3-longrope": (
        "phi3",
        _GROUPED
        | {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "stablelm": ("stablelm", _GROUPED),
    "starcoder2": ("starcoder2", _GROUPED),
}

#: Architectures that must be refused by name, and a word of the reason.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "falcon": (
        "falcon",
        {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6},
        "its own attention code",
    ),
    "bloom": ("bloom", {"vocab_size": 64, "hidden_size": 48, "n_layer": 3, "n_head": 6}, "its own attention code"),
    "mpt": ("mpt", {"vocab_size": 64, "d_model": 48, "n_layers": 3, "n_heads": 6}, "its own attention code"),
    "mamba": ("mamba", {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 3}, "no attention"),
    "qwen3_next": (
        "qwen3_next",
        _SMALL_HEADS
        | {
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "layers [0, 1, 2] of 4",
    ),
}


def build(model_type: str, config: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """A random model in eval mode, with weights large enough for peaked attention."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sinks" in name:
                parameter.normal_(0, 1)
            elif parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model


def tokenizer(texts: list[str], size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts."""
    raw = Tokenizer(tokenizer_models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=end, eos_token=end, pad_token=end)


def save(
    folder: Path, words: PreTrainedTokenizerFast | None, seed: int = 0, architecture: str = "gpt_neox", **config: Any
) -> Path:
    """A model on disk, the way Trainer writes a checkpoint."""
    kind, base = ARCHITECTURES[architecture]
    size = {"vocab_size": len(words)} if words is not None else {}
    model = build(kind, base | {"max_position_embeddings": 512} | size | config, seed)
    model.save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)
    return folder


def loaded(model: PreTrainedModel, tokenizer: Any = None) -> Loaded:
    """A model as the engine takes it."""
    return Loaded(model, tokenizer, CheckpointRef("test", "test"), None, "off")


def engine(model: PreTrainedModel, packed: bool = True) -> Engine:
    """The engine around a model that is known to pass its self-check; packed: whether continuations share a row."""
    return Engine(loaded(model), SelfCheck(rows=0.0, logits=0.0, edit=1.0, packed=packed))
