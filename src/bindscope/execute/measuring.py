"""Measures one checkpoint: from a loaded model and prompts to tables. Local and Ray runs both call it.

Span, choice and head measures share one forward pass over the prompts: attention and choices of a prompt are read from
the same row. Then each completion measure decodes, and each procedure runs its own passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from bindscope.engine.completions import completions
from bindscope.engine.data import Array, Needs, together
from bindscope.engine.engine import Engine
from bindscope.engine.generate import token_limits
from bindscope.engine.prepare import TokenizedPrompt, neutral_inputs, premise_inputs, prepare
from bindscope.errors import MeasureError, RequestError, SchemaError
from bindscope.measures.base import (
    ChoiceMeasure,
    CompletionMeasure,
    HeadMeasure,
    Measure,
    Procedure,
    SpanMeasure,
    Values,
)
from bindscope.measures.previous_token import previous_token
from bindscope.measures.procedure import Context, Parts
from bindscope.measures.spans import SpanTables, failure
from bindscope.measures.view import ChoiceView, NeutralView
from bindscope.prompts.spans import special_prefix
from bindscope.records import Prompt, Protocol
from bindscope.schema import JOINED, KIND, PROMPT, PROMPTS, QUESTION, TERM, Cells, Measurement, Table, joined

Progress = Callable[[float], None]


@dataclass
class Outcome:
    """The results of a checkpoint.

    tables: the tables of the measures
    failures: measure -> why it failed, in one line
    """

    tables: list[Measurement] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def frame(self, name: str) -> pd.DataFrame:
        """The rows of a table, or of the join "binding" (see `Store.read`); empty where it was not measured."""
        if name == JOINED:
            parts = [(t.table, t.frame()) for t in self.tables]
            return joined(self.frame(PROMPTS.name), parts)
        return next((t.frame() for t in self.tables if t.name == name), pd.DataFrame())


def measure(engine: Engine, prompts: Sequence[Prompt], protocol: Protocol, measures: Sequence[Measure]) -> Outcome:
    """Compute all measures of one checkpoint; the arguments and errors are those of `Session`."""
    outcome = Outcome()
    for part in Session(engine, prompts, protocol).passes(measures):
        outcome.tables += part.tables
        outcome.failures |= part.failures
    return outcome


class Session:
    """One checkpoint and the prompts of an experiment; the caller can store the results of each pass at once."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        protocol: Protocol,
        progress: Progress | None = None,
        parts: Mapping[str, Parts] | None = None,
    ) -> None:
        """Tokenize the prompts.

        engine: the model, with the hook installed
        prompts: all prompts of the experiment
        protocol: its settings
        progress: called with the number of prompts, completions and sets of heads that are finished
        parts: measure -> store of its finished parts
        Raises PromptError for a prompt that cannot be measured (too long, or its tokens merge with those of a choice),
        ModelError where the tokenizer does not fit the weights.
        """
        self.engine, self.loaded, self.protocol = engine, engine.loaded, protocol
        self._progress, self._parts = progress or _ignore, parts or {}
        self.prompts = [prepare(self.loaded, prompt) for prompt in prompts]
        self._neutral: Array | None = None

    def passes(self, measures: Sequence[Measure]) -> Iterator[Outcome]:
        """Yield the results of the shared pass, then those of each measure that runs its own.

        An error in the function of a measure is recorded in the outcome, and the other measures continue.

        measures: the measures to compute
        Raises PromptError, RequestError and MeasureError where the model or the prompts are the cause.
        """
        completing = [m for m in measures if isinstance(m, CompletionMeasure)]
        for each in completing:
            token_limits(self.loaded, self._used(each))  # texts that are too long raise an error before any pass
        if shared := [m for m in measures if not m.own_pass]:
            yield self._shared(shared)
        for each in completing:
            yield self._completions(each)
        for procedure in (m for m in measures if isinstance(m, Procedure)):
            yield self._procedure(procedure)

    def _used(self, measure: Measure) -> list[TokenizedPrompt]:
        wanted = {prompt.id for prompt in measure.prompts([p.prompt for p in self.prompts])}
        return [prompt for prompt in self.prompts if prompt.prompt.id in wanted]

    def _shared(self, measures: Sequence[Measure]) -> Outcome:
        spans = [m for m in measures if isinstance(m, SpanMeasure)]
        choices = [m for m in measures if isinstance(m, ChoiceMeasure)]
        prompts = self._read_together(bool(spans), bool(choices))
        outcome, needs = Outcome(), together(m.needs for m in spans)
        ks = sorted({p.span.k for p in prompts if p.span and p.prompt.binds}) if spans else []
        width = max((k - 1 for k in ks), default=1) if needs.attention else 0
        tables = SpanTables(
            measures=spans,
            tokenizer=self.loaded.tokenizer,
            ks=ks,
            least=self.protocol.min_null,
            failures=outcome.failures,
        )
        rows = ChoiceRows(choices, self._unconditional(prompts) if choices else {}, outcome.failures)
        scores = self.previous_token_scores if needs.previous_token else None
        alone = self._alone(prompts) if needs.alone else None
        inputs = [p.text_input(width, choices=bool(choices)) for p in prompts]
        for place, data in self.engine.stream(inputs, needs if ks else Needs()):
            prompt = prompts[place]
            if spans and prompt.prompt.binds:
                tables.add(place, prompt, replace(data, alone=alone, previous_token=scores))
            if prompt.prompt.task == "recognition":
                rows.add(place, prompt.prompt, data.logprobs)
            self._progress(1)
        if spans:
            outcome.tables.append(Measurement(PROMPTS, _arrow(PROMPTS, tables.prompts())))
        for span in spans:
            self._keep(outcome, span, partial(tables.columns, span.name))
        for choice in choices:
            self._keep(outcome, choice, partial(rows.columns, choice))
        for head in (m for m in measures if isinstance(m, HeadMeasure)):
            self._keep(outcome, head, partial(self._heads, head))
        return outcome

    def _read_together(self, spans: bool, choices: bool) -> list[TokenizedPrompt]:
        """The prompts of the shared pass.

        spans, choices: whether there are span measures, and choice measures
        """
        prompts = [p for p in self.prompts if p.prompt.shot == "zero"]
        if not choices:
            return [p for p in prompts if spans and p.prompt.binds]
        return prompts if spans else [p for p in prompts if p.choices]

    def _keep(
        self, outcome: Outcome, measure: Measure, compute: Callable[[], Mapping[str, Mapping[str, Cells]]]
    ) -> None:
        """Add the checked tables of a measure to the outcome, or the reason why it failed."""
        if measure.name in outcome.failures:
            return
        try:
            columns = compute()
            outcome.tables += [Measurement(t, _arrow(t, columns[t.name])) for t in measure.tables]
        except Exception as error:  # any error of one measure must not stop the others
            outcome.failures[measure.name] = failure(measure.name, error)

    def _completions(self, measure: CompletionMeasure) -> Outcome:
        outcome = Outcome()
        views = completions(self.engine, self._used(measure), measure.sampling, progress=self._progress)

        def compute() -> Mapping[str, Mapping[str, Cells]]:
            rows = [_identity(view.prompt) | dict(measure.function(view)) for view in views]
            return {measure.name: _columns(measure.tables[0], rows)}

        self._keep(outcome, measure, compute)
        return outcome

    def _procedure(self, measure: Procedure) -> Outcome:
        """Run a procedure. Raises RequestError where the model or the prompts do not allow it."""
        outcome = Outcome()
        context = Context(
            engine=self.engine,
            prompts=self.prompts,
            choices=self.protocol,
            previous_token=self.previous_token_scores,
            parts=self._parts.get(measure.name),
            progress=self._progress,
        )
        try:
            columns = measure(context)
            outcome.tables += [Measurement(t, _arrow(t, columns[t.name])) for t in measure.tables]
        except (RequestError, MeasureError):
            raise
        except Exception as error:
            outcome.failures[measure.name] = failure(measure.name, error)
        return outcome

    @property
    def previous_token_scores(self) -> Array:
        """(L, H) mean attention to the previous token on neutral text."""
        if self._neutral is None:
            self._neutral = previous_token.function(self._neutral_view())["previous_token_score"]
        return self._neutral

    def _neutral_view(self) -> NeutralView:
        inputs, special = neutral_inputs(self.loaded)
        bands = [data.band for data in self.engine.read(inputs, Needs(attention=True))]
        return NeutralView(tuple(band for band in bands if band is not None), max(1, special))

    def _heads(self, measure: HeadMeasure) -> Mapping[str, Mapping[str, Cells]]:
        values: Values = {"previous_token_score": self.previous_token_scores}
        if measure is not previous_token:
            values = measure.function(self._neutral_view())
        layers, heads = self.loaded.layers, self.loaded.heads
        place = {
            "layer": [layer for layer in range(layers) for _ in range(heads)],
            "head": [head for _ in range(layers) for head in range(heads)],
        }
        for name, value in values.items():
            if np.shape(value) != (layers, heads):
                raise MeasureError(
                    f"the column {name!r} has the shape {np.shape(value)}; return {(layers, heads)}, layers and heads"
                )
        return {measure.name: place | {name: np.ravel(value).tolist() for name, value in values.items()}}

    def _unconditional(self, prompts: Sequence[TokenizedPrompt]) -> dict[str, float]:
        """Choice -> log P after the neutral premise, in nats."""
        texts, inputs = premise_inputs(self.loaded.tokenizer, self.protocol.premise, self.loaded.bos, prompts)
        logprobs = [each for data in self.engine.read(inputs) for each in data.logprobs]
        return {text: float(values.sum()) for text, values in zip(texts, logprobs, strict=True)}

    def _alone(self, prompts: Sequence[TokenizedPrompt]) -> Mapping[int, Any]:
        """Token id -> (L + 1, D) residual stream of every token of the prompts in a text of its own."""
        tokens = sorted({i for p in prompts if p.prompt.binds for i in p.encoded.ids[p.encoded.prefix :]})
        return self.engine.alone(tokens, special_prefix(self.loaded.tokenizer, self.loaded.bos))


class ChoiceRows:
    """Collects the rows of choice measures.

    failures: measure -> why its function failed; such a measure is not called again, and the others continue
    """

    def __init__(
        self, measures: Sequence[ChoiceMeasure], unconditional: Mapping[str, float], failures: dict[str, str]
    ) -> None:
        """Start with no rows.

        measures: the measures to compute
        unconditional: choice -> log P after the neutral premise, in nats
        failures: filled with measure -> why it failed
        """
        self._measures, self._unconditional, self.failures = measures, unconditional, failures
        self._rows: dict[str, dict[int, Values]] = {m.name: {} for m in measures}

    def add(self, place: int, prompt: Prompt, logprobs: tuple[NDArray[np.float32], ...]) -> None:
        """Add a question.

        place: position of its row in the tables
        prompt: the question
        logprobs: for each choice, (tokens,) log P of each token in nats
        """
        if not self._measures:
            return
        view = ChoiceView(prompt, logprobs, tuple(self._unconditional[choice] for choice in prompt.choices))
        for measure in self._measures:
            if measure.name in self.failures:
                continue
            try:
                self._rows[measure.name][place] = _identity(prompt) | dict(measure.function(view))
            except Exception as error:  # any error of one measure must not stop the others
                self.failures[measure.name] = failure(measure.name, error)

    def columns(self, measure: ChoiceMeasure) -> dict[str, dict[str, list[Any]]]:
        """The table of one measure, as table -> column -> values."""
        rows = self._rows[measure.name]
        return {measure.name: _columns(measure.tables[0], [rows[place] for place in sorted(rows)])}


def _ignore(_: float) -> None:
    pass


def _identity(prompt: Prompt) -> dict[str, Any]:
    return {PROMPT.name: prompt.id, QUESTION.name: prompt.shared, TERM.name: prompt.term, KIND.name: prompt.kind}


def _columns(table: Table, rows: Sequence[Values]) -> dict[str, list[Any]]:
    """Rows as columns. Raises MeasureError for a column that is missing or not declared."""
    names = [column.name for column in table.columns]
    for row in rows:
        if odd := sorted(set(row) ^ set(names)):
            what = "did not return" if odd[0] in names else "returned"
            raise MeasureError(f"it {what} the column {odd[0]!r}; it declares {', '.join(names)}")
    return {name: [row[name] for row in rows] for name in names}


def _arrow(table: Table, columns: Mapping[str, Cells]) -> pa.Table:
    """Columns as an Arrow table. Raises MeasureError for values that differ from what the table declares."""
    try:
        return table.arrow(columns)
    except SchemaError as error:
        raise MeasureError(str(error)) from error
