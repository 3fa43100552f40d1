"""C2 and robustness: is EB* a property of the term, or of the sentence it stands in? At the last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bindscope.stats.correlate import Undefined, clustered_spearman, spearman
from bindscope.stats.result import Result, interval, row
from bindscope.stats.variance import components, cv, icc


def stability(table: pd.DataFrame) -> Iterator[Result]:
    """C2, at the last checkpoint: is EB* a property of the term, or of the sentence? By layer band too."""
    last = table[table["t"] == table["t"].max()] if len(table) else table
    method = "one-way ICC(1): share of variance between terms"
    yield Result("C2", "ICC of EB* by term", "published", None, 0, "question", method, reason="not tested in the study")
    yield row(
        "C2", "ICC of EB* by term", "controlled", "question", method, len(last),
        lambda: interval(icc(last["eb_star"], last["term"])),
    )  # fmt: skip
    yield row(
        "C2", "ICC of excess by term", "controlled", "question", method, int(last["excess"].notna().sum()),
        lambda: interval(icc(last["excess"].dropna(), last.loc[last["excess"].notna(), "term"])),
    )  # fmt: skip
    depth = len(last["eb_per_layer"].iloc[0]) if len(last) else 0
    for name, layers in (("early third", slice(0, depth // 3)), ("late two thirds", slice(depth // 3, depth))):
        values = [max(row[layers], default=np.nan) for row in last["eb_per_layer"].map(list)]
        yield row(
            "C2", f"ICC of EB* by term, {name} of the layers", "controlled", "question", method, len(last),
            partial(_band, values, last["term"], depth),
        )  # fmt: skip
    for factor in ("term", "kind"):
        yield row(
            "C2", f"share of the variance of EB* by {factor}", "controlled", "question", "crossed random effects of "
            "term and kind of question", len(last),
            partial(_share, last, factor),
        )  # fmt: skip


def _band(values: list[float], terms: pd.Series, depth: int) -> dict[str, Any]:
    if depth < 3:
        raise Undefined(f"{depth} layers cannot be cut into thirds")
    return interval(icc(values, terms))


def _share(last: pd.DataFrame, factor: str) -> dict[str, Any]:
    found = components(last["eb_star"], {"term": last["term"], "kind": last["kind"]})
    return {"value": found.share[factor], "n": found.n}


def robustness(table: pd.DataFrame) -> Iterator[Result]:
    """How much EB* depends on the sentence, at the last checkpoint."""
    last = table[table["t"] == table["t"].max()] if len(table) else table
    yield row(
        "robustness", "mean CV of EB* over the questions of a term", "published", "term", "standard deviation / mean",
        last["term"].nunique(), lambda: _cv(last),
    )  # fmt: skip
    yield row(
        "robustness", "rho(EB*, prompt length)", "published", "question", "Spearman, questions taken as independent",
        len(last), lambda: _published(last),
    )  # fmt: skip
    yield row(
        "robustness", "rho(EB*, prompt length)", "controlled", "question", "Spearman, terms redrawn", len(last),
        lambda: interval(clustered_spearman(last["eb_star"], last["n_tokens"], last["term"])),
    )  # fmt: skip
    yield row(
        "robustness", "rho(EB*, tokens of the term)", "controlled", "question", "Spearman, terms redrawn; EB* of a "
        "previous-token head falls as 2/k", len(last),
        lambda: interval(clustered_spearman(last["eb_star"], last["k"], last["term"])),
    )  # fmt: skip


def _cv(last: pd.DataFrame) -> dict[str, Any]:
    found = cv(last["eb_star"], last["term"])
    kept = found.values[np.isfinite(found.values)]
    if len(kept) < len(found.values) or not len(kept):
        reasons = "; ".join(sorted(set(found.undefined.values()))[:2])
        raise Undefined(f"undefined in {len(found.names) - len(kept)} of {len(found.names)} terms ({reasons})")
    return {"value": float(kept.mean()), "n": len(kept)}


def _published(last: pd.DataFrame) -> dict[str, Any]:
    found = spearman(last["eb_star"], last["n_tokens"])
    return {"value": found.rho, "p": found.p, "n": found.n}
