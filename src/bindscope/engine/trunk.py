"""The decoder layers of a model: keep the outputs of some, and start a forward pass above a given layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bindscope.engine.attention import unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder layers: the module list with one entry for each layer, whose attention modules have a layer_idx.

    Raises UnsupportedArchitecture where there is none.
    """
    n = int(model.config.num_hidden_layers)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n and all(map(_place, module, range(n))):
            return module
    raise unsupported(model, "it has no list of decoder layers in which each attention module has a layer_idx")


def _place(layer: torch.nn.Module, i: int) -> bool:
    return any(getattr(part, "layer_idx", None) == i for part in layer.modules())


class _Reached(Exception):
    """Ends a forward pass after the highest wanted layer, since the layers above it are not needed."""


@contextmanager
def kept(model: PreTrainedModel, wanted: set[int]) -> Iterator[dict[int, Any]]:
    """Yield a dictionary layer -> output, which one forward pass inside this block fills.

    The pass, and with it the block, ends after the highest wanted layer.

    model: the model
    wanted: layers, at least one
    """
    outputs: dict[int, Any] = {}

    def keep(i: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, out: Any) -> None:
            outputs[i] = out
            if i == max(wanted):
                raise _Reached

        return hook

    stack = layers(model)
    handles = [stack[i].register_forward_hook(keep(i)) for i in wanted]
    try:
        yield outputs
    except _Reached:
        return
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def starting_above(model: PreTrainedModel, layer: int, output: Any) -> Iterator[None]:
    """Within this block forward passes compute only the layers above `layer`.

    model: the model
    layer: the highest layer that is skipped; -1 to skip none
    output: the output of that layer
    """
    below = list(layers(model))[: layer + 1]
    before = [vars(module).get("forward") for module in below]
    for module in below:
        module.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        for module, own in zip(below, before, strict=True):
            del module.forward  # uncovers the method of the class
            if own is not None:  # accelerate sets one on modules of a model that is spread over devices
                module.forward = own


def repeated(output: Any, n: int) -> Any:
    """A layer's output for n copies of its batch, copy after copy.

    output: a tensor (B, ...), a tuple of them, or None
    """
    if isinstance(output, Tensor):
        return output.repeat(n, *[1] * (output.dim() - 1))
    if isinstance(output, tuple):
        return tuple(repeated(part, n) for part in output)
    return output
