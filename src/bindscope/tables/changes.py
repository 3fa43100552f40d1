"""Compares two runs on the prompts and checkpoints that both have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bindscope.errors import RequestError
from bindscope.stats.compare import paired_difference
from bindscope.stats.correlate import Undefined
from bindscope.tables.run import RunTables

_PLACE = ["suite", "revision", "step"]
#: Table, column, name, and unit of a pair: the same prompt, or the same question in any rotation.
_QUANTITIES = (
    ("binding", "eb_star", "EB*", "prompt"),
    ("binding", "excess", "excess", "prompt"),
    ("recognition", "correct_per_token", "accuracy", "question"),
    ("recognition", "margin_per_token", "margin", "question"),
    ("generation", "score", "generation", "question"),
)


@dataclass(frozen=True)
class Changes:
    """The differences between two runs.

    checkpoints: a row per checkpoint and quantity: means first and second, difference (first less second) with its 95%
        interval (paired, jackknife over terms), p, n pairs, clusters (terms), reason for a missing interval
    terms: the same for each term, without an interval, since a term has few prompts
    notes: what only one of the runs has, and prompts whose text differs
    """

    checkpoints: pd.DataFrame
    terms: pd.DataFrame
    notes: tuple[str, ...]


def changes(first: RunTables, second: RunTables) -> Changes:
    """Compare two runs. Raises RequestError where they share no checkpoint or no prompt."""
    tables = [
        {"binding": run.own} | {name: run.stored(name) for name in ("recognition", "generation")}
        for run in (first, second)
    ]
    places = [_places(run) for run in (first, second)]
    shared = [place for place in places[0] if place in places[1]]
    if not shared:
        raise RequestError(
            f"nothing to compare: {first.store.root} has {_listed(places[0])}; {second.store.root} has "
            f"{_listed(places[1])}; a suite must be measured at the same checkpoint in both"
        )
    notes = []
    for run, its, other in ((first, places[0], places[1]), (second, places[1], places[0])):
        if alone := [place for place in its if place not in other]:
            notes.append(f"{run.store.root} alone has {_listed(alone)}")
    changed, remarks = _different_texts(*(part["binding"] for part in tables))
    rows: list[dict[str, Any]] = []
    terms: list[dict[str, Any]] = []
    for table, column, name, unit in _QUANTITIES:
        a, b = (part[table] for part in tables)
        if a.empty or b.empty:
            continue
        pairs = _pairs(a[~a["question"].isin(changed)], b[~b["question"].isin(changed)], column, unit)
        for place in shared:
            part = pairs[(pairs["suite"] == place[0]) & (pairs["revision"] == place[1])]
            if not part.empty:
                rows.append(_row(place, name, part))
                terms += _terms(place, name, part)
    if not rows:
        raise RequestError(
            f"nothing to compare: {first.store.root} and {second.store.root} share no prompt; the experiments ask "
            "different things"
        )
    return Changes(checkpoints=pd.DataFrame(rows), terms=pd.DataFrame(terms), notes=(*notes, *remarks))


def _places(run: RunTables) -> list[tuple[str, str]]:
    units = [u for u in run.run.units if u.status == "done"]
    return [
        (u.checkpoint.suite, u.checkpoint.revision or u.checkpoint.repo.rstrip("/").rpartition("/")[2]) for u in units
    ]


def _listed(places: list[tuple[str, str]]) -> str:
    if not places:
        return "no measured checkpoint"
    per: dict[str, list[str]] = {}
    for suite, revision in places:
        per.setdefault(suite, []).append(revision)
    return "; ".join(f"{suite} at {', '.join(revisions)}" for suite, revisions in per.items())


def _pairs(a: pd.DataFrame, b: pd.DataFrame, column: str, unit: str) -> pd.DataFrame:
    """The means of each pair that both runs have: columns term, first, second."""
    keys = [*_PLACE[:2], unit]
    sides = []
    for frame, name in ((a, "first"), (b, "second")):
        kept = frame[frame[column].notna()].assign(value=lambda t: t[column].astype(float))
        sides.append(
            kept.groupby(keys, sort=False).agg(term=("term", "first"), **{name: ("value", "mean")}).reset_index()
        )
    return sides[0].merge(sides[1].drop(columns="term"), on=keys)


def _row(place: tuple[str, str], name: str, part: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {
        "suite": place[0],
        "revision": place[1],
        "quantity": name,
        "first": float(part["first"].mean()),
        "second": float(part["second"].mean()),
        "difference": float((part["first"] - part["second"]).mean()),
        "low": None,
        "high": None,
        "p": None,
        "n": len(part),
        "clusters": part["term"].nunique(),
        "reason": None,
    }
    try:
        difference = paired_difference(part["first"], part["second"], part["term"])
    except Undefined as error:
        return row | {"reason": str(error)}
    return row | {"low": difference.low, "high": difference.high, "p": difference.p}


def _terms(place: tuple[str, str], name: str, part: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for term, cell in part.groupby("term", sort=False):
        first, second = float(cell["first"].mean()), float(cell["second"].mean())
        yield {
            "suite": place[0],
            "revision": place[1],
            "term": term,
            "quantity": name,
            "first": first,
            "second": second,
            "difference": first - second,
            "n": len(cell),
        }


def _different_texts(a: pd.DataFrame, b: pd.DataFrame) -> tuple[set[str], list[str]]:
    """Questions whose text differs between the runs, and messages about them and about prompts that one run lacks."""
    texts = [_texts(frame) for frame in (a, b)]
    remarks = []
    for which, alone in (("first", set(texts[0]) - set(texts[1])), ("second", set(texts[1]) - set(texts[0]))):
        if alone:
            remarks.append(f"{len(alone)} prompts are in the {which} run only and are left out, {min(alone)!r} for one")
    changed = [name for name, (_, text) in texts[0].items() if name in texts[1] and text != texts[1][name][1]]
    if changed:
        remarks.append(f"{len(changed)} prompts have one name and two texts and are left out, {changed[0]!r} for one")
    return {texts[0][name][0] for name in changed}, remarks


def _texts(binding: pd.DataFrame) -> dict[str, tuple[str, str | None]]:
    """Prompt -> its question and its text without special tokens; None where the store does not hold tokens."""
    out: dict[str, tuple[str, str | None]] = {}
    for row in binding.drop_duplicates("prompt").to_dict("records") if not binding.empty else ():
        tokens: Any = row.get("tokens")
        known = tokens is not None and not isinstance(tokens, float)
        out[row["prompt"]] = row["question"], "".join(tokens[int(row["prefix"]) :]) if known else None
    return out
