"""The errors that bindscope raises. Every message says what is wrong, the value it has, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BindscopeError(Exception):
    """The base of all errors that bindscope raises on purpose. The command line prints them as one line."""


class RequestError(BindscopeError):
    """The request is wrong: an unknown name, a malformed file, an impossible option. Exit code 2."""


class UnknownName(RequestError):
    """A name that is not among the known ones; the message suggests those that are similar."""

    def __init__(self, what: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        """what: kind of the name, such as "term set". known: all valid names. remedy: added to the message."""
        names = sorted(known)
        folded = {known.lower(): known for known in reversed(names)}
        near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {what} {name!r}; {hint}{' ' + remedy if remedy else ''}")


class PromptError(RequestError):
    """A prompt or a term that cannot be measured as written."""


class SpanError(PromptError):
    """The term is not two or more tokens of the prompt. `reason` is the word that results carry for it."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class ModelError(RequestError):
    """A model, revision or tokenizer that cannot be loaded, or whose weights cannot be trusted."""


class UnsupportedArchitecture(ModelError):
    """The attention of this architecture cannot be read or edited by bindscope's hook."""


class MeasureError(BindscopeError):
    """The measurement of one checkpoint failed; other checkpoints are unaffected."""


class StoreError(BindscopeError):
    """Results cannot be written or read."""


class SchemaError(BindscopeError):
    """A table does not hold what its columns declare."""
