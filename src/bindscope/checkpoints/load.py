"""Any causal language model, ready to be measured: from the hub, a folder or a GGUF file.

No remote code is run unless a study trusts its repository, and no pickle is read beyond weights_only. Weights must be
complete (a missing tensor would otherwise be initialised at random, silently) and finite.
"""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from accelerate.utils.memory import clear_device_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from bindscope.checkpoints.files import Sources, fetch, identify
from bindscope.checkpoints.tokenizer import load_tokenizer, loading
from bindscope.errors import ModelError
from bindscope.records import Bos, CheckpointRef, Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


#: Tensors that old checkpoints store although they are computed from the config.
BUFFERS = (".attention.bias", ".attn.bias", ".masked_bias", ".rotary_emb.inv_freq", ".position_ids")


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with its tokenizer and the facts that every result carries."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ref: CheckpointRef
    sources: Sources | None
    bos: Bos
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        return int(self.model.config.num_attention_heads)

    @property
    def context(self) -> int | None:
        """The longest sequence, in tokens; None where the config does not say.

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
        return torch.device(self.model.device)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")


def pick_device() -> str:
    """The device kind that a model is loaded to: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(dtype: Dtype, device: str) -> torch.dtype:
    """`auto` is bfloat16 where a GPU computes in it, else float32; float16 only on demand (it gives NaN on some)."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported(False) else torch.float32


def load(
    ref: CheckpointRef,
    *,
    bos: Bos = "default",
    dtype: Dtype = "auto",
    device: str | None = None,
    sources: Sources | None = None,
    remote: bool = False,
    spread: dict[str, str | int] | None = None,
) -> Loaded:
    """Load one checkpoint. Raises ModelError where it is incomplete, not finite, or cannot be read.

    remote: run Python code from its repository. spread: module -> device (or "disk"), for a model larger than one
    device; where a GPU has no room for the weights, accelerate decides.
    """
    sources = sources or identify(ref, code=remote)
    device = device or pick_device()
    folder = fetch(sources.weights)
    tokenizer_folder = folder if sources.tokenizer is sources.weights else fetch(sources.tokenizer)
    if ref.gguf:
        folder = tokenizer_folder = _from_gguf(folder, ref.gguf, sources.identity.fingerprint)
    name, numbers = f"{ref.suite} ({ref.label})", pick_dtype(dtype, device)
    with _own_code(ref, remote), loading(f"{name} cannot be loaded from {folder}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote, local_files_only=True)
        check_scaling(config)
        where = spread or ("auto" if device == "cuda" and not _fits(config, numbers, remote) else None)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=numbers,
            use_safetensors=ref.gguf is not None or any(n.endswith(".safetensors") for n in sources.weights.files),
            output_loading_info=True,
            trust_remote_code=remote,
            local_files_only=True,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            device_map=where,
            offload_folder=_offload(where),
        )
    _check_weights(model, info, name)
    if where is None:
        model.to(device)
    model.eval()
    notes = [f"the model is spread over {_places(model)}"] if where is not None else []
    if remote and type(model).__module__.startswith("transformers_modules."):
        notes.append(f"Python code from {ref.repo} was run, as the study asks")
    return Loaded(model, load_tokenizer(tokenizer_folder, name, remote), ref, sources, bos, tuple(notes))


@contextmanager
def _own_code(ref: CheckpointRef, remote: bool) -> Iterator[None]:
    """Say what a study has to say where a model needs Python code of its own."""
    try:
        yield
    except ModelError as error:
        if remote or "trust_remote_code" not in str(error.__cause__):
            raise
        raise ModelError(
            f"{ref.suite} comes with Python code of its own, which is not run unless the study file says "
            f"`remote_code: I have read the code of {ref.repo} and trust it`"
        ) from error


def _fits(config: PreTrainedConfig, dtype: torch.dtype, remote: bool) -> bool:
    """Whether the weights leave a tenth of the GPU's free memory to the numbers that are computed."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=remote)
    clear_device_cache(garbage_collection=True)  # what the checkpoint before has left reserved is free
    free, _ = torch.cuda.mem_get_info()
    return bool(sum(p.numel() * p.element_size() for p in model.parameters()) < 0.9 * free)


def _offload(where: object) -> str | None:
    """A folder for what fits on no device, which goes away with the program."""
    if where is None:
        return None
    folder = tempfile.mkdtemp(prefix="bindscope-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _places(model: PreTrainedModel) -> str:
    count = Counter(str(place) for place in getattr(model, "hf_device_map", {}).values())
    return ", ".join(f"{place} ({n} parts)" for place, n in sorted(count.items()))


@cache
def _scaling_reaches(kernel: str) -> bool:
    """Whether GPT-2's inverse-layer scaling changes what this attention computes, to what eager attention computes."""
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
    """Raises ModelError where the config asks for attention scaled by the inverse layer index and the installed
    transformers drops it on the way to the kernel: every number would be another model's."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and not _scaling_reaches("sdpa"):
        raise ModelError(
            "its config scales attention by the inverse layer index, which the installed transformers "
            f"{version('transformers')} ignores; install transformers 5.12 or later"
        )


def _check_weights(model: PreTrainedModel, info: dict[str, set[Any]], name: str) -> None:
    if odd := sorted(info["mismatched_keys"]):
        key, found, wanted = odd[0]
        raise ModelError(
            f"{len(odd)} tensors of {name} have another shape than its config says, first {key!r} {list(found)} for "
            f"{list(wanted)}; config and weights do not belong together, so nothing is measured"
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
        with align_module_device(module):  # brings in what lies on the disk
            for part, tensor in module.named_parameters(recurse=False):
                if not bool(torch.isfinite(tensor).all()):
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise ModelError(
                        f"the weights of {name} are not finite: '{place}.{part}' holds {bad} NaN or infinite values "
                        f"(loaded as {model.dtype}); the checkpoint is damaged, or its range needs float32"
                    )


def cache_dir() -> Path:
    """Where converted models are kept: $BINDSCOPE_CACHE, else the user's cache folder."""
    if own := os.environ.get("BINDSCOPE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bindscope"


def _from_gguf(folder: Path, file: str, fingerprint: str) -> Path:
    """The GGUF file as float32 safetensors, converted once: dequantising takes ten times as long as loading."""
    target = cache_dir() / "gguf" / fingerprint[:16]
    if target.is_dir():
        return target
    try:
        import gguf  # noqa: F401  transformers asks for it in the middle of its work, less clearly
    except ImportError as error:
        raise ModelError(f"reading {file} needs the package gguf: pip install gguf") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"cannot write to the cache {target.parent}: {error}; set BINDSCOPE_CACHE") from error
    try:
        with loading(f"{folder / file} cannot be converted"):
            read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
            config = copy.deepcopy(read.config)
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            # The tensors are dequantised, but transformers still takes the model for a quantised one and will not
            # save it: a plain model of the same config takes them over, all of them.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(read.state_dict(), strict=True)
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
            if not target.is_dir():  # another process may have converted the same file meanwhile
                work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
