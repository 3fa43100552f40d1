"""Batches that are halved when memory runs out. The result for an item does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Item = TypeVar("Item")
Result = TypeVar("Result")


def out_of_memory(error: Exception) -> bool:
    """Whether the error reports that a device ran out of memory; devices report this with different errors."""
    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


class ShrinkingBatches:
    """Runs batches in parts that fit into memory.

    share: the part of a batch that is run at once; halved each time memory runs out, and kept for later batches
    """

    def __init__(self) -> None:
        self.share = 1.0

    def run(self, batch: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
        """The results of `work` for each item. Raises the error of `work` where a single item does not fit either."""
        out: list[Result] = []
        while len(out) < len(batch):
            part = batch[len(out) : len(out) + max(1, int(len(batch) * self.share))]
            try:
                out += work(part)
                continue
            except RuntimeError as error:
                if len(part) == 1 or not out_of_memory(error):
                    raise
            # Outside of the except block, where the error no longer refers to the tensors of the failed attempt.
            self.share = len(part) / len(batch) / 2
            clear_device_cache(garbage_collection=True)
        return out
