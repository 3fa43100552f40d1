"""Figures of two quantities against each other: binding and behavior early and late, and terms that come apart."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from bindscope.report.curves import threshold_rule
from bindscope.report.figure import COLOR, Figure, styled
from bindscope.report.material import Material
from bindscope.report.text import chance, count, line, number, span

_HALF = {"early": ("early half of the checkpoints", "circle", "s1"), "late": ("late half", "square", "s2")}


def early_late(found: Material) -> Iterator[Figure]:
    """C1-A and C4-A: EB* against behavior, a point per term and checkpoint, early and late in training."""
    if found.paths.empty:
        return
    table = found.paths[found.paths["half"].isin(list(_HALF))]
    if table.empty:
        return
    rows, said = [], []
    for suite, part in table.groupby("suite", sort=False):
        row = []
        for half, (label, shape, color) in _HALF.items():
            data = part.loc[part["half"] == half, ["eb_star", "behavior"]]
            base = alt.Chart(data).mark_point(shape=shape, color=COLOR[color], size=38, opacity=0.75, strokeWidth=1.4)
            points = base.encode(
                alt.X("eb_star:Q", title="EB*").scale(domain=[0, float(table["eb_star"].max())], nice=True),
                alt.Y("behavior:Q", title="behavior").scale(domain=[0, 1]),
            )
            title = alt.TitleParams(f"{line(str(suite))}: {label}", subtitle=_rho(found, str(suite), half))
            row.append(points.properties(width=300, height=220, title=title))
            said.append(f"{line(str(suite))}, {label}: {count(len(data), 'point')}; {_rho(found, str(suite), half)}")
        rows.append(alt.hconcat(*row, spacing=44))
    yield Figure(
        "early-late",
        "C4-A",
        "EB* against behavior, early and late in training",
        styled(alt.vconcat(*rows)),
        ". ".join(said) + ".",
        table[["suite", "term", "revision", "step", "half", "eb_star", "behavior"]],
        "A point is a term at one checkpoint, mean over its prompts. The correlations are over questions and "
        "checkpoints, as the study pools them, and, controlled, within checkpoints with terms redrawn.",
    )


def _rho(found: Material, suite: str, half: str) -> str:
    rows = found.results("C4-A")
    rows = rows[rows["suite"] == suite]
    name = f"rho(EB*, accuracy), {half} half"
    parts = []
    for quantity, reading in ((name, "published"), (f"{name}, within checkpoints", "controlled")):
        part = rows[(rows["quantity"] == quantity) & (rows["reading"] == reading)]
        if len(part) and pd.notna(part["value"].iloc[0]):
            row = part.iloc[0]
            more = span(row["low"], row["high"], 2) or chance(row["p"])
            parts.append(f"{reading} \u03c1 {number(row['value'], 2)} {more}".strip())
    return "; ".join(parts) or "no correlation can be computed"


def decoupling(found: Material) -> Iterator[Figure]:
    """C4-B: each term's rank correlation early against that late; lower right is what the study calls decoupled."""
    if found.halves.empty:
        return
    rows, said = [], []
    for suite, part in found.halves.groupby("suite", sort=False):
        data = part.assign(
            term=part["term"].map(line), kind=part["decoupled"].map({True: "decoupled by the rule", False: "not"})
        )
        look = {"domain": ["decoupled by the rule", "not"], "range": [COLOR["s2"], COLOR["s1"]]}
        key = alt.Legend(title=None, orient="top")
        side = alt.Scale(domain=[-1.05, 1.05], nice=False)
        base = alt.Chart(data).encode(
            alt.X("early:Q", title="\u03c1 over early checkpoints", scale=side).axis(values=[-1, -0.5, 0, 0.5, 1]),
            alt.Y("late:Q", title="\u03c1 over late checkpoints", scale=side).axis(values=[-1, -0.5, 0, 0.5, 1]),
        )
        points = base.mark_point(size=70, opacity=0.9, strokeWidth=2).encode(
            alt.Color("kind:N", scale=alt.Scale(**look), legend=key),
            alt.Shape("kind:N", scale=alt.Scale(domain=look["domain"], range=["square", "circle"]), legend=key),
        )
        names = (
            base.transform_filter(alt.datum.decoupled)
            .mark_text(align="left", dx=7, dy=-5, fontSize=10.5)
            .encode(alt.Text("term:N"))
        )
        rule = _rates(found, str(suite))
        title = alt.TitleParams(line(str(suite)), subtitle=rule)
        layers = [
            threshold_rule(0),
            threshold_rule(0, "y"),
            points,
            *([names] if data["decoupled"].sum() <= 12 else []),
        ]
        rows.append(alt.layer(*layers).properties(width=330, height=330, title=title))
        gone = ", ".join(data.loc[data["decoupled"], "term"]) or "none"
        said.append(f"{line(str(suite))}: {rule}. Decoupled by the rule: {gone}")
    chart = alt.concat(*rows, columns=2)
    yield Figure(
        "decoupling",
        "C4-B",
        "Do binding and behavior come apart, term by term?",
        styled(chart),
        ". ".join(said) + ".",
        found.halves[["suite", "term", "early", "late", "decoupled"]],
        "The rule: a correlation above 0 over the early checkpoints and at or below 0 over the late ones (lower "
        "right). With four checkpoints in a half a correlation takes few values and can reach no small p.",
    )


def _rates(found: Material, suite: str) -> str:
    rows = found.results("C4-B")
    rows = rows[(rows["suite"] == suite) & rows["value"].notna()]
    share = {str(r["reading"]): 100 * float(r["value"]) for r in rows.to_dict("records")}
    if len(share) < 2:
        return "share not available"
    return f"{number(share['published'], 0)}% decouple; by chance {number(share['controlled'], 0)}% would"
