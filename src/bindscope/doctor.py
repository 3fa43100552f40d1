"""Checks what a run needs: versions, device, the attention hook, the hub, disk space."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants
from transformers import LlamaConfig, LlamaForCausalLM

from bindscope.checkpoints.disk import cache_dir
from bindscope.checkpoints.files import HTTP_ERROR, identify
from bindscope.checkpoints.load import pick_device, pick_dtype
from bindscope.checkpoints.suites import suite
from bindscope.engine.selfcheck import self_check
from bindscope.errors import BindscopeError
from bindscope.execute.unit import versions


@dataclass(frozen=True)
class Finding:
    """One line of `bindscope doctor`.

    subject: what was checked
    result: the result of the check
    state: "ok", "note" (some functions will not work) or "fault" (nothing can be measured)
    """

    subject: str
    result: str
    state: str = "ok"


def examine() -> list[Finding]:
    """Check everything that a run depends on. The function changes nothing and reports faults instead of raising."""
    device = pick_device()
    return [
        Finding("versions", ", ".join(f"{k} {v}" for k, v in versions().items())),
        Finding("device", f"{device} ({_device(device)}), {str(pick_dtype('auto', device)).removeprefix('torch.')}"),
        _hook(),
        *[_suite(name) for name in ("tiny", "smollm2-135m")],
        _hub(),
        _folder("hub cache", Path(constants.HF_HUB_CACHE)),
        _folder("bindscope cache", cache_dir()),
        _folder("this folder", Path.cwd()),
    ]


def _device(kind: str) -> str:
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _hook() -> Finding:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    try:
        check = self_check(LlamaForCausalLM(config).eval())
    except BindscopeError as error:
        return Finding("attention hook", str(error), "fault")
    return Finding("attention hook", f"rows within {check.rows:.0e} of eager attention on a random Llama")


def _suite(name: str) -> Finding:
    try:
        refs = suite(name).checkpoints
        identify(refs[-1])
    except BindscopeError as error:
        return Finding(name, str(error), "note")
    return Finding(name, f"{len(refs)} checkpoint{'s' if len(refs) > 1 else ''} on this machine")


def _hub() -> Finding:
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "HF_HUB_OFFLINE is set: only cached and local models can be measured", "note")
    try:
        HfApi().model_info("openai-community/gpt2", timeout=5)
    except (HTTP_ERROR, OSError) as error:
        return Finding(
            "hub",
            f"{constants.ENDPOINT} is not reachable ({type(error).__name__}): local and cached models can be measured",
            "note",
        )
    return Finding("hub", f"{constants.ENDPOINT} answers")


def _folder(subject: str, path: Path) -> Finding:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return Finding(subject, f"{path} cannot be written", "note")
    return Finding(subject, f"{path}, {free:.1f} GiB free", "ok" if free > 2 else "note")
