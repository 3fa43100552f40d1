"""Decorators that make a measure of a function: one for each kind of measure in `base`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from bindscope.engine.data import Needs
from bindscope.measures.base import ChoiceMeasure, CompletionMeasure, HeadMeasure, SpanMeasure, Values
from bindscope.records import Sampling, Shot
from bindscope.schema import Column


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
    """Make a measure of a function that receives a `SpanView`.

    The arguments are the fields of `Measure` and `SpanMeasure`; the name is that of the function unless it is given.
    The function returns an array for each column; its first axis is the spans.
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
    """Make a measure of a function that receives a `ChoiceView` and returns a value for each column.

    The arguments are the fields of `Measure`; the name is that of the function unless it is given.
    """

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
    """Make a measure of a function that receives a `CompletionView` and returns a value for each column.

    The arguments are the fields of `Measure` and `CompletionMeasure`; the name is that of the function unless it is
    given.
    """

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
    """Make a measure of a function that receives a `NeutralView` and returns an array (L, H) for each column.

    The arguments are the fields of `Measure`; the name is that of the function unless it is given.
    """

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
