"""Batches that become smaller where memory runs out. What is computed for an item does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Item = TypeVar("Item")
Result = TypeVar("Result")


def out_of_memory(error: Exception) -> bool:
    """Whether the error says that a device had no room, in one of the many ways that devices say so."""
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


class ShrinkingBatches:
    """The share of a batch that memory was found to hold: halved each time it runs out, and kept for what follows."""

    def __init__(self) -> None:
        self.share = 1.0

    def run(self, batch: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
        """What `work` gives for each item. Raises its error where there is no room for a single item either."""
        out: list[Result] = []
        while len(out) < len(batch):
            part = batch[len(out) : len(out) + max(1, int(len(batch) * self.share))]
            try:
                out += work(part)
                continue
            except RuntimeError as error:
                if len(part) == 1 or not out_of_memory(error):
                    raise
            self.share = len(part) / len(batch) / 2  # here, where no error holds the tensors of the attempt any more
            clear_device_cache(garbage_collection=True)
        return out
