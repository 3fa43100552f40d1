"""One checkpoint, a few terms: how strongly heads bind each, beside the null, and are they previous-token heads?"""

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
    """A head that binds the term: mean BSI, its previous-token score, and that score's rank (1 is the highest)."""

    layer: int
    head: int
    bsi: float
    previous_token_score: float
    previous_token_rank: int

    @property
    def is_previous_token(self) -> bool:
        """On neutral text, more than half of its attention goes to the token before."""
        return self.previous_token_score > 0.5


@dataclass(frozen=True)
class FurtherValue:
    """Another measure of the term; means over its prompts, None where one of them has none.

    title: how the value is called; value; null_mean; excess: value less null_mean; percentile: rank of the value among
    the windows; by_layer: of every layer, empty where the measure does not give it
    """

    title: str
    value: float | None
    null_mean: float | None
    excess: float | None
    percentile: float | None
    by_layer: tuple[float, ...]


@dataclass(frozen=True)
class TermResult:
    """One term in one model; means over its prompts. Values are None, with a `reason`, where there is no span.

    term: as it was asked for
    tokens: as the model sees it; k: how many
    prompts: with a value
    eb_star, eb_star_mass: in [0, 1]
    null_mean: mean EB* of null_n windows of k tokens; excess: eb_star less that; percentile: rank among the windows
    best_layer: from 0
    heads: those with the highest BSI
    bsi, null_bsi: of every head, and of the same head over the null's windows, a row per layer; empty without a value
    reason: why a value is missing
    further: measure -> its value, for measures that were handed over
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
        """As JSON has it, with each head's verdict."""
        heads = [asdict(head) | {"is_previous_token": head.is_previous_token} for head in self.heads]
        return asdict(self) | {"heads": heads}


def resolve(names: Sequence[str]) -> tuple[Term, ...]:
    """Terms of the library by set or term name, in any case, or of a YAML file; any other text is a term of its own.

    Raises UnknownName for a word that looks like a mistyped set, PromptError for an empty one.
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
            found = known.select(name)
        elif text.lower() in known.terms:
            found = known.select(text.lower())
        elif " " not in text and difflib.get_close_matches(text.lower(), map(str.lower, known.sets), 1, 0.5):
            raise UnknownName("term set", name, known.sets)
        else:
            found = (Term(text),)
        out |= {term.name: term for term in found}
    return tuple(out.values())


def measure_terms(
    loaded: Loaded, terms: Sequence[Term], text: str | None = None, heads: int = 5, measures: Sequence[Measure] = ()
) -> list[TermResult]:
    """Measure each term in the carrier sentences, or in `text`, which must hold the terms.

    heads: how many heads each result lists; measures: further measures of spans, beside those of binding
    With `text`, null windows are taken from the text and from the carrier sentences. Raises SpanError where a term is
    absent from `text`, PromptError for an empty text, MeasureError where one of the further measures fails.
    """
    if text is not None and not text.strip():
        raise PromptError("the prompt is empty; give a text that holds the term")
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


def plain(model: str, loaded: Loaded, found: Sequence[TermResult]) -> dict[str, Any]:
    """Looks as JSON has them, with what was measured and how."""
    return {
        "model": model,
        "checkpoint": asdict(loaded.ref),
        "identity": asdict(loaded.files.identity) if loaded.files else None,
        "dtype": loaded.dtype,
        "bos": loaded.bos,
        "terms": [item.plain() for item in found],
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
    found = rows[rows["reason"].isna()]
    if found.empty:
        return TermResult(term=term.name, reason=str(rows["reason"].iloc[0]))
    bsi = np.mean(np.stack(found["bsi"].to_list()), 0)
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
    tokens, _ = Counter(tuple(s) for s in found["span_strings"]).most_common(1)[0]
    null = found["null_bsi"]
    return TermResult(
        term=term.name,
        tokens=tokens,
        k=len(tokens),
        prompts=len(found),
        eb_star=_mean(found, "eb_star"),
        eb_star_mass=_mean(found, "eb_star_mass"),
        null_mean=_mean(found, "null_mean"),
        null_n=int(found["null_n"].min()),
        excess=_mean(found, "excess"),
        percentile=_mean(found, "percentile"),
        best_layer=int(np.mean(np.stack(found["eb_per_layer"].to_list()), 0).argmax()),
        heads=top,
        bsi=_grid(loaded, bsi),
        null_bsi=() if null.isna().any() else _grid(loaded, np.mean(np.stack(null.to_list()), 0)),
        reason=next((str(r) for r in found["null_reason"].dropna()), None),
        further={table.name: _further(table, found) for table in more},
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
