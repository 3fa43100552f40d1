"""What a measure is: a name, columns, what it needs of a forward pass, on which texts, and a function.

Four kinds differ in what their function is given:

    span_measure        spans of k tokens in one text (`view.SpanView`); a row per prompt that holds the term
    choice_measure      a question and the log-probabilities of its choices; a row per question and rotation
    completion_measure  a prompt and the text that the model wrote after it; a row per prompt and sampling
    head_measure        attention on neutral text; a row per head

A measure that runs passes of its own (`Procedure`) gets the engine itself.
Nothing outside a measure's file knows its name: nulls, storage, export, documentation, tables and figures work from
what it declares. This file knows no torch, so declarations can be read without it.
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

#: Columns of a row of a measure -> its value; a span measure gives arrays with one entry per span.
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """What all kinds share.

    name: of the measure and its table
    function: computes the values
    columns: what the function gives
    value: the column that leads: it has the null, is averaged, drawn and tested
    title: how that value is called in figures and tables
    group: measures of one group are asked for by its name ("binding")
    version: part of every key; raise it when the numbers change
    implies: measures that are measured with it, since its numbers are read beside theirs
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

    #: Whether it runs passes of its own, beside the one that measures share.
    own_pass = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise RequestError(f"a measure is called {self.name!r}; use lower case letters, digits and underscores")
        try:
            _ = self.tables
        except SchemaError as error:
            raise RequestError(f"the measure {self.name}: {error}") from error

    @property
    def tables(self) -> tuple[Table, ...]:
        """What it stores; the first table has the name of the measure."""
        raise TypeError(f"{type(self).__name__} does not say what it stores")

    @property
    def identity(self) -> str:
        """Part of the key of every result: name and version, and the source code of a measure from outside."""
        code = "" if self.function.__module__.split(".")[0] == "bindscope" else _source_digest(self.function)
        return f"{self.name} {self.version} {code}".strip()

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """Those that it is measured on: no other prompt changes its numbers."""
        raise TypeError(f"{type(self).__name__} does not say what it is measured on")

    def protocol(self, protocol: Protocol) -> Protocol:
        """The choices that change its numbers: others are put back to their default."""
        return replace(protocol, ablation=None)

    def steps(self, prompts: Sequence[Prompt], protocol: Protocol) -> int:
        """How many steps of progress it reports of its own, beside the shared pass over the prompts."""
        return 0

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __reduce__(self) -> Any:
        """A measure of an importable module is sent to other processes by its name."""
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
    """Of the file that the function stands in, or of its own text where it stands in none (a notebook, a shell)."""
    try:
        text = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        code = function.__code__
        text = f"{code.co_code!r} {code.co_consts!r} {code.co_names!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SpanMeasure(Measure):
    """Numbers of a span of tokens inside a text.

    needs: what the function reads, see `Needs`
    null: "windows" compares the leading value with that of every window of k tokens that does not touch the term
    null_means: list columns whose mean over those windows is stored too, as null_<column>
    """

    needs: Needs = field(default_factory=Needs)
    null: Literal["windows"] | None = "windows"
    null_means: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[Table, ...]:
        declared = {column.name: column for column in self.columns}
        columns = [PROMPT, TERM, REASON, *(_nullable(column) for column in self.columns)]
        if self.null is None:
            return (self._table(PER_PROMPT, columns),)
        if self.value not in declared:
            raise SchemaError(f"a null needs a leading value, and {self.value!r} is none of its columns")
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
        return [replace(p, rubric=None, max_tokens=None) for p in prompts if p.binds]


def _nullable(column: Column) -> Column:
    """A column of a span has no value where the prompt has no span."""
    return replace(column, missing=f"{column.missing} or reason" if column.reasons else column.missing or "reason")


@dataclass(frozen=True)
class HeadMeasure(Measure):
    """A number of every head, from its attention on neutral text. The function is given bands of attention."""

    @property
    def tables(self) -> tuple[Table, ...]:
        place = (
            Column("layer", "integer", "from 0", range=(0, None)),
            Column("head", "integer", "from 0", range=(0, None)),
        )
        return (self._table("a head", (*place, *self.columns)),)

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return []


@dataclass(frozen=True)
class ChoiceMeasure(Measure):
    """Numbers of a question from the log-probabilities of its choices, in every rotation."""

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self._table("a question in one rotation", (PROMPT, QUESTION, TERM, KIND, *self.columns)),)

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return [replace(p, rubric=None, max_tokens=None) for p in prompts if p.task == "recognition"]


@dataclass(frozen=True)
class CompletionMeasure(Measure):
    """Numbers of the text that the model writes after an opening.

    sampling: how tokens are chosen, one completion for each
    shots: what may stand in front of the opening
    """

    sampling: tuple[Sampling, ...] = (Sampling(),)
    shots: tuple[Shot, ...] = ("zero",)

    own_pass = True

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self._table("an opening and a way of sampling", (PROMPT, QUESTION, TERM, KIND, *self.columns)),)

    @property
    def identity(self) -> str:
        return f"{super().identity} {[(s.temperature, s.seed) for s in self.sampling]}"

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return [p for p in prompts if p.task == "generation" and p.shot in self.shots]

    def steps(self, prompts: Sequence[Prompt], protocol: Protocol) -> int:
        return len(self.prompts(prompts)) * len(self.distinct)

    @property
    def distinct(self) -> list[Sampling]:
        """The samplings that can differ: at temperature 0 the seed has no part."""
        return list(dict.fromkeys(s if s.temperature else Sampling() for s in self.sampling))

    def protocol(self, protocol: Protocol) -> Protocol:
        return replace(protocol, format=None, order=None, ablation=None)


@dataclass(frozen=True)
class Procedure(Measure):
    """A measure that runs passes of its own: its function is given a `procedure.Context` and returns the tables.

    stored: its tables, the first with the name of the measure
    count: prompts and protocol -> how many steps of progress it reports
    """

    stored: tuple[Table, ...] = ()
    count: Callable[[Sequence[Prompt], Protocol], int] = lambda _prompts, _protocol: 1

    own_pass = True

    @property
    def tables(self) -> tuple[Table, ...]:
        return self.stored

    def prompts(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        return [p for p in prompts if p.binds]

    def protocol(self, protocol: Protocol) -> Protocol:
        return protocol

    def steps(self, prompts: Sequence[Prompt], protocol: Protocol) -> int:
        return self.count(prompts, protocol)

    def __call__(self, context: Context) -> Mapping[str, Mapping[str, Sequence[Any]]]:
        return self.function(context)  # type: ignore[no-any-return]


def span_measure(
    *,
    columns: Sequence[Column],
    value: str,
    needs: Needs,
    name: str = "",
    title: str = "",
    by_layer: str = "",
    null: Literal["windows"] | None = "windows",
    null_means: Sequence[str] = (),
    group: str = "",
    version: int = 1,
) -> Callable[[Callable[..., Values]], SpanMeasure]:
    """Make a function of a `SpanView` a measure; the arguments are the fields of `Measure` and `SpanMeasure`.

    The function returns, for each column, an array whose first axis is the spans. Its name is the measure's name.
    """

    def decorate(function: Callable[..., Values]) -> SpanMeasure:
        return SpanMeasure(
            name=name or function.__name__,
            function=function,
            columns=tuple(columns),
            value=value,
            title=title,
            by_layer=by_layer,
            group=group,
            version=version,
            needs=needs,
            null=null,
            null_means=tuple(null_means),
        )

    return decorate


def choice_measure(
    *, columns: Sequence[Column], value: str, name: str = "", title: str = "", group: str = "", version: int = 1
) -> Callable[[Callable[..., Values]], ChoiceMeasure]:
    """Make a function of a `ChoiceView` a measure: it returns a value for each column."""

    def decorate(function: Callable[..., Values]) -> ChoiceMeasure:
        return ChoiceMeasure(
            name=name or function.__name__,
            function=function,
            columns=tuple(columns),
            value=value,
            title=title,
            group=group,
            version=version,
        )

    return decorate


def completion_measure(
    *,
    columns: Sequence[Column],
    value: str,
    name: str = "",
    title: str = "",
    sampling: Sequence[Sampling] = (Sampling(),),
    shots: Sequence[Shot] = ("zero",),
    implies: Sequence[str] = (),
    version: int = 1,
) -> Callable[[Callable[..., Values]], CompletionMeasure]:
    """Make a function of a `CompletionView` a measure: it returns a value for each column."""

    def decorate(function: Callable[..., Values]) -> CompletionMeasure:
        return CompletionMeasure(
            name=name or function.__name__,
            function=function,
            columns=tuple(columns),
            value=value,
            title=title,
            version=version,
            sampling=tuple(sampling),
            shots=tuple(shots),
            implies=tuple(implies),
        )

    return decorate


def head_measure(
    *, columns: Sequence[Column], value: str, name: str = "", title: str = "", group: str = "", version: int = 1
) -> Callable[[Callable[..., Values]], HeadMeasure]:
    """Make a function of a `NeutralView` a measure: it returns an array (layers, heads) for each column."""

    def decorate(function: Callable[..., Values]) -> HeadMeasure:
        return HeadMeasure(
            name=name or function.__name__,
            function=function,
            columns=tuple(columns),
            value=value,
            title=title,
            group=group,
            version=version,
        )

    return decorate
