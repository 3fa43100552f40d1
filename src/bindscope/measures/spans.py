"""Computes span measures and their window null over all prompts of an experiment.

The data of a forward pass are released after each text, so memory grows only with the rows of the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bindscope.engine.data import TextData
from bindscope.errors import MeasureError
from bindscope.measures.base import SpanMeasure, Values
from bindscope.measures.nulls import NewWindows, Pool, WindowNull
from bindscope.measures.view import SpanView
from bindscope.prompts.spans import find, tokens_of
from bindscope.schema import PROMPTS, Cells, Column

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bindscope.engine.prepare import TokenizedPrompt

#: Numbers that the views of windows may hold at a time: L x H x k x k x windows.
_MAX_NUMBERS = 1 << 23

Row = dict[str, Any]


class SpanTables:
    """Collects the rows of span measures: call `add` for every prompt with spans, then `columns` for each measure.

    failures: measure -> why its function failed; such a measure is not called again, and the others continue
    """

    def __init__(
        self,
        measures: Sequence[SpanMeasure],
        tokenizer: PreTrainedTokenizerBase,
        ks: Sequence[int],
        least: int,
        failures: dict[str, str],
    ) -> None:
        """Start with no rows.

        measures: the measures to compute
        tokenizer: the tokenizer of the model
        ks: lengths of the windows of the null, in tokens
        least: number of windows that a comparison with the null needs
        failures: filled with measure -> why it failed
        """
        self.failures = failures
        self._measures = {measure.name: measure for measure in measures}
        self._tokenizer, self._ks = tokenizer, tuple(ks)
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        self._nulls = {m.name: WindowNull(m, least) for m in measures if m.null == "windows"}
        self._new_windows = NewWindows()
        self._places: list[int] = []
        self._prompts: list[Row] = []
        self._rows: dict[str, list[Row]] = {name: [] for name in self._measures}
        self._pools: list[tuple[Pool, int] | None] = []
        self._pieces: dict[str, str] = {}

    def add(self, place: int, item: TokenizedPrompt, data: TextData) -> None:
        """Add a prompt in which spans are measured.

        place: position of the prompt's row in the tables
        item: the prompt
        data: what the forward pass computed for it
        """
        self._places.append(place)
        self._prompts.append(self._prompt(item))
        carrier, span = item.prompt.task == "carrier", item.span
        self._pools.append(None if span is None else ((span.k, carrier), span.tokens[0]))
        view = None if span is None else SpanView(data, [span.tokens[0]], span.k)
        for name in self._going():
            values = None if view is None else self._compute(name, view)
            if view is None or values is not None:
                self._rows[name].append(_first(self._measures[name].columns, values))
        if self._nulls:
            self._add_windows(item, data)

    def _going(self) -> list[str]:
        return [name for name in self._measures if name not in self.failures]

    def _compute(self, name: str, view: SpanView) -> Values | None:
        """The values of a measure on the spans, with checked shapes; None and an entry in `failures` where it fails."""
        measure = self._measures[name]
        try:
            values = measure.function(view)
            check_shapes(measure, values, view.n)
        except Exception as error:  # any error of one measure must not stop the others
            self.failures[name] = failure(name, error)
            return None
        return dict(values)

    def _add_windows(self, item: TokenizedPrompt, data: TextData) -> None:
        ids, prompt = item.encoded.ids, item.prompt
        carrier = prompt.task == "carrier"
        term = [t for chars in find(prompt.text, prompt.term, prompt.aliases) for t in tokens_of(item.encoded, chars)]
        marks = [i for i, token in enumerate(ids) if token in self._special or i < item.encoded.prefix]
        for k in self._ks:
            starts = self._new_windows.starts(ids, k, carrier, [*term, *marks])
            for part in np.array_split(starts, max(1, -(-len(starts) * _numbers(data, k) // _MAX_NUMBERS))):
                if not len(part):
                    continue
                view = SpanView(data, part, k)
                for name in (name for name in self._nulls if name not in self.failures):
                    if (values := self._compute(name, view)) is not None:
                        self._nulls[name].add((k, carrier), prompt.id, part, values)

    def prompts(self) -> dict[str, list[Any]]:
        """The table `schema.PROMPTS`, as column -> values."""
        rows = [self._prompts[i] for i in np.argsort(self._places, kind="stable")]
        return {column.name: [row[column.name] for row in rows] for column in PROMPTS.columns}

    def columns(self, name: str) -> dict[str, dict[str, Cells]]:
        """The tables of one measure with its null, as table -> column -> values."""
        measure = self._measures[name]
        out: dict[str, list[Any]] = {column.name: [] for column in measure.tables[0].columns}
        null = self._nulls.get(name)
        for i in np.argsort(self._places, kind="stable"):
            row = {key: self._prompts[i][key] for key in ("prompt", "term", "reason")} | self._rows[name][i]
            pool = self._pools[i]
            if null is not None and pool is not None:
                value = row[measure.value]
                row |= null.compare(pool[0], np.nan if value is None else value, pool[1])
            for column, values in out.items():
                values.append(row.get(column))
        tables: dict[str, dict[str, Cells]] = {name: {**out}}
        return tables if null is None else tables | {f"{name}_windows": null.columns()}

    def _prompt(self, item: TokenizedPrompt) -> Row:
        span, prompt = item.span, item.prompt
        return {
            "prompt": prompt.id,
            "question": prompt.shared,
            "term": prompt.term,
            "group": prompt.group,
            "task": prompt.task,
            "kind": prompt.kind,
            "n_tokens": len(item.encoded.ids),
            "prefix": item.encoded.prefix,
            "tokens": self._token_texts(item),
            "k": span.k if span else None,
            "span": list(span.tokens) if span else None,
            "span_strings": [self._tokenizer.decode([item.encoded.ids[i]]) for i in span.tokens] if span else None,
            "occurrences": span.occurrences if span else len(find(prompt.text, prompt.term, prompt.aliases)),
            "reason": item.reason,
        }

    def _token_texts(self, item: TokenizedPrompt) -> list[str]:
        """The text of each token, special tokens in front by name; a letter of several tokens belongs to the last."""
        code, end, out = item.encoded, 0, list[str]()
        for _, stop in code.offsets[code.prefix :]:
            piece = code.text[end : max(end, stop)]
            out.append(self._pieces.setdefault(piece, piece))  # equal strings share one object, which saves memory
            end = max(end, stop)
        return [self._tokenizer.decode([i]) for i in code.ids[: code.prefix]] + out


def failure(name: str, error: Exception) -> str:
    """A message of one line that names the measure and its error."""
    what = str(error) if isinstance(error, MeasureError) else f"{type(error).__name__}: {error}"
    return f"the measure {name} is left out: {' '.join(what.split())}"


def _numbers(data: TextData, k: int) -> int:
    """How many numbers the view of a window of k tokens holds."""
    heads = 1 if data.band is None else data.band.shape[0] * data.band.shape[1]
    width = 0 if data.residual is None else data.residual.shape[0] * data.residual.shape[2]
    return heads * k * k + width * k


def check_shapes(measure: SpanMeasure, values: Values, n: int) -> None:
    """Raises MeasureError for a column that is missing, not declared, or not of n entries on its first axis."""
    if not isinstance(values, Mapping):
        raise MeasureError(f"it returned {type(values).__name__}, not a dictionary of its columns")
    names = [column.name for column in measure.columns]
    if odd := sorted(set(values) ^ set(names)):
        what = "did not return" if odd[0] in names else "returned"
        raise MeasureError(f"it {what} the column {odd[0]!r}; it declares {', '.join(names)}")
    for column in measure.columns:
        given = np.asarray(values[column.name], dtype=object if "text" in column.type else None)
        if "text" not in column.type and given.dtype.kind not in "biuf":
            raise MeasureError(f"the column {column.name!r} holds {given.dtype}; it is declared as {column.type}")
        shape = given.shape
        dimensions = 1 if not column.type.startswith("list") else 3 if "lists" in column.type else 2
        fits = shape[:1] == (n,) and (len(shape) == 1) == (dimensions == 1)
        if not fits:
            wanted = f"({n},)" if dimensions == 1 else f"({n}, ...)"
            raise MeasureError(
                f"the column {column.name!r} has the shape {shape}; return {wanted}, with the spans as the first axis"
            )


def _first(columns: Sequence[Column], values: Values | None) -> Row:
    """The row of a prompt: the values of its span, None in every column where it has no span."""
    return {c.name: None if values is None else _plain(c, values[c.name][0]) for c in columns}


def _plain(column: Column, value: Any) -> Any:
    """A value in the form in which tables store it: nested lists are flattened, NaN becomes None."""
    if column.type == "list of lists of numbers":
        return np.asarray(value, dtype=np.float64).tolist()
    if column.type == "list of text":
        return list(value)
    if column.type.startswith("list"):
        flat = np.asarray(value).ravel()
        if flat.dtype.kind != "f":
            return flat
        return None if len(flat) and np.isnan(flat).all() else flat.astype(np.float64)
    if column.type == "number":
        return None if value is None or np.isnan(value) else float(value)
    return value.item() if isinstance(value, np.generic) else value
