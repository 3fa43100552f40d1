"""A model that somebody else holds, lent for a measurement and given back exactly as it was."""

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

    Raises ModelError for what is not a causal language model of transformers, for adapters that are prompts, and for
    parameters that are spread over processes.
    """
    found: Any = model
    while not isinstance(found, PreTrainedModel):
        if hasattr(found, "_orig_mod"):  # torch.compile
            found = found._orig_mod
        elif hasattr(found, "get_base_model"):  # PEFT; its layers are inside the base model
            if getattr(found.active_peft_config, "is_prompt_learning", False):
                raise ModelError(
                    "the model is tuned by a learned prompt, which stands outside of it; only adapters are measured"
                )
            found = found.get_base_model()
        elif isinstance(getattr(found, "module", None), torch.nn.Module):  # DistributedDataParallel and its kind
            found = found.module
        else:
            raise ModelError(f"{type(model).__name__} is not a language model of transformers; pass a PreTrainedModel")
    if found.get_output_embeddings() is None:
        raise ModelError(f"{type(found).__name__} predicts no next token; load it as a causal language model")
    if any(hasattr(p, "ds_id") or type(p).__name__ == "DTensor" for p in found.parameters()):
        raise ModelError("the parameters are sharded over processes (FSDP, ZeRO-3); measure a saved checkpoint instead")
    return found


class _Part:
    """What of a module a measurement may change. transformers leaves hooks of its own in a model that has once been
    asked for its attentions, and a mark that they are there."""

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
    """The model in eval mode, without gradients or autocast, as every measure takes it.

    At the end the mode of every module, hooks, the attention implementation, compiled calls and the state of torch's
    random numbers are what they were. The weights are not touched. Raises ModelError (see `inner`).
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
    """The configs that name an attention implementation: of the model, of models inside it, and theirs."""
    found: dict[int, Any] = {}
    for config in [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]:
        inside = [getattr(config, key, None) for key in getattr(config, "sub_configs", {})]
        found |= {id(c): c for c in (config, *inside) if hasattr(c, "_attn_implementation_internal")}
    return list(found.values())
