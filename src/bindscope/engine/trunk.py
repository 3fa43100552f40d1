"""The decoder layers of a model: read the output of one, start a forward pass above the layers that no edit changes."""

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
    """The list of decoder layers: the one with an entry for every layer, each with an attention module that knows its
    place. Raises UnsupportedArchitecture where there is none."""
    n = int(model.config.num_hidden_layers)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n and all(map(_place, module, range(n))):
            return module
    raise unsupported(model, "its decoder layers are not a list in which each knows its place")


def _place(layer: torch.nn.Module, i: int) -> bool:
    return any(getattr(part, "layer_idx", None) == i for part in layer.modules())


class _Reached(Exception):
    """The highest wanted layer is done; what lies above it need not be computed."""


@contextmanager
def kept(model: PreTrainedModel, wanted: set[int]) -> Iterator[dict[int, Any]]:
    """One forward pass inside this block leaves the outputs of the wanted layers in the returned dictionary, and ends
    the block behind the highest of them."""
    found: dict[int, Any] = {}

    def keep(i: int) -> Any:
        def hook(_module: torch.nn.Module, _args: Any, out: Any) -> None:
            found[i] = out
            if i == max(wanted):
                raise _Reached

        return hook

    stack = layers(model)
    handles = [stack[i].register_forward_hook(keep(i)) for i in wanted]
    try:
        yield found
    except _Reached:
        return
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def starting_above(model: PreTrainedModel, layer: int, output: Any) -> Iterator[None]:
    """Forward passes inside this block take `output` for what leaves `layer` and compute only the layers above it;
    with layer -1 nothing is skipped."""
    below = list(layers(model))[: layer + 1]
    before = [vars(module).get("forward") for module in below]
    for module in below:
        module.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        for module, own in zip(below, before, strict=True):
            del module.forward  # the class's own again
            if own is not None:  # of a model that is spread over devices
                module.forward = own


def repeated(output: Any, n: int) -> Any:
    """A layer's output for n copies of its batch, copy after copy."""
    if isinstance(output, Tensor):
        return output.repeat(n, *[1] * (output.dim() - 1))
    if isinstance(output, tuple):
        return tuple(repeated(part, n) for part in output)
    return output
