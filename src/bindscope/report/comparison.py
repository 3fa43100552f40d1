"""Two results folders -> compared.html: what differs in how they were made, and by how much their numbers differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
from markupsafe import Markup

from bindscope.charts.axes import threshold_rule
from bindscope.charts.figure import COLOR, Figure, inline, styled, svg
from bindscope.charts.table import Table
from bindscope.charts.text import chance, count, line, number, span
from bindscope.claims.analysis import analyse
from bindscope.report.content import word_of
from bindscope.report.explorer import packed
from bindscope.report.facts import how
from bindscope.report.html import numbers_of, render
from bindscope.store import Store
from bindscope.tables.changes import Changes, changes
from bindscope.tables.run import RunTables


def write_comparison(first: RunTables, second: RunTables) -> tuple[Path, Changes]:
    """Write compared.html into the first folder. Raises RequestError where they share no checkpoint or prompt."""
    found = changes(first, second)
    found = replace(found, notes=(*_made(first.store, second.store), *found.notes))
    figure, listed = _figure(found), [*_claims(first, second), _checkpoints(found), _terms(found)]
    document = svg(figure.chart)
    csv = {table.name: table.data.to_csv(index=False) for table in listed}
    csv[figure.name] = figure.data.to_csv(index=False)
    page = render(
        "compared.html.j2",
        first=str(first.store.root),
        second=str(second.store.root),
        names=[run.run.experiment["name"] for run in (first, second)],
        notes=found.notes,
        figure=figure,
        drawing=lambda f: Markup(inline(document, f.name)),
        numbers=numbers_of,
        tables=listed,
        data=packed({"csv": csv, "explorer": {}}),
        sentences=_in_words(found),
    )
    return first.store.write_text("compared.html", page), found


def _made(first: Store, second: Store) -> Iterator[str]:
    """What differs in how the two runs were made: protocol, dtype, versions, weights."""
    sides = [_provenances(store) for store in (first, second)]
    shared = [key for key in sides[0] if key in sides[1]]
    seen = set[str]()
    for key in shared:
        a, b = sides[0][key], sides[1][key]
        ways = how(a), how(b)
        differences = [
            f"{name}: {ways[0][name]} (first run), {ways[1][name]} (second run)"
            for name in ways[0]
            if ways[0][name] != ways[1][name]
        ]
        if a["identity"]["fingerprint"] != b["identity"]["fingerprint"]:
            differences.append(
                f"Weights: {key[0]} at {key[1]} has different weight files in the second run (fingerprints differ)"
            )
        yield from (text for text in differences if text not in seen)
        seen.update(differences)


def _provenances(store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """Suite and place of each measured checkpoint -> how the first of its tables was made."""
    return {
        (u.checkpoint.suite, u.checkpoint.place): store.provenance(u.checkpoint, *next(iter(u.keys.items())))
        for u in store.read_run().units
        if u.status == "done" and u.keys
    }


def _in_words(found: Changes) -> list[str]:
    """The differences in words, at the last shared checkpoint of each suite."""
    out = []
    for suite, part in found.checkpoints.groupby("suite", sort=False):
        final = part[part["revision"] == part["revision"].iloc[-1]]
        each = "; ".join(
            f"{r['quantity']} {number(r['difference'])} {span(r['low'], r['high'])}".strip()
            for r in final.to_dict("records")
        )
        out.append(
            f"{line(str(suite))}, {line(str(final['revision'].iloc[0]))}: "
            f"difference (first minus second run) of {each}."
        )
    return out


def _figure(found: Changes) -> Figure:
    panels = []
    table = found.checkpoints
    for quantity in dict.fromkeys(table["quantity"]):
        part = table[table["quantity"] == quantity].assign(
            at=lambda t: [line(f"{r['suite']}, {r['revision']}") for r in t.to_dict("records")]
        )
        data = part[["at", "difference", "low", "high"]].astype({"low": float, "high": float})
        base = alt.Chart(data).encode(
            alt.Y("at:N", sort=list(data["at"]), title=None).axis(labelLimit=260, ticks=False)
        )
        bars = base.mark_rule(strokeWidth=2.2, color=COLOR["s1"]).encode(
            alt.X("low:Q", title="first minus second run"), alt.X2("high:Q")
        )
        dots = base.mark_point(filled=True, size=65, opacity=1, color=COLOR["s1"]).encode(
            alt.X("difference:Q", title="first minus second run")
        )
        panels.append(
            alt.layer(threshold_rule(0), bars, dots).properties(width=420, height=alt.Step(22), title=quantity)
        )
    clear = int(((table["low"].astype(float) > 0) | (table["high"].astype(float) < 0)).sum())
    text = f"{count(len(table), 'difference')}; for {clear} of them the 95% interval excludes zero. " + " ".join(
        _in_words(found)
    )
    return Figure(
        name="changes",
        title="Differences at every shared checkpoint",
        chart=styled(alt.vconcat(*panels)),
        text=text,
        data=table,
        note="Paired by prompt; lines are 95% intervals (jackknife over terms).",
    )


def _claims(first: RunTables, second: RunTables) -> Iterator[Table]:
    """The state of each claim in both runs; no table where one of the runs has no recognition questions."""
    if not (first.has_questions and second.has_questions):
        return
    analyses = [analyse(run) for run in (first, second)]
    answers = [
        {(row["suite"], row["claim"]): row for row in analysis.sentences.to_dict("records")} for analysis in analyses
    ]
    questions = {claim.id: line(claim.question) for analysis in analyses for claim in analysis.claims}
    both = [key for key in answers[0] if key in answers[1]]
    rows = [
        [line(str(suite)), f"{claim}: {questions[claim]}", *(word_of(each[suite, claim]["state"]) for each in answers)]
        for suite, claim in both
    ]
    yield Table(
        name="change-claims",
        title="Claims in both runs",
        note="Whether each claim holds as published and as controlled. Two different states do not show that the runs "
        "differ; the tables below test the differences.",
        head=["Suite", "Claim", "First", "Second"],
        rows=rows,
        data=pd.DataFrame(
            [
                {"suite": suite, "claim": claim, "first": a["state"], "second": b["state"]}
                for (suite, claim) in both
                for a, b in [(answers[0][suite, claim], answers[1][suite, claim])]
            ],
            columns=["suite", "claim", "first", "second"],
        ),
        keys=2,
    )


def _checkpoints(found: Changes) -> Table:
    rows = [
        [
            line(str(r["suite"])),
            line(str(r["revision"])),
            r["quantity"],
            number(r["first"]),
            number(r["second"]),
            f"{number(r['difference'])} {span(r['low'], r['high'])}".strip(),
            chance(r["p"]),
            f"{r['n']} / {r['clusters']}",
            line(str(r["reason"] or "")),
        ]
        for r in found.checkpoints.to_dict("records")
    ]
    return Table(
        name="change",
        title="By checkpoint",
        note="Means over the prompts that both runs have; difference: first minus second.",
        head=["Suite", "Checkpoint", "Quantity", "First", "Second", "Difference", "p", "Pairs / terms", "Remark"],
        rows=rows,
        data=found.checkpoints,
        keys=3,
    )


def _terms(found: Changes) -> Table:
    ends = found.terms.groupby("suite", sort=False)["revision"].last()
    table = found.terms[found.terms["revision"] == found.terms["suite"].map(ends)]
    order = table["difference"].abs().sort_values(ascending=False).index
    rows = [
        [
            line(str(r["suite"])),
            line(str(r["term"])),
            r["quantity"],
            number(r["first"]),
            number(r["second"]),
            number(r["difference"]),
            str(r["n"]),
        ]
        for r in table.loc[order].to_dict("records")
    ]
    return Table(
        name="change-terms",
        title="By term",
        note="At the last shared checkpoint, the largest differences first; without intervals, since the prompts of "
        "one term are few.",
        head=["Suite", "Term", "Quantity", "First", "Second", "Difference", "Pairs"],
        rows=rows,
        data=found.terms,
        keys=3,
    )
