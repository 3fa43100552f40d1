"""V: are terms bound more than other expressions, and is it more than their token counts make of it?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.table import Table
from bindscope.charts.text import count, interval_of, line, number, span
from bindscope.claims.answers import state, undecided
from bindscope.claims.base import READINGS, Answer, Claim, Statistic, missing, statistic
from bindscope.claims.inputs import Findings, Inputs
from bindscope.stats.compare import cohen_d, stratified_difference, welch
from bindscope.tables.run import last

_DIFFERENCE = "v.difference"
_REAL = "real"
_COLUMNS = ("term", "group", "k", "frame", "eb_star")


def discriminant_validity(inputs: Inputs) -> Iterator[Statistic]:
    """Differences between the terms and each control group, at the last checkpoint."""
    table = inputs.carriers
    if table.empty or set(table["group"]) <= {_REAL}:
        for reading in READINGS:
            yield missing(
                id=_DIFFERENCE,
                reading=reading,
                quantity="difference of EB*, real terms against controls",
                reason="the run has no control terms",
            )
        return
    yield from differences(table)


def differences(table: pd.DataFrame) -> Iterator[Statistic]:
    """EB* of real terms against each group of controls.

    table: a row per term and carrier sentence, with term, group ("real" for terms), k (tokens), frame (the sentence)
    and eb_star. Published: Cohen's d and Welch's t over all values. Controlled: the difference within strata of k and
    frame; a stratum without both kinds is left out and counted; jackknife over terms. Raises ValueError for missing
    columns.
    """
    if absent := [name for name in _COLUMNS if name not in table]:
        raise ValueError(
            f"the table lacks the columns {', '.join(absent)}; it has {', '.join(map(str, table.columns))}"
        )
    real = table[table["group"] == _REAL]
    for group in sorted(set(table["group"]) - {_REAL}):
        yield from _against(real, table[table["group"] == group], group)


def _against(real: pd.DataFrame, control: pd.DataFrame, group: str) -> Iterator[Statistic]:
    n, name, unit = len(real) + len(control), f"EB*, real terms against {group}", "term x frame"
    yield statistic(
        lambda: {"value": cohen_d(real["eb_star"], control["eb_star"])},
        id="v.cohen_d",
        subject=group,
        reading="published",
        quantity=f"Cohen's d of {name}",
        n=n,
        unit=unit,
        method="pooled SD; values taken as independent",
    )
    yield statistic(
        partial(_welch, real, control),
        id=_DIFFERENCE,
        subject=group,
        reading="published",
        quantity=f"difference of {name}",
        n=n,
        unit=unit,
        method="Welch's t; values taken as independent",
    )
    yield statistic(
        partial(_stratified, real, control),
        id=_DIFFERENCE,
        subject=group,
        reading="controlled",
        quantity=f"difference of {name}",
        n=n,
        unit=unit,
        method="within strata of token count and frame; jackknife over terms",
    )


def _welch(real: pd.DataFrame, control: pd.DataFrame) -> dict[str, Any]:
    test = welch(real["eb_star"], control["eb_star"])
    return {"value": test.difference, "low": test.low, "high": test.high, "p": test.p}


def _stratified(real: pd.DataFrame, control: pd.DataFrame) -> dict[str, Any]:
    both = pd.concat([real.assign(real=True), control.assign(real=False)], ignore_index=True)
    strata = both["k"].astype(str) + " tokens, " + both["frame"].astype(str)
    result = stratified_difference(both["eb_star"], both["real"], strata, both["term"])
    gone = len(result.unmatched)
    return {
        "value": result.value,
        "low": result.low,
        "high": result.high,
        "p": result.p,
        "n": result.n,
        "clusters": result.clusters,
        "cluster": "term",
        "reason": f"{gone} of {strata.nunique()} strata have no match and are left out" if gone else None,
    }


def _answer(rows: pd.DataFrame) -> Answer:
    if rows["value"].isna().all():
        return undecided(rows["reason"].iloc[-1])
    measured = rows[(rows["id"] == _DIFFERENCE) & rows["value"].notna()]
    published, controlled = (measured[measured["reading"] == reading] for reading in READINGS)
    detail = _detail(rows, published, controlled)
    if controlled.empty:
        return undecided("no control group has a match at equal token counts", controlled=True, detail=detail)
    above = [int((part["low"] > 0).sum()) for part in (published, controlled)]
    come_to = state(above[0] > 0, above[1] > 0)
    if 0 < above[1] < len(controlled):
        come_to = "in part"
    sentence = (
        f"As published, terms stand above {above[0]} of {len(published)} control groups; at equal token counts in the "
        f"same sentences, above {above[1]} of {len(controlled)}."
    )
    return Answer(come_to, sentence, detail)


def _detail(rows: pd.DataFrame, published: pd.DataFrame, controlled: pd.DataFrame) -> str:
    texts = []
    for part in (published, controlled):
        above, below = part.loc[part["low"] > 0, "subject"], part.loc[part["high"] < 0, "subject"]
        text = f"real terms are bound more than {len(above)} of {len(part)} control groups"
        text += f" ({', '.join(above)})" if 0 < len(above) < len(part) else ""
        text += f" and less than {', '.join(below)}" if len(below) else ""
        texts.append(text if len(part) else "missing")
    unmatched = int((rows.loc[rows["reading"] == "controlled", "value"]).isna().sum())
    closing = f" {count(unmatched, 'group')} without a match." if unmatched else ""
    return (
        f"As published: {texts[0]}. Controlled, at equal token counts in the same sentences: {texts[1]} (95% "
        f"intervals).{closing}"
    )


def by_group(found: Findings) -> Iterator[Figure]:
    """The difference between terms and each control group, as published and at equal token counts."""
    import altair as alt

    from bindscope.charts.forest import forest

    data = found.rows(_DIFFERENCE)
    if data.empty:
        return
    data = data.assign(group=data["subject"].map(line))
    panels, sentences = [], []
    for suite, part in data.groupby("suite", sort=False):
        panels.append(forest(part, "group", "EB* of terms minus EB* of controls").properties(title=line(str(suite))))
        for row in part.to_dict("records"):
            sentences.append(
                f"{line(str(suite))}, {row['group']}, {row['reading']}: {number(row['value'])} "
                f"{span(row['low'], row['high'])}"
            )
    chart = alt.vconcat(*panels).resolve_scale(color="shared", shape="shared", x="shared")
    yield Figure(
        name="validity",
        title="How far terms stand above controls, before and after matching",
        chart=styled(chart),
        text=". ".join(sentences) + ".",
        data=data[["suite", "group", "reading", "value", "low", "high", "p", "n"]],
        note="95% intervals. Published: all values, whatever their token counts. Controlled: within strata of token "
        "count and sentence. A group without a controlled mark has no match at any token count.",
    )


def by_token_count(found: Findings) -> Iterator[Figure]:
    """EB* by token count, terms beside each control group, with what one previous-token head would give."""
    import altair as alt

    every, heads = last(found.tables.groups), found.tables.heads
    for i, (suite, part) in enumerate(every.groupby("suite", sort=False) if not every.empty else ()):
        groups = [group for group in dict.fromkeys(part["group"]) if group != _REAL]
        if not groups or heads.empty:
            continue
        real = part[part["group"] == _REAL]
        in_layer = int(heads.loc[heads["suite"] == suite, "head"].max()) + 1
        panels = [
            _panel(real, part[part["group"] == group], in_layer).properties(width=182, height=150, title=line(group))
            for group in groups
        ]
        chart = alt.concat(*panels, columns=4).resolve_scale(color="shared", shape="shared", y="shared")
        each = "; ".join(f"{number(row['eb_star'])} at {row['k']} tokens" for row in real.to_dict("records"))
        text = f"{line(str(suite))}, {count(len(groups), 'control group')}. EB* of the terms is {each}. " + " ".join(
            _at_equal_count(row) for row in part.to_dict("records") if pd.notna(row.get("difference"))
        )
        values = [f"{name}{end}" for name in ("eb_star", "difference") for end in ("", "_low", "_high")]
        yield Figure(
            name=f"controls-{i + 1}",
            title=f"Terms and controls by token count: {line(str(suite))}",
            chart=styled(chart),
            text=text.strip(),
            data=part[["suite", "group", "k", "terms", *values, "reason"]],
            note="Mean in the same sentences, with 95% intervals over expressions. The dashed line is "
            "(2/k)(1 \u2212 1/H): EB* of a model in which one head of H always looks at the previous token.",
        )


def _at_equal_count(row: dict[Any, Any]) -> str:
    interval = span(row["difference_low"], row["difference_high"])
    return f"At {row['k']} tokens, terms minus {line(row['group'])}: {number(row['difference'])} {interval}."


def _panel(real: pd.DataFrame, control: pd.DataFrame, heads: int) -> Any:
    """EB* of terms and of one control group by token count. heads: how many a layer has."""
    import altair as alt

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
    key = {"title": None, "orient": "top"}
    kinds = ["terms", "controls"]
    color = alt.Color("kind:N", legend=key, scale={"domain": kinds, "range": [COLOR["s1"], COLOR["s2"]]})
    shape = alt.Shape("kind:N", legend=key, scale={"domain": kinds, "range": ["circle", "square"]})
    base = alt.Chart(data).encode(x, color)
    return alt.layer(
        alt.Chart(curve).mark_line(color=COLOR["axis"], strokeDash=[5, 4], strokeWidth=1.5).encode(x, y),
        base.mark_rule(strokeWidth=2).encode(alt.Y("eb_star_low:Q", title="EB*"), alt.Y2("eb_star_high:Q")),
        base.mark_point(filled=True, size=60, opacity=1).encode(y, shape),
    )


def controls(found: Findings) -> Iterator[Table]:
    """Terms and controls at equal token counts."""
    frame = last(found.tables.groups)
    if frame.empty or set(frame["group"]) <= {_REAL}:
        return
    rows = [
        [
            line(str(row["suite"])),
            f"{line(str(row['group']))}, {row['k']} tokens",
            _difference(row),
            str(row["terms"]),
            interval_of(row, "eb_star"),
            number(row["eb_star_mass"]),
            interval_of(row, "excess"),
        ]
        for row in frame.sort_values(["suite", "k"], kind="stable").to_dict("records")
    ]
    difference = "EB* of terms minus group"
    yield Table(
        name="controls",
        title="Terms and controls in the same sentences",
        note=f'Of the last checkpoint. The column "{difference}" compares at equal token counts within each sentence; '
        "brackets: 95% interval.",
        head=["Suite", "Group", difference, "Expressions", "EB*", "EB*_mass", "Excess"],
        rows=rows,
        data=frame,
        keys=2,
    )


def _difference(row: dict[Any, Any]) -> str:
    if row["group"] == _REAL:
        return ""
    return interval_of(row, "difference") if pd.notna(row["difference"]) else str(row.get("reason") or "")


CLAIM = Claim(
    id="V",
    name="discriminant validity",
    order=10,
    question="Are terms bound more than other expressions?",
    limit="Only the groups measured here are compared, at token counts that both have. A difference would not show "
    "that a concept is bound: words that often stand together differ from others too.",
    needs=("binding",),
    published=_DIFFERENCE,
    controlled=_DIFFERENCE,
    statistics=discriminant_validity,
    answer=_answer,
    figures=(by_group, by_token_count),
    tables=(controls,),
)
