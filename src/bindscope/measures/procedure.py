"""The input of a measure that runs its own forward passes (`base.Procedure`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bindscope.engine.data import Array
from bindscope.records import Protocol as Choices

if TYPE_CHECKING:
    from bindscope.engine.engine import Engine
    from bindscope.engine.prepare import TokenizedPrompt

#: Rows of a part; their values can be written as JSON.
Rows = list[dict[str, Any]]


class Parts(Protocol):
    """Stores finished parts of a long measurement, so that an interrupted one can continue."""

    def get(self, name: str) -> Rows | None:
        """The rows of a stored part; None where it is absent or damaged."""
        ...

    def put(self, name: str, rows: Rows) -> None:
        """Store a part."""
        ...


@dataclass(frozen=True)
class Context:
    """The input of the function of a `Procedure`.

    engine: the model, with the hook installed
    prompts: every prompt of the experiment, tokenized
    choices: the protocol of the experiment
    previous_token: (L, H) previous-token scores on neutral text
    parts: stores finished parts, None where they are not stored
    progress: called with the number of finished steps, or the fraction of a step
    """

    engine: Engine
    prompts: Sequence[TokenizedPrompt]
    choices: Choices
    previous_token: Array
    parts: Parts | None = None
    progress: Callable[[float], None] | None = None
