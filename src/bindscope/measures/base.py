"""Measures: each declares a name, its columns, what it needs of a forward pass, its prompts, and a function.

The kinds of measures differ in what their function receives:

    span_measure        spans of k tokens in one text (`view.SpanView`)  one row for each prompt with the term
    choice_measure      log-probabilities of a question's choices        one row for each question and rotation
    completion_measure  a prompt and its completion                      one row for each prompt and way of sampling
    head_measure        attention on neutral text                        one row for each head

A `Procedure` is a measure that runs its own forward passes; its function receives the engine.
Nulls, storage, export, documentation, tables and figures use only what a measure declares, so a new measure is one
file. This module does not import torch, so declarations can be read without it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from bindscope.engine.data import Needs
from bindscope.errors import RequestError, SchemaError
from bindscope.records import Prompt, Protocol, Sampling, Shot
from bindscope.schema import KIND, PER_PROMPT, PROMPT, QUESTION, REASON, TERM, Column, Table, null_columns

if TYPE_CHECKING:
    from bindscope.measures.procedure import Context

#: Column -> value, for one row of a measure; a span measure returns arrays with one entry for each span.
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """The declaration of a measure, of any kind.

    name: name of the measure and of its first table
    function: computes the values
    columns: the columns that the function returns
    value: the leading column: it has the null, and tables, figures and tests use it
    title: name of the leading column in figures and tables
    by_layer: column that holds the leading value of each layer, "" where there is none
    group: an experiment can name all measures of a group at once ("binding")
    version: part of the key of every result; raise it when the numbers change
    implies: measures that are measured along with this one, because its numbers are compared with theirs
    Raises RequestError for a name or columns that are not allowed.
    """

    name: str
    function: Callable[..., Any]
    columns: tuple[Column, ...]
    value: str = ""
    title: str = ""
    by_layer: str = ""
    group: str = ""
    version: int = 1
    implies: tuple[str, ...] = ()

    #: Whether the measure runs its own forward passes instead of using those that measures share.
    own_pass = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise RequestError(
                f"the name of a measure is {self.name!r}; use lower case letters, digits and underscores only"
            )
        try:
            _ = self.tables
        except SchemaError as error:
            raise RequestError(f"the measure {self.name}: {error}") from error

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables that the measure stores; the first has the name of the measure."""
        raise TypeError(f"{type(self).__name__} does not define `tables`")

    @property
    def identity(self) -> str:
        """The part of the key of every result that identifies the measure.

        It holds the name and the version, and for a measure outside of this package a digest of its source code.
        """
        code = "" if self.function.__module__.split(".")[0] == "bindscope" else _source_digest(self.function)
        return f"{self.name} {self.version} {code}".strip()

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts on which the measure depends, out of all prompts of an experiment."""
        raise TypeError(f"{type(self).__name__} does not define `prompts`")

    def protocol(self, protocol: Protocol) -> Protocol:
        """The protocol settings on which the measure depends; the other settings are set to their defaults."""
        return replace(protocol, ablation=None)

    def steps(self, prompts: Sequence[Prompt], protocol: Protocol) -> int:
        """The number of progress steps that the measure reports besides those of the shared passes."""
        return 0

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __reduce__(self) -> Any:
        """Pickle a measure of an importable module by its name, so that it can be sent to other processes."""
        module, name = self.function.__module__, self.function.__name__
        if getattr(sys.modules.get(module), name, None) is self and module != "__main__":
            return _by_name, (module, name)
        return super().__reduce__()

    def _table(self, row: str, columns: Sequence[Column]) -> Table:
        return Table(
            name=self.name,
            row=row,
            columns=tuple(columns),
            measure=self.name,
            title=self.title or self.value,
            value=self.value,
            by_layer=self.by_layer,
        )


def _by_name(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _source_digest(function: Callable[..., Any]) -> str:
    """A digest of the file that defines the function, or of its bytecode where there is no file (a notebook)."""
    try:
        text = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        code = function.__code__
        text = f"{code.co_code!r} {code.co_consts!r} {code.co_names!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SpanMeasure(Measure):
    """A measure of a span of tokens in a text; its function receives a `view.SpanView`.

    needs: what the function reads of the forward pass
    null: "windows" compares the leading value with its value on every window of k tokens that does not overlap the
        term; None for no null
    null_means: list columns whose mean over those windows is stored as null_<column>
    """

    needs: Needs = field(default_factory=Needs)
    null: Literal["windows"] | None = "windows"
    null_means: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[Table, ...]:
        """The table of the measure, with the columns of its null, and the table of windows where it has a null."""
        declared = {column.name: column for column in self.columns}
        columns = [PROMPT, TERM, REASON, *(_nullable(column) for column in self.columns)]
        if self.null is None:
            return (self._table(PER_PROMPT, columns),)
        if self.value not in declared:
            raise SchemaError(
                f"the leading value {self.value!r}, which has a null, is not among the columns "
                f"{', '.join(declared)}; declare the column, or set null=None"
            )
        value = declared[self.value]
        columns += null_columns(value)
        columns += [
            replace(
                declared[name],
                name=f"null_{name}",
                description=f"mean of {name} over windows of k tokens",
                missing="null_reason or reason",
            )
            for name in self.null_means
        ]
        windows = Table(
            name=f"{self.name}_windows",
            row="a window of k tokens that is part of the null",
            columns=(
                PROMPT,
                Column("carrier", "yes/no", "whether the prompt is a carrier sentence: those have a null of their own"),
                Column("k", "integer", "length of the window", unit="tokens", range=(2, None)),
                Column("start", "integer", "position of its first token", range=(0, None)),
                replace(value, missing=value.missing or "the function gave none"),
            ),
            measure=self.name,
        )
        return (self._table(PER_PROMPT, columns), windows)

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts in which spans are measured."""
        return [replace(p, rubric=None, max_tokens=None) for p in prompts if p.binds]


def _nullable(column: Column) -> Column:
    """The column with the note that it has no value where the prompt has no span."""
    return replace(column, missing=f"{column.missing} or reason" if column.reasons else column.missing or "reason")


@dataclass(frozen=True)
class HeadMeasure(Measure):
    """A measure of every head on neutral text; its function receives a `view.NeutralView`."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """A table with a row per head."""
        place = (
            Column("layer", "integer", "from 0", range=(0, None)),
            Column("head", "integer", "from 0", range=(0, None)),
        )
        return (self._table("a head", (*place, *self.columns)),)

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """No prompts: the measure reads neutral text only."""
        return []


@dataclass(frozen=True)
class ChoiceMeasure(Measure):
    """A measure of a question in one rotation of its choices; its function receives a `view.ChoiceView`."""

    @property
    def tables(self) -> tuple[Table, ...]:
        """A table with a row per question and rotation."""
        return (self._table("a question in one rotation", (PROMPT, QUESTION, TERM, KIND, *self.columns)),)

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The recognition questions."""
        return [replace(p, rubric=None, max_tokens=None) for p in prompts if p.task == "recognition"]


@dataclass(frozen=True)
class CompletionMeasure(Measure):
    """A measure of the completion of an opening; its function receives an `engine.data.CompletionView`.

    sampling: how tokens are chosen, one completion for each
    shots: which prompts are continued, by what is put in front of the opening
    """

    sampling: tuple[Sampling, ...] = (Sampling(),)
    shots: tuple[Shot, ...] = ("zero",)

    own_pass = True

    @property
    def tables(self) -> tuple[Table, ...]:
        """A table with a row per opening and way of sampling."""
        return (self._table("an opening and a way of sampling", (PROMPT, QUESTION, TERM, KIND, *self.columns)),)

    @property
    def identity(self) -> str:
        """The identity of `Measure`, with the ways of sampling."""
        return f"{super().identity} {[(s.temperature, s.seed) for s in self.sampling]}"

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The openings after the shots of the measure."""
        return [p for p in prompts if p.task == "generation" and p.shot in self.shots]

    def steps(self, prompts: Sequence[Prompt], protocol: Protocol) -> int:
        """A step for each completion."""
        return len(self.prompts(prompts)) * len(self.distinct)

    @property
    def distinct(self) -> list[Sampling]:
        """The samplings that can give different completions: at temperature 0 the seed has no effect."""
        return list(dict.fromkeys(s if s.temperature else Sampling() for s in self.sampling))

    def protocol(self, protocol: Protocol) -> Protocol:
        """The settings without those of questions and ablation."""
        return replace(protocol, format=None, order=None, ablation=None)


@dataclass(frozen=True)
class Procedure(Measure):
    """A measure that runs its own forward passes; its function receives a `procedure.Context` and returns the tables.

    stored: its tables, the first with the name of the measure
    count: gives the number of progress steps from the prompts and the protocol
    """

    stored: tuple[Table, ...] = ()
    count: Callable[[Sequence[Prompt], Protocol], int] = lambda _prompts, _protocol: 1

    own_pass = True

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables that the declaration lists."""
        return self.stored

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts in which spans are measured."""
        return [p for p in prompts if p.binds]

    def protocol(self, protocol: Protocol) -> Protocol:
        """All settings."""
        return protocol

    def steps(self, prompts: Sequence[Prompt], protocol: Protocol) -> int:
        """The number of steps that `count` gives."""
        return self.count(prompts, protocol)

    def __call__(self, context: Context) -> Mapping[str, Mapping[str, Sequence[Any]]]:
        return self.function(context)  # type: ignore[no-any-return]
