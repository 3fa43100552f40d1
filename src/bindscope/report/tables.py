"""The tables of a report, in the order in which it shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from bindscope.charts.table import Table
from bindscope.charts.text import chance, interval_of, line, number, place, span
from bindscope.claims.base import READINGS, Claim
from bindscope.claims.inputs import ALL_RUNS, Findings
from bindscope.claims.registry import in_a_line
from bindscope.report import measures
from bindscope.tables.run import last

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_QUANTITIES = {
    "eb_star": "EB*",
    "null": "Window null",
    "excess": "Excess",
    "position_excess": "Excess at like positions",
    "accuracy": "Accuracy",
    "margin": "Margin",
    "generation": "Generation",
}


def tables(found: Findings, claims: Sequence[Claim]) -> tuple[list[Table], list[str]]:
    """Every table that the run carries, and a line for each that a claim failed to make."""
    made = [*checkpoints(found), *pairs(found, claims), *statistics(found, claims)]
    problems = list[str]()
    for claim in claims:
        for make in claim.tables:
            try:
                own = [_checked(table, claim.id) for table in make(found)]
                names = {table.name for table in made}
                if taken := next((table.name for table in own if table.name in names), None):
                    raise ValueError(f"there is another table called {taken!r}")
                made += own
            except Exception as error:  # a claim may be somebody else's code: the other tables are kept
                problems.append(f"claim {claim.id}: a table is left out: {in_a_line(error)}")
    made = [table for table in (*made, *(each for make in _OF_THE_RUN for each in make(found))) if table.rows]
    return (made if len(found.tables.suites) > 1 else [_alone(table) for table in made]), problems


def _checked(table: Table, claim: str) -> Table:
    """The table as one of the claim's. Raises TypeError or ValueError for one that cannot be shown."""
    if not isinstance(table, Table):
        raise TypeError(f"{type(table).__name__} is no bindscope.charts.table.Table")
    if not _NAME.fullmatch(table.name):
        raise ValueError(f"a table's name is of letters, digits, hyphens and underscores, got {table.name!r}")
    return replace(table, claim=claim)


def _alone(table: Table) -> Table:
    """The table without its column of suites, where there is one suite and something else names the rows."""
    if "Suite" not in table.head or table.keys < 2:
        return table
    at = list(table.head).index("Suite")
    rows = [[cell for i, cell in enumerate(row) if i != at] for row in table.rows]
    return replace(table, head=[h for h in table.head if h != "Suite"], rows=rows, keys=table.keys - 1)


def checkpoints(found: Findings) -> Iterator[Table]:
    """Means by checkpoint."""
    summary = found.tables.summary
    shown = {c: label for c, label in _QUANTITIES.items() if c in summary and summary[c].notna().any()}
    yield Table(
        name="checkpoints",
        title="Every checkpoint",
        note="Means over prompts; in brackets the 95% interval over terms (bootstrap over terms). Excess is EB* "
        "minus the mean EB* of windows of as many tokens elsewhere in the same prompts; at like positions, of those "
        "that start about as far into the text. Margin is in nats per token. Generation is the rubric score of the "
        "greedy continuation, 0 to 1.",
        head=["Suite", "Step", *shown.values()],
        rows=[
            [line(str(r["suite"])), place(r), *(interval_of(r, c) for c in shown)] for r in summary.to_dict("records")
        ],
        data=summary,
        keys=2,
    )


def pairs(found: Findings, claims: Sequence[Claim]) -> Iterator[Table]:
    """The leading published and controlled statistic of each claim side by side, a row per suite.

    A claim whose leading statistics have subjects has none: its rows stand in a table of their own.
    """
    results = found.results[found.results["suite"] != ALL_RUNS]
    for claim in claims:
        own = results[results["claim"] == claim.id]
        both = [claim.leading(own, reading) for reading in READINGS]
        data = pd.concat(both)
        if data["value"].isna().all() or data["subject"].notna().any():
            continue
        labels = [str(part["quantity"].iloc[0]) if len(part) else "" for part in both]
        same = claim.published == claim.controlled
        heads = [f"{word}: {label}" for word, label in zip(("As published", "Controlled"), labels, strict=True)]
        yield Table(
            name=f"pair-{claim.id}",
            claim=claim.id,
            title=f"{claim.id[0].upper()}{claim.id[1:]}: published and controlled",
            note=f"Both are of: {labels[0]}." if same else "",
            head=["Suite", *(["As published", "Controlled"] if same else heads)],
            rows=[
                [line(str(suite)), *(_in_words(part[part["suite"] == suite]) for part in both)]
                for suite in dict.fromkeys(results["suite"])
            ],
            data=data,
        )


def _in_words(part: pd.DataFrame) -> str:
    if part.empty:
        return number(None)
    row = part.iloc[0]
    if pd.isna(row["value"]):
        return f"not available: {line(str(row['reason']))}"
    return " ".join(filter(None, (number(row["value"], 2), span(row["low"], row["high"], 2), chance(row["p"]))))


def statistics(found: Findings, claims: Sequence[Claim]) -> Iterator[Table]:
    """Every statistic of each claim."""
    results = found.results[found.results["suite"] != ALL_RUNS]
    for claim in claims:
        part = results[results["claim"] == claim.id]
        rows = [
            [
                line(str(row["suite"])),
                line(str(row["quantity"])),
                row["reading"],
                number(row["value"]),
                span(row["low"], row["high"]),
                chance(row["p"]),
                chance(row["q"]).replace("p", "q"),
                f"{row['n']} \u00d7 {line(str(row['unit']))}",
                line(str(row["method"])),
                line(str(row["reason"] or "")),
            ]
            for row in part.to_dict("records")
        ]
        yield Table(
            name=f"claim-{claim.id}",
            claim=claim.id,
            title=f"Every statistic of {claim.id}",
            note="q is p adjusted within suite and reading (Benjamini and Hochberg). Intervals are 95% unless the "
            "method says otherwise.",
            head=["Suite", "Quantity", "Reading", "Value", "Interval", "p", "q", "n", "Method", "Remark"],
            rows=rows,
            data=part,
            keys=2,
        )


def positions(found: Findings) -> Iterator[Table]:
    """Accuracy by the place of the right answer."""
    frame = last(found.tables.positions) if len(found.results) else pd.DataFrame()
    if frame.empty:
        return
    yield Table(
        name="positions",
        title="Accuracy by the place of the right answer",
        note="Of the last checkpoint. Without a preference each place is chosen in "
        f"{number(1 / frame['places'].iloc[0])} of the questions.",
        head=["Suite", "Place", "Questions with gold there", "Accuracy", "How often the place is chosen"],
        rows=[
            [line(str(r["suite"])), r["position"], str(r["n"]), number(r["accuracy"]), number(r["chosen"])]
            for r in frame.to_dict("records")
        ],
        data=frame,
        keys=2,
    )


def scores(found: Findings) -> Iterator[Table]:
    """Accuracy under every score."""
    frame = last(found.tables.scores) if len(found.results) else pd.DataFrame()
    if frame.empty:
        return
    yield Table(
        name="scores",
        title="Accuracy under four scores of a choice",
        note="Of the last checkpoint. PMI takes off what a choice has after a neutral premise. Brackets: 95% interval "
        "over terms.",
        head=["Suite", "Format", "Score", "Accuracy", "Margin"],
        rows=[
            [
                line(str(r["suite"])),
                r["format"],
                r["score"].replace("_", " "),
                f"{number(r['accuracy'])} {span(r['low'], r['high'])}".strip(),
                number(r["margin"]),
            ]
            for r in frame.to_dict("records")
        ],
        data=frame,
        keys=3,
    )


def sampling(found: Findings) -> Iterator[Table]:
    """Spread of sampled answers."""
    frame = last(found.tables.variability) if len(found.results) else pd.DataFrame()
    if frame.empty:
        return
    means = frame.groupby(["suite", "temperature"], sort=False)[["mean", "sd", "texts"]].mean().reset_index()
    yield Table(
        name="sampling",
        title="Sampling",
        note="Of the last checkpoint. Spread: standard deviation over seeds of a prompt's score, mean over prompts.",
        head=["Suite", "Temperature", "Rubric score", "Spread", "Different texts"],
        rows=[
            [line(str(r["suite"])), str(r["temperature"]), number(r["mean"]), number(r["sd"]), number(r["texts"])]
            for r in means.to_dict("records")
        ],
        data=means,
        keys=2,
    )


def tokens(found: Findings) -> Iterator[Table]:
    """How each suite's tokenizer cuts the terms."""
    frame = found.tables.cuts
    if frame.empty:
        return
    rows = [
        [
            line(str(r["term"])),
            line(str(r["suite"])),
            number(r["k"], 0),
            " | ".join(line(t).strip() if t.strip() else "\u00b7" for t in r["tokens"]),
            str(r["forms"]),
            f"{r['prompts'] - r['left_out']} of {r['prompts']}",
            line(r["reasons"]),
        ]
        for r in frame.sort_values(["term"], kind="stable").to_dict("records")
    ]
    yield Table(
        name="tokens",
        title="How the terms are cut into tokens",
        note="The cut most often met in the prompts. EB* falls with k by itself, so terms of different k "
        "are not compared.",
        head=["Term", "Suite", "k", "Tokens", "Different cuts", "Prompts with a span", "Why not all"],
        rows=rows,
        data=frame.assign(tokens=frame["tokens"].map(" | ".join)),
        keys=2,
    )


#: Tables of the run behind those of the claims.
_OF_THE_RUN = (measures.table, positions, scores, sampling, tokens)
