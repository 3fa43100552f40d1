"""What can go wrong, by name. Every message says what is wrong, the value seen, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BindscopeError(Exception):
    """Root of every error that bindscope raises on purpose. The command line prints it as one line."""


class RequestError(BindscopeError):
    """The request itself is wrong (unknown name, malformed file, impossible option): exit code 2."""


class UnknownName(RequestError):
    """A name that is not in the catalogue it was looked up in."""

    def __init__(self, what: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        names = sorted(known)
        folded = {known.lower(): known for known in reversed(names)}
        near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {what} {name!r}; {hint}{' ' + remedy if remedy else ''}")


class PromptError(RequestError):
    """A prompt or a term that cannot be measured as written."""


class SpanError(PromptError):
    """The term cannot be located as two or more tokens of the prompt. `reason` is what the results carry."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class ModelError(RequestError):
    """A model, revision or tokenizer that cannot be loaded, or must not be trusted."""


class UnsupportedArchitecture(ModelError):
    """The attention of this architecture cannot be read or edited through one function."""


class MeasureError(BindscopeError):
    """A measurement of one unit failed; other units are unaffected."""


class StoreError(BindscopeError):
    """Results cannot be written or read."""


class SchemaError(BindscopeError):
    """A table does not hold what its columns declare."""
