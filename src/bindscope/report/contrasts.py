"""Figures of one thing against another: terms and controls, exemplars, leads, runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from bindscope.report.curves import threshold_rule
from bindscope.report.figure import COLOR, Figure, styled
from bindscope.report.material import Material
from bindscope.report.text import chance, count, line, number, span
from bindscope.stats.analysis import PAIRS

_READINGS = {"published": ("square", "s2"), "controlled": ("circle", "s1")}
_SHOT = {"exemplar": "the term's own", "paraphrased": "paraphrased, no keywords", "mismatched": "another term's"}
_ENDS = ("", "_low", "_high")
_AGAINST = "difference of EB*, real terms against "


def against_k(found: Material) -> Iterator[Figure]:
    """V: EB* by token count, terms beside each control group, with what one previous-token head would give."""
    for i, (suite, part) in enumerate(found.groups.groupby("suite", sort=False) if not found.groups.empty else ()):
        groups = [g for g in dict.fromkeys(part["group"]) if g != "real"]
        if not groups or found.heads.empty:
            continue
        real = part[part["group"] == "real"]
        wide = int(found.heads.loc[found.heads["suite"] == suite, "head"].max()) + 1
        panels = []
        for group in groups:
            control = part[part["group"] == group]
            panels.append(_k_panel(real, control, wide).properties(width=182, height=150, title=line(group)))
        chart = alt.concat(*panels, columns=4).resolve_scale(color="shared", shape="shared", y="shared")
        each = "; ".join(f"{number(r['eb_star'])} at {r['k']} tokens" for r in real.to_dict("records"))
        text = f"{line(str(suite))}, {count(len(groups), 'control group')}. EB* of the terms is {each}. " + " ".join(
            _same_k(r) for r in part.to_dict("records") if pd.notna(r.get("difference"))
        )
        values = [f"{name}{end}" for name in ("eb_star", "difference") for end in _ENDS]
        yield Figure(
            f"controls-{i + 1}",
            "V",
            f"Terms and controls by token count: {line(str(suite))}",
            styled(chart),
            text.strip(),
            part[["suite", "group", "k", "terms", *values, "reason"]],
            "Mean in the same sentences, with 95% intervals over expressions. The dashed line is (2/k)(1 \u2212 1/H): "
            "EB* of a model in which one head of H always looks at the previous token.",
        )


def _same_k(row: dict[Any, Any]) -> str:
    interval = span(row["difference_low"], row["difference_high"])
    return f"At {row['k']} tokens terms less {line(row['group'])}: {number(row['difference'])} {interval}."


def _k_panel(real: pd.DataFrame, control: pd.DataFrame, heads: int) -> Any:
    both = pd.concat(
        [real.assign(kind="terms", at=real["k"] - 0.09), control.assign(kind="controls", at=control["k"] + 0.09)]
    )
    data = both[["at", "kind", "eb_star", "eb_star_low", "eb_star_high"]].astype(
        {"eb_star_low": float, "eb_star_high": float}
    )
    ks = np.arange(2, max(5, int(both["k"].max())) + 1)
    curve = pd.DataFrame({"at": ks, "eb_star": 2 / ks * (1 - 1 / heads)})
    x = (
        alt.X("at:Q", title="tokens k")
        .scale(domain=[1.6, float(ks[-1]) + 0.4])
        .axis(values=ks.tolist(), format="d", grid=False)
    )
    y = alt.Y("eb_star:Q", title="EB*").scale(domain=[0, 1])
    key = alt.Legend(title=None, orient="top")
    color = alt.Color(
        "kind:N", legend=key, scale=alt.Scale(domain=["terms", "controls"], range=[COLOR["s1"], COLOR["s2"]])
    )
    shape = alt.Shape("kind:N", legend=key, scale=alt.Scale(domain=["terms", "controls"], range=["circle", "square"]))
    base = alt.Chart(data).encode(x, color)
    return alt.layer(
        alt.Chart(curve).mark_line(color=COLOR["axis"], strokeDash=[5, 4], strokeWidth=1.5).encode(x, y),
        base.mark_rule(strokeWidth=2).encode(alt.Y("eb_star_low:Q", title="EB*"), alt.Y2("eb_star_high:Q")),
        base.mark_point(filled=True, size=60, opacity=1).encode(y, shape),
    )


def validity(found: Material) -> Iterator[Figure]:
    """V: the difference between terms and each control group, as published and at equal token counts."""
    table = found.results("V")
    table = table[table["quantity"].str.startswith(_AGAINST) & table["value"].notna()]
    if table.empty:
        return
    data = table.assign(group=table["quantity"].str.removeprefix(_AGAINST).map(line))
    rows, said = [], []
    for suite, part in data.groupby("suite", sort=False):
        rows.append(_forest(part, "group", "EB* of terms less EB* of controls").properties(title=line(str(suite))))
        for row in part.to_dict("records"):
            said.append(
                f"{line(str(suite))}, {row['group']}, {row['reading']}: {number(row['value'])} "
                f"{span(row['low'], row['high'])}"
            )
    yield Figure(
        "validity",
        "V",
        "How far terms stand above controls, before and after matching",
        styled(_stacked(rows)),
        ". ".join(said) + ".",
        data[["suite", "group", "reading", "value", "low", "high", "p", "n"]],
        "95% intervals. Published: all values, whatever their token counts. Controlled: within strata of token count "
        "and sentence. A group without a controlled mark has no match at any token count.",
    )


def _stacked(rows: list[Any]) -> Any:
    return alt.vconcat(*rows).resolve_scale(color="shared", shape="shared", x="shared")


def _forest(data: pd.DataFrame, label: str, axis: str, zero: float = 0.0) -> Any:
    """Published and controlled values with intervals, a line of the chart for each value of `label`."""
    order = list(dict.fromkeys(data[label]))
    kept = data[[label, "reading", "value", "low", "high"]].astype({"value": float, "low": float, "high": float})
    key = alt.Legend(title=None, orient="top")
    names = list(_READINGS)
    color = alt.Color(
        "reading:N", legend=key, scale=alt.Scale(domain=names, range=[COLOR[c] for _, c in _READINGS.values()])
    )
    shape = alt.Shape("reading:N", legend=key, scale=alt.Scale(domain=names, range=[s for s, _ in _READINGS.values()]))
    base = alt.Chart(kept).encode(
        alt.Y(f"{label}:N", sort=order, title=None).axis(labelLimit=470, ticks=False, grid=True),
        alt.YOffset("reading:N", sort=names),
        color,
    )
    x = alt.X("value:Q", title=axis)
    return alt.layer(
        threshold_rule(zero),
        base.mark_rule(strokeWidth=2.2).encode(alt.X("low:Q", title=axis), alt.X2("high:Q")),
        base.mark_point(filled=True, size=70, opacity=1).encode(x, shape),
    ).properties(width=430, height=max(1, len(order)) * 34)


def leads(found: Material) -> Iterator[Figure]:
    """C1-B: the share of terms in which EB* leads, as published, and the shares that come out when nothing leads."""
    table = found.results("C1-B")
    table = table[(table["quantity"] == "share of terms that EB* leads") & table["value"].notna()]
    seen = table[table["reading"] == "published"].assign(suite=lambda t: t["suite"].map(line))
    null = table[table["reading"] == "controlled"].assign(suite=lambda t: t["suite"].map(line))
    if seen.empty:
        return
    y = alt.Y("suite:N", sort=list(seen["suite"]), title=None).axis(labelLimit=260, ticks=False)
    axis = "share of terms that EB* leads"
    x = alt.X("value:Q", title=axis).scale(domain=[0, 1])
    columns = ["suite", "value", "low", "high"]
    bar = (
        alt.Chart(null[columns])
        .mark_bar(height=20, color=COLOR["h2"], stroke=COLOR["axis"])
        .encode(y, alt.X("low:Q", title=axis).scale(domain=[0, 1]), alt.X2("high:Q"))
    )
    base = alt.Chart(seen[columns]).encode(y)
    rule = base.mark_rule(strokeWidth=2.4, color=COLOR["s2"]).encode(alt.X("low:Q", title=axis), alt.X2("high:Q"))
    dot = base.mark_point(filled=True, shape="square", size=85, opacity=1, color=COLOR["s2"]).encode(x)
    chart = alt.layer(*([bar] if len(null) else []), threshold_rule(0.5), rule, dot)
    said = []
    for row in seen.to_dict("records"):
        text = f"{row['suite']}: EB* leads in {number(100 * row['value'], 0)}% of {row['n']} terms "
        text += f"({chance(row['p'])} as published"
        for o in null[null["suite"] == row["suite"]].to_dict("records"):
            ends = f"{number(100 * o['low'], 0)}% and {number(100 * o['high'], 0)}%"
            text += f"; when nothing leads, between {ends}, {chance(o['p'])}"
        said.append(f"{text})")
    yield Figure(
        "leads",
        "C1-B",
        "Does binding come first? Share of terms that it leads",
        styled(chart.properties(width=460, height=alt.Step(44))),
        ". ".join(said) + ".",
        table[["suite", "reading", "value", "low", "high", "p", "n"]],
        "Square and line: published share with its Wilson interval. Box: where 95% of the shares fall in runs "
        "simulated with the same trends and noise in which nothing leads. Dashed: one half.",
    )


def exemplars(found: Material) -> Iterator[Figure]:
    """C3: what each kind of exemplar adds to the rubric score."""
    table = found.shots
    table = table[table["exemplar"] != "zero"] if not table.empty else table
    if table.empty:
        return
    rows, said = [], []
    for suite, part in table.groupby("suite", sort=False):
        data = part.assign(label=part["exemplar"].map(_SHOT), text=part["gain"].map(lambda v: number(100 * v, 1)))
        for column in ("gain", "gain_low", "gain_high"):
            data[column] = 100 * data[column].astype(float)
        data = data[["label", "text", "gain", "gain_low", "gain_high"]]
        y = alt.Y("label:N", sort=list(_SHOT.values()), title=None).axis(labelLimit=240, ticks=False)
        base = alt.Chart(data).encode(y)
        axis = "gain in rubric score over no exemplar (percentage points)"
        x = alt.X("gain:Q", title=axis)
        rows.append(
            alt.layer(
                base.mark_bar(height=18, color=COLOR["h3"], stroke=COLOR["s1"]).encode(x),
                base.mark_rule(strokeWidth=2, color=COLOR["ink"]).encode(
                    alt.X("gain_low:Q", title=axis), alt.X2("gain_high:Q")
                ),
                base.mark_text(align="left", dx=6, fontWeight="bold").encode(
                    alt.X("gain_high:Q", title=axis), alt.Text("text:N")
                ),
                threshold_rule(0),
            ).properties(width=420, height=alt.Step(34), title=line(str(suite)))
        )
        each = "; ".join(f"{_SHOT[r['exemplar']]} {number(100 * r['gain'], 1)} points" for r in part.to_dict("records"))
        own = part[part["exemplar"] == "exemplar"].iloc[0]
        said.append(
            f"{line(str(suite))}: {each}. Of {int(own['matched'])} keywords in the answers behind the term's own "
            f"exemplar {int(own['copied'])} stand in the exemplar"
        )
    yield Figure(
        "exemplars",
        "C3",
        "What an exemplar in front adds, and what of it is the term's own",
        styled(alt.vconcat(*rows).resolve_scale(x="shared")),
        ". ".join(said) + ".",
        found.shots,
        "Lines are 95% intervals over terms. What the term's own exemplar adds over another term's, and over a "
        "paraphrase without keywords, is more than the effect of having any example in front, or of copying.",
    )


def spread(found: Material) -> Iterator[Figure]:
    """Every claim's pair of statistics in each run, and their mean over runs with its interval."""
    if found.analysis is None or len(found.suites) < 2:
        return
    wanted = [(claim, pair[i], reading) for claim, pair in PAIRS.items() for i, reading in enumerate(_READINGS)]
    rows = []
    for claim, quantity, reading in wanted:
        part = found.analysis.results
        part = part[(part["claim"] == claim) & (part["quantity"] == quantity) & (part["reading"] == reading)]
        part = part[part["value"].notna() & (claim != "C3")]
        if len(part) > 1 and (part["suite"] == "all runs").any():
            rows.append(part.assign(label=f"{claim}: {quantity}"))
    if not rows:
        return
    table = pd.concat(rows).drop_duplicates(["suite", "label", "reading"])
    each, mean = table[table["suite"] != "all runs"], table[table["suite"] == "all runs"]
    chart = _forest(mean, "label", "value; mean over runs with its 95% interval, small marks: each run")
    order = list(dict.fromkeys(mean["label"]))
    names = list(_READINGS)
    ticks = (
        alt.Chart(each[["label", "reading", "value"]])
        .mark_point(shape="stroke", angle=90, size=110, strokeWidth=2, opacity=1)
        .encode(
            alt.Y("label:N", sort=order),
            alt.YOffset("reading:N", sort=names),
            alt.X("value:Q"),
            alt.Color("reading:N", scale=alt.Scale(domain=names, range=[COLOR[c] for _, c in _READINGS.values()])),
        )
    )
    domain = [min(-1.0, float(each["value"].min())), max(1.0, float(each["value"].max()))]
    chart = alt.layer(chart, ticks).encode(x=alt.X("value:Q").scale(domain=domain, clamp=True))
    wide = each.groupby(["label", "reading"])["value"].agg(lambda v: v.max() - v.min()).sort_values()
    (label, reading), most = wide.index[-1], wide.iloc[-1]
    text = (
        f"{count(len(found.suites), 'run')}: {', '.join(line(s) for s in found.suites)}. The runs differ most in "
        f"{label} ({reading}), by {number(most, 2)}."
    )
    yield Figure(
        "spread",
        "",
        "How much the answers differ between runs",
        styled(chart.properties(width=420)),
        text,
        table[["suite", "claim", "quantity", "reading", "value", "low", "high", "n"]],
        "An interval that leaves the axis is cut at its end: with few runs the mean over runs is hardly known. "
        "Whether runs are seeds of one model or different models, the study file says.",
    )
