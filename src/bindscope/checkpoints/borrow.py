"""A model that somebody else has loaded: measured as it is, and left exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from bindscope.checkpoints.load import Loaded
from bindscope.errors import ModelError
from bindscope.records import Bos, CheckpointRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def inner(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside torch.compile, DistributedDataParallel or PEFT, whose adapters stay active.

    Raises ModelError for anything but a causal language model of transformers, for PEFT's prompt tuning, and for
    parameters that are sharded over processes.
    """
    wrapped: Any = model
    while not isinstance(wrapped, PreTrainedModel):
        if hasattr(wrapped, "_orig_mod"):  # torch.compile
            wrapped = wrapped._orig_mod
        elif hasattr(wrapped, "get_base_model"):  # PEFT; its layers are inside the base model
            if getattr(wrapped.active_peft_config, "is_prompt_learning", False):
                raise ModelError(
                    "the model is tuned by a learned prompt, which is no part of its layers; only adapters are measured"
                )
            wrapped = wrapped.get_base_model()
        elif isinstance(getattr(wrapped, "module", None), torch.nn.Module):  # DistributedDataParallel and its kind
            wrapped = wrapped.module
        else:
            raise ModelError(f"{type(model).__name__} is not a language model of transformers; pass a PreTrainedModel")
    if wrapped.get_output_embeddings() is None:
        raise ModelError(f"{type(wrapped).__name__} predicts no next token; load it as a causal language model")
    if any(hasattr(p, "ds_id") or type(p).__name__ == "DTensor" for p in wrapped.parameters()):
        raise ModelError("the parameters are sharded over processes (FSDP, ZeRO-3); measure a saved checkpoint instead")
    return wrapped


class _Part:
    """The state of one module that a measurement may change.

    transformers leaves hooks of its own, and an attribute that says so, in a model whose attentions were requested.
    """

    MARK = "_output_capturing_hooks_installed"

    def __init__(self, part: torch.nn.Module) -> None:
        self.part, self.training, self.call = part, part.training, part._compiled_call_impl
        self.hooks, self.marked = set(part._forward_hooks), self.MARK in vars(part)

    def restore(self) -> None:
        part = self.part
        part.training = self.training
        if self.call is not None:
            part._compiled_call_impl = self.call
        for key in [key for key in part._forward_hooks if key not in self.hooks]:
            for table in (part._forward_hooks, part._forward_hooks_with_kwargs, part._forward_hooks_always_called):
                table.pop(key, None)
        if not self.marked:
            vars(part).pop(self.MARK, None)


@contextmanager
def borrowed(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "model",
    step: int | None = None,
    bos: Bos = "default",
) -> Iterator[Loaded]:
    """A block in which the model is in eval mode, without gradients or autocast, ready for every measure.

    name, step: what results call the checkpoint.
    bos: as in `load`.

    After the block the mode of every module, hooks, the attention implementation, compiled calls and the state of
    torch's random numbers are what they were. The weights are not changed. Raises ModelError as `inner` does.
    """
    plain = inner(model)
    parts = [_Part(part) for part in plain.modules()]
    attention = [(config, config._attn_implementation_internal) for config in _configs(plain)]
    device = torch.device(plain.device)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        try:
            plain.eval()
            for before in parts:
                if before.call is not None:
                    before.part._compiled_call_impl = None
            ref = CheckpointRef(name, name, None if step is None else f"step{step}", step)
            yield Loaded(model=plain, tokenizer=tokenizer, ref=ref, files=None, bos=bos)
        finally:
            for before in parts:
                before.restore()
            for config, implementation in attention:
                config._attn_implementation_internal = implementation


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configs that name an attention implementation: of the model and of models inside it, with their parts."""
    configs: dict[int, Any] = {}
    for config in [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]:
        inside = [getattr(config, key, None) for key in getattr(config, "sub_configs", {})]
        configs |= {id(c): c for c in (config, *inside) if hasattr(c, "_attn_implementation_internal")}
    return list(configs.values())
