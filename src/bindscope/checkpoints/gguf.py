"""GGUF files, converted once to safetensors in bindscope's cache: dequantising takes ten times as long as loading."""

from __future__ import annotations

import copy
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bindscope.checkpoints.disk import cache_dir
from bindscope.checkpoints.loading import loading
from bindscope.errors import ModelError


def converted(folder: Path, file: str, fingerprint: str) -> Path:
    """The folder with a GGUF file's config, tokenizer and float32 weights.

    folder, file: where the GGUF file is.
    fingerprint: its hash, under which the conversion is kept.

    Raises ModelError where it cannot be read, the package gguf is missing, or the cache cannot be written.
    """
    target = cache_dir() / "gguf" / fingerprint[:16]
    if target.is_dir():
        return target
    if find_spec("gguf") is None:  # transformers asks for it in the middle of its work, less clearly
        raise ModelError(f"reading {file} needs the package gguf: pip install gguf")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(f"cannot write to the cache {target.parent}: {reason}; set BINDSCOPE_CACHE") from error
    try:
        with loading(f"{folder / file} cannot be converted"):
            _convert(folder, file, work)
            if not target.is_dir():  # another process may have converted the same file meanwhile
                work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(folder: Path, file: str, target: Path) -> None:
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    config = copy.deepcopy(quantised.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # The tensors are dequantised, but transformers still takes the model for a quantised one and will not save it:
    # a plain model of the same config takes them over, all of them.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
