"""What a measure that runs passes of its own is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bindscope.engine.data import Array
from bindscope.records import Protocol as Choices

if TYPE_CHECKING:
    from bindscope.engine.engine import Engine
    from bindscope.engine.prepare import TokenizedPrompt

#: Rows of a part: plain values that JSON can hold.
Rows = list[dict[str, Any]]


class Parts(Protocol):
    """Where finished parts of a long measurement are kept, so that an interrupted one goes on."""

    def get(self, name: str) -> Rows | None:
        """The rows of a part; None where it is absent or damaged."""
        ...

    def put(self, name: str, rows: Rows) -> None:
        """Keep a part."""
        ...


@dataclass(frozen=True)
class Context:
    """What the function of a `Procedure` works with.

    engine: the model, with the hook in place
    prompts: every prompt of the experiment, as token ids
    choices: the protocol of the experiment
    previous_token: (L, H) previous-token scores on neutral text
    parts: where finished parts are kept, None if they are not
    progress: is told how many steps are done
    """

    engine: Engine
    prompts: Sequence[TokenizedPrompt]
    choices: Choices
    previous_token: Array
    parts: Parts | None = None
    progress: Callable[[float], None] | None = None
