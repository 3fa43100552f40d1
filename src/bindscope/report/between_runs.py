"""How much the answers differ between training runs: the leading statistics of every claim in each run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt
import pandas as pd

from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.forest import MARKS, forest
from bindscope.charts.text import count, line, number
from bindscope.claims.base import READINGS, Claim
from bindscope.claims.inputs import ALL_RUNS, Findings


def spread(found: Findings, claims: Sequence[Claim]) -> Iterator[Figure]:
    """Every claim's pair of leading statistics in each run, and their mean over runs with its interval.

    Claims whose leading statistics have subjects, or whose values may leave [-1, 1], are not drawn.
    """
    suites = found.tables.suites
    parts = [_leading(found.results, claim) for claim in claims if claim.bounded] if len(suites) > 1 else []
    kept = [part for claim_parts in parts for part in claim_parts if len(part)]
    if not kept:
        return
    table = pd.concat(kept)
    each, mean = table[table["suite"] != ALL_RUNS], table[table["suite"] == ALL_RUNS]
    chart = forest(mean, "label", "value; mean over runs with its 95% interval, small marks: each run")
    names = list(MARKS)
    ticks = (
        alt.Chart(each[["label", "reading", "value"]])
        .mark_point(shape="stroke", angle=90, size=110, strokeWidth=2, opacity=1)
        .encode(
            alt.Y("label:N", sort=list(dict.fromkeys(mean["label"]))),
            alt.YOffset("reading:N", sort=names),
            alt.X("value:Q"),
            alt.Color("reading:N", scale={"domain": names, "range": [COLOR[c] for _, c in MARKS.values()]}),
        )
    )
    domain = [min(-1.0, float(each["value"].min())), max(1.0, float(each["value"].max()))]
    chart = alt.layer(chart, ticks).encode(x=alt.X("value:Q").scale(domain=domain, clamp=True))
    wide = each.groupby(["label", "reading"])["value"].agg(lambda v: v.max() - v.min()).sort_values()
    (label, reading), most = wide.index[-1], wide.iloc[-1]
    yield Figure(
        name="spread",
        section="runs",
        title="How much the answers differ between runs",
        chart=styled(chart.properties(width=420)),
        text=f"{count(len(suites), 'run')}: {', '.join(line(s) for s in suites)}. The runs differ most in {label} "
        f"({reading}), by {number(most, 2)}.",
        data=table[["suite", "claim", "id", "quantity", "reading", "value", "low", "high", "n"]],
        note="An interval that leaves the axis is cut at its end: with few runs the mean over runs is hardly known. "
        "Whether runs are seeds of one model or different models, the experiment's file says.",
    )


def _leading(results: pd.DataFrame, claim: Claim) -> Iterator[pd.DataFrame]:
    """The rows of each of the claim's two leading statistics that has a mean over runs."""
    own = results[(results["claim"] == claim.id) & results["value"].notna()]
    for reading in READINGS:
        part = claim.leading(own, reading)
        if len(part) > 1 and part["subject"].isna().all() and (part["suite"] == ALL_RUNS).any():
            yield part.assign(label=f"{claim.id}: {line(str(part['quantity'].iloc[0]))}")
