"""A quick look at one checkpoint: which heads bind a term, against the null, and are they previous-token heads?"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bindscope.checkpoints.load import Loaded
from bindscope.errors import PromptError, SpanError, UnknownName
from bindscope.measures.checkpoint import measure
from bindscope.prompts.build import carriers
from bindscope.prompts.library import library, read
from bindscope.prompts.spans import encode, locate
from bindscope.records import Prompt, Protocol, Term


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
class Look:
    """What one term looks like in one model; means over its prompts. None with a `reason` where it has no value.

    bsi, null_bsi: of every head and of the same head over the null windows, a row per layer; empty where there is none.
    """

    term: str
    tokens: tuple[str, ...]
    k: int | None
    prompts: int
    eb_star: float | None
    eb_star_mass: float | None
    null_mean: float | None
    null_n: int
    excess: float | None
    percentile: float | None
    best_layer: int | None
    heads: tuple[Head, ...]
    bsi: tuple[tuple[float, ...], ...]
    null_bsi: tuple[tuple[float, ...], ...]
    reason: str | None

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


def look(loaded: Loaded, terms: Sequence[Term], text: str | None = None, heads: int = 5) -> list[Look]:
    """Measure the binding of each term in the carrier sentences, or in `text`, which must hold the terms.

    With `text`, null windows are taken from the text and from the carrier sentences. Raises SpanError where a term is
    absent from `text`, PromptError for an empty text.
    """
    if text is not None and not text.strip():
        raise PromptError("the prompt is empty; give a text that holds the term")
    prompts = list(carriers(terms, "carriers"))
    if text is not None:
        for term in terms:
            _present(loaded, term, text)
        prompts += [Prompt(f"{t.name}/text", t.name, text, "carrier", t.aliases) for t in terms]
    results, _ = measure(loaded, prompts, Protocol(bos=loaded.bos))
    tables = {r.measure: pd.DataFrame(dict(r.columns)) for r in results}
    rows, pts = tables["binding"], tables["heads"]["previous_token_score"].to_numpy()
    wanted = rows[rows["prompt"].isin({f"{t.name}/text" for t in terms}) == (text is not None)]
    return [_look(loaded, term, wanted[wanted["term"] == term.name], pts, heads) for term in terms]


def plain(model: str, loaded: Loaded, found: Sequence[Look]) -> dict[str, Any]:
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


def _look(loaded: Loaded, term: Term, rows: pd.DataFrame, pts: np.ndarray, heads: int) -> Look:
    found = rows[rows["reason"].isna()]
    if found.empty:
        return Look(
            term.name, (), None, 0, None, None, None, 0, None, None, None, (), (), (), str(rows["reason"].iloc[0])
        )
    bsi = np.mean(np.stack(found["bsi"].to_list()), 0)
    ranks = (-pts).argsort().argsort() + 1
    top = tuple(
        Head(int(i) // loaded.heads, int(i) % loaded.heads, float(bsi[i]), float(pts[i]), int(ranks[i]))
        for i in (-bsi).argsort()[:heads]
    )
    tokens, _ = Counter(tuple(s) for s in found["span_strings"]).most_common(1)[0]
    return Look(
        term.name,
        tokens,
        len(tokens),
        len(found),
        _mean(found, "eb_star"),
        _mean(found, "eb_star_mass"),
        _mean(found, "null_mean"),
        int(found["null_n"].min()),
        _mean(found, "excess"),
        _mean(found, "percentile"),
        int(np.mean(np.stack(found["eb_per_layer"].to_list()), 0).argmax()),
        top,
        _grid(loaded, bsi),
        () if found["null_bsi"].isna().any() else _grid(loaded, np.mean(np.stack(found["null_bsi"].to_list()), 0)),
        _only(found["null_reason"]),
    )


def _grid(loaded: Loaded, values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.reshape(loaded.layers, loaded.heads).tolist())


def _mean(rows: pd.DataFrame, column: str) -> float | None:
    values: Any = rows[column].dropna()
    return float(values.mean()) if len(values) == len(rows) else None


def _only(reasons: pd.Series) -> str | None:
    return next((str(r) for r in reasons.dropna()), None)
