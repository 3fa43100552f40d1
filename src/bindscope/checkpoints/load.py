"""Any causal language model, ready to be measured: from the hub, a folder or a GGUF file.

No remote code is run unless the experiment trusts its repository, and no pickle is read beyond weights_only. Weights
must be complete (transformers fills a missing tensor at random, silently) and finite.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from accelerate.utils.memory import clear_device_cache
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from bindscope.checkpoints.files import CheckpointFiles, fetch, identify
from bindscope.checkpoints.fingerprint import BUFFERS
from bindscope.checkpoints.gguf import converted
from bindscope.checkpoints.loading import loading
from bindscope.checkpoints.tokenizer import load_tokenizer
from bindscope.errors import ModelError
from bindscope.records import Bos, CheckpointRef, Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its tokenizer, and the facts that every result carries.

    ref: the checkpoint.
    files: its files; None for a model that somebody else has loaded.
    bos: whether a BOS token is put before every text.
    notes: warnings that its results carry.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ref: CheckpointRef
    files: CheckpointFiles | None
    bos: Bos
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Number of query heads in a layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def context(self) -> int | None:
        """The longest sequence, in tokens; None where the config gives none.

        With LongRoPE or dynamic NTK it is the length that the model was first trained for: beyond it the rotary
        frequencies, and with them every number, depend on the longest sequence of the batch.
        """
        config = self.model.config
        limits = [getattr(config, "max_position_embeddings", None)]
        rope = getattr(config, "rope_parameters", None) or {}
        for parameters in [rope, *[v for v in rope.values() if isinstance(v, dict)]]:
            if parameters.get("rope_type") in ("longrope", "dynamic"):
                limits.append(parameters.get("original_max_position_embeddings"))
                limits.append(getattr(config, "original_max_position_embeddings", None))
        return min((int(limit) for limit in limits if limit), default=None)

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> str:
        """In which it computes: "float32", "bfloat16", "float16"."""
        return str(self.model.dtype).removeprefix("torch.")


def pick_device() -> str:
    """The kind of device that a model is loaded to: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(dtype: Dtype, device: str) -> torch.dtype:
    """The dtype to load weights in: "auto" is bfloat16 where a GPU computes in it, else float32.

    float16 is never chosen by itself, since the activations of some models overflow in it.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported(False) else torch.float32


def load(
    ref: CheckpointRef,
    *,
    bos: Bos = "default",
    dtype: Dtype = "auto",
    device: str | None = None,
    files: CheckpointFiles | None = None,
    remote: bool = False,
    spread: dict[str, str | int] | None = None,
) -> Loaded:
    """Load one checkpoint, downloading what is missing.

    bos: whether a BOS token is put before every text ("default": what the tokenizer does).
    dtype: of the weights; see `pick_dtype`.
    device: "cuda", "mps" or "cpu"; see `pick_device` for None.
    files: its files, where they are identified already.
    remote: run Python code from its repository.
    spread: module -> device (or "disk"), for a model larger than one device; where a GPU has no room for the weights,
        accelerate decides.

    Raises ModelError where the checkpoint is incomplete, holds NaN or infinite weights, or cannot be read.
    """
    files = files or identify(ref, code=remote)
    device = device or pick_device()
    folder = fetch(files.weights)
    tokenizer_folder = folder if files.tokenizer is files.weights else fetch(files.tokenizer)
    if ref.gguf:
        folder = tokenizer_folder = converted(folder, ref.gguf, files.identity.fingerprint)
    name, weights_dtype = f"{ref.suite} ({ref.label})", pick_dtype(dtype, device)
    with _own_code(ref, remote), loading(f"{name} cannot be loaded from {folder}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote, local_files_only=True)
        check_scaling(config)
        placement = spread or ("auto" if device == "cuda" and not _fits(config, weights_dtype, remote) else None)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=weights_dtype,
            use_safetensors=ref.gguf is not None or any(n.endswith(".safetensors") for n in files.weights.hashes),
            output_loading_info=True,
            trust_remote_code=remote,
            local_files_only=True,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            device_map=placement,
            offload_folder=_offload_folder(placement),
        )
    _check_weights(model, info, name)
    if placement is None:
        model.to(device)
    model.eval()
    notes = [f"the model is spread over {_devices(model)}"] if placement is not None else []
    if remote and type(model).__module__.startswith("transformers_modules."):
        notes.append(f"Python code from {ref.repo} was run, as the experiment allows")
    return Loaded(
        model=model,
        tokenizer=load_tokenizer(tokenizer_folder, name, remote),
        ref=ref,
        files=files,
        bos=bos,
        notes=tuple(notes),
    )


@contextmanager
def _own_code(ref: CheckpointRef, remote: bool) -> Iterator[None]:
    """Turn transformers' question about remote code into a ModelError with the line that an experiment needs."""
    try:
        yield
    except ModelError as error:
        if remote or "trust_remote_code" not in str(error.__cause__):
            raise
        raise ModelError(
            f"{ref.suite} comes with Python code of its own, which is not run unless the experiment file says "
            f"`remote_code: I have read the code of {ref.repo} and trust it`"
        ) from error


def _fits(config: PreTrainedConfig, dtype: torch.dtype, remote: bool) -> bool:
    """Whether the weights leave a tenth of the GPU's free memory for activations."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=remote)
    clear_device_cache(garbage_collection=True)  # what the checkpoint before has left reserved is free
    free, _ = torch.cuda.mem_get_info()
    return bool(sum(p.numel() * p.element_size() for p in model.parameters()) < 0.9 * free)


def _offload_folder(placement: object) -> str | None:
    """A folder for weights that fit on no device; it is removed when the program ends."""
    if placement is None:
        return None
    folder = tempfile.mkdtemp(prefix="bindscope-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _devices(model: PreTrainedModel) -> str:
    count = Counter(str(place) for place in getattr(model, "hf_device_map", {}).values())
    return ", ".join(f"{place} ({n} parts)" for place, n in sorted(count.items()))


@cache
def _scaling_reaches(kernel: str) -> bool:
    """Whether GPT-2's scaling by the inverse layer index does under this attention what it does under eager."""
    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16}
    ids, out = torch.arange(12)[None], []
    for name, scaled in ((kernel, True), ("eager", True), ("eager", False)):
        config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, scale_attn_by_inverse_layer_idx=scaled)
        config._attn_implementation = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = GPT2LMHeadModel(config).eval()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        with torch.no_grad():
            out.append(model(ids, use_cache=False).logits)
    off, effect = (float((a - b).abs().max()) for a, b in pairwise(out))
    return effect > 1e-3 and off < 0.05 * effect


def check_scaling(config: PreTrainedConfig) -> None:
    """Raise ModelError where the config scales attention by the inverse layer index and the installed transformers
    drops the scaling on the way to the kernel: every number would be wrong."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and not _scaling_reaches("sdpa"):
        raise ModelError(
            "its config scales attention by the inverse layer index, which the installed transformers "
            f"{version('transformers')} ignores; install transformers 5.12 or later"
        )


def _check_weights(model: PreTrainedModel, info: dict[str, set[Any]], name: str) -> None:
    if odd := sorted(info["mismatched_keys"]):
        key, stored, expected = odd[0]
        raise ModelError(
            f"{len(odd)} tensors of {name} have another shape than its config says, first {key!r}: {list(stored)}, "
            f"not {list(expected)}; config and weights do not belong together, so nothing is measured"
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the weights of {name} lack {len(missing)} tensors, first {missing[0]!r}; transformers would "
            "fill them at random, so nothing is measured: use another revision or file"
        )
    if extra := sorted(k for k in info["unexpected_keys"] if not k.endswith(BUFFERS)):
        raise ModelError(
            f"the weights of {name} hold {len(extra)} tensors that its config has no place for, first {extra[0]!r}; "
            "config and weights do not belong together, so nothing is measured"
        )
    for place, module in model.named_modules():
        with align_module_device(module):  # loads weights that are on the disk
            for part, tensor in module.named_parameters(recurse=False):
                if not bool(torch.isfinite(tensor).all()):
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise ModelError(
                        f"the weights of {name} are not finite: '{place}.{part}' holds {bad} NaN or infinite values "
                        f"(loaded as {model.dtype}); the checkpoint is damaged, or its range needs float32"
                    )
