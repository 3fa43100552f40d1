"""Measures a few terms in one checkpoint: how strongly heads bind each, the null, and previous-token scores."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bindscope.checkpoints.load import Loaded
from bindscope.engine.engine import Engine
from bindscope.errors import MeasureError, PromptError, SpanError, UnknownName
from bindscope.execute.measuring import measure
from bindscope.measures.base import Measure
from bindscope.measures.registry import chosen as chosen_measures
from bindscope.prompts.build import carriers
from bindscope.prompts.library import library, read
from bindscope.prompts.spans import encode, locate
from bindscope.records import Prompt, Protocol, Term
from bindscope.schema import Table


@dataclass(frozen=True)
class Head:
    """A head and how much it binds a term.

    layer, head: from 0
    bsi: mean BSI over the term's prompts
    previous_token_score: mean attention to the previous token on neutral text
    previous_token_rank: rank of that score among the heads of the model, 1 for the highest
    """

    layer: int
    head: int
    bsi: float
    previous_token_score: float
    previous_token_rank: int

    @property
    def is_previous_token(self) -> bool:
        """Whether more than half of its attention on neutral text goes to the previous token."""
        return self.previous_token_score > 0.5


@dataclass(frozen=True)
class FurtherValue:
    """The value of a further measure for a term: means over its prompts, None where a prompt has no value.

    title: name of the value in tables
    value: the leading value
    null_mean: mean value of the windows
    excess: value less null_mean
    percentile: rank of the value among the windows
    by_layer: the value of every layer, empty where the measure does not give it
    """

    title: str
    value: float | None
    null_mean: float | None
    excess: float | None
    percentile: float | None
    by_layer: tuple[float, ...]


@dataclass(frozen=True)
class TermResult:
    """One term in one model: means over its prompts. Values are None, with a reason, where there is no span.

    term: the term
    tokens: its tokens
    k: number of tokens
    prompts: number of prompts with a value
    eb_star: EB*, in [0, 1]
    eb_star_mass: EB*_mass, in [0, 1]
    null_mean: mean EB* of windows of k tokens
    null_n: number of these windows
    excess: eb_star less null_mean
    percentile: rank of eb_star among the windows
    best_layer: layer with the largest EB, from 0
    heads: the heads with the highest BSI
    bsi: BSI of every head, a row per layer; empty without a value
    null_bsi: mean BSI of every head over the windows, a row per layer; empty without a null
    reason: why a value is missing
    further: measure -> its value, for further measures
    """

    term: str
    tokens: tuple[str, ...] = ()
    k: int | None = None
    prompts: int = 0
    eb_star: float | None = None
    eb_star_mass: float | None = None
    null_mean: float | None = None
    null_n: int = 0
    excess: float | None = None
    percentile: float | None = None
    best_layer: int | None = None
    heads: tuple[Head, ...] = ()
    bsi: tuple[tuple[float, ...], ...] = ()
    null_bsi: tuple[tuple[float, ...], ...] = ()
    reason: str | None = None
    further: dict[str, FurtherValue] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The result as plain values for JSON; each head has the field is_previous_token."""
        heads = [asdict(head) | {"is_previous_token": head.is_previous_token} for head in self.heads]
        return asdict(self) | {"heads": heads}


def resolve(names: Sequence[str]) -> tuple[Term, ...]:
    """Look up terms.

    names: sets or names of the library, in upper or lower case, or YAML files of terms; any other text becomes a term
        itself
    Raises UnknownName for a word that looks like a mistyped set, PromptError for an empty name.
    """
    known = library()
    out: dict[str, Term] = {}
    for name in names:
        if name.endswith((".yaml", ".yml")):
            out |= read(Path(name)).terms
            continue
        text = " ".join(name.split())
        if not text:
            raise PromptError("a term is empty; give one or more words")
        if name in known.sets:
            selected = known.select(name)
        elif text.lower() in known.terms:
            selected = known.select(text.lower())
        elif " " not in text and difflib.get_close_matches(text.lower(), map(str.lower, known.sets), 1, 0.5):
            raise UnknownName("term set", name, known.sets)
        else:
            selected = (Term(text),)
        out |= {term.name: term for term in selected}
    return tuple(out.values())


def measure_terms(
    loaded: Loaded, terms: Sequence[Term], text: str | None = None, heads: int = 5, measures: Sequence[Measure] = ()
) -> list[TermResult]:
    """Measure each term in the carrier sentences, or in a text.

    loaded: the model
    terms: the terms
    text: a text that contains the terms, instead of the carrier sentences; the windows of the null are then taken from
        the text and from the carrier sentences
    heads: number of heads that each result lists
    measures: further span measures
    Raises SpanError where a term is absent from `text`, PromptError for an empty text, MeasureError where one of the
    measures fails.
    """
    if text is not None and not text.strip():
        raise PromptError("the prompt is empty; give a text that contains the term")
    prompts = list(carriers(terms, "carriers"))
    if text is not None:
        for term in terms:
            _present(loaded, term, text)
        prompts += [
            Prompt(id=f"{t.name}/text", term=t.name, text=text, task="carrier", aliases=t.aliases) for t in terms
        ]
    chosen, _ = chosen_measures(["binding"], measures)
    with Engine(loaded) as engine:
        outcome = measure(engine, prompts, Protocol(bos=loaded.bos), list(chosen.values()))
    for reason in outcome.failures.values():
        raise MeasureError(reason)
    rows = outcome.frame("binding")
    pts = outcome.frame("previous_token")["previous_token_score"].to_numpy()
    more = [t.table for t in outcome.tables if t.name in {m.name for m in measures}]
    wanted = rows[rows["prompt"].isin({f"{t.name}/text" for t in terms}) == (text is not None)]
    return [_result(loaded, term, wanted[wanted["term"] == term.name], pts, heads, more) for term in terms]


def plain(model: str, loaded: Loaded, results: Sequence[TermResult]) -> dict[str, Any]:
    """The results as plain values for JSON, with the checkpoint and the settings.

    model: name of the model, as it was given
    loaded: the model
    results: the results
    """
    return {
        "model": model,
        "checkpoint": asdict(loaded.ref),
        "identity": asdict(loaded.files.identity) if loaded.files else None,
        "dtype": loaded.dtype,
        "bos": loaded.bos,
        "terms": [item.plain() for item in results],
    }


def _present(loaded: Loaded, term: Term, text: str) -> None:
    try:
        locate(encode(loaded.tokenizer, text, loaded.bos), term.name, term.aliases)
    except SpanError as error:
        if error.reason == "absent":
            raise


def _result(
    loaded: Loaded, term: Term, rows: pd.DataFrame, pts: np.ndarray, heads: int, more: Sequence[Table]
) -> TermResult:
    measured = rows[rows["reason"].isna()]
    if measured.empty:
        return TermResult(term=term.name, reason=str(rows["reason"].iloc[0]))
    bsi = np.mean(np.stack(measured["bsi"].to_list()), 0)
    ranks = (-pts).argsort().argsort() + 1
    top = tuple(
        Head(
            layer=int(i) // loaded.heads,
            head=int(i) % loaded.heads,
            bsi=float(bsi[i]),
            previous_token_score=float(pts[i]),
            previous_token_rank=int(ranks[i]),
        )
        for i in (-bsi).argsort()[:heads]
    )
    tokens, _ = Counter(tuple(s) for s in measured["span_strings"]).most_common(1)[0]
    null = measured["null_bsi"]
    return TermResult(
        term=term.name,
        tokens=tokens,
        k=len(tokens),
        prompts=len(measured),
        eb_star=_mean(measured, "eb_star"),
        eb_star_mass=_mean(measured, "eb_star_mass"),
        null_mean=_mean(measured, "null_mean"),
        null_n=int(measured["null_n"].min()),
        excess=_mean(measured, "excess"),
        percentile=_mean(measured, "percentile"),
        best_layer=int(np.mean(np.stack(measured["eb_per_layer"].to_list()), 0).argmax()),
        heads=top,
        bsi=_grid(loaded, bsi),
        null_bsi=() if null.isna().any() else _grid(loaded, np.mean(np.stack(null.to_list()), 0)),
        reason=next((str(r) for r in measured["null_reason"].dropna()), None),
        further={table.name: _further(table, measured) for table in more},
    )


def _further(table: Table, rows: pd.DataFrame) -> FurtherValue:
    def null(name: str) -> float | None:
        column = f"{table.name}_{name}"
        return _mean(rows, column) if column in rows else None

    layers: Any = rows[table.by_layer].dropna() if table.by_layer else []
    return FurtherValue(
        title=table.title,
        value=_mean(rows, table.value),
        null_mean=null("null_mean"),
        excess=null("excess"),
        percentile=null("percentile"),
        by_layer=tuple(np.mean(np.stack(list(layers)), 0).tolist()) if len(layers) else (),
    )


def _grid(loaded: Loaded, values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.reshape(loaded.layers, loaded.heads).tolist())


def _mean(rows: pd.DataFrame, column: str) -> float | None:
    values: Any = rows[column].dropna()
    return float(values.mean()) if len(values) == len(rows) else None
