"""Figures over training: emergence of binding and behavior, term by term, and the spread of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd

from bindscope.report.figure import COLOR, DASHES, SERIES, SHAPES, Figure, styled
from bindscope.report.material import Material
from bindscope.report.text import count, line, number, place

Scale = Literal["log", "linear"]

#: Step labels that would touch are left out.
_SPACED = {"labelOverlap": "greedy", "labelSeparation": 8}
#: 60, 1k, 143k.
_STEP = "datum.value < 1000 ? format(datum.value, 'd') : format(datum.value / 1000, '~r') + 'k'"
#: Quantity of the summary, its companion, and what the panel is called.
_PANELS = (
    ("eb_star", "null", "EB*", "binding"),
    ("accuracy", "chance", "accuracy", "recognition"),
    ("generation", None, "rubric score", "generation"),
)
_KIND = ["terms (band: 95% interval over terms)", "what to expect without them: other windows; chance"]


def over_steps(steps: Any, scale: Scale, column: str = "step") -> alt.X:
    """The horizontal axis: steps on a symmetric log scale, so that step 0 has a place, or on a linear one."""
    values = sorted({float(step) for step in steps})
    x = alt.X(f"{column}:Q", title=f"training step ({scale} scale)")
    ticks = {"grid": False, "labelExpr": _STEP, "labelFlush": False, **_SPACED}
    if scale == "linear":
        return x.scale(nice=False).axis(tickCount=5, **ticks)
    least = min((v for v in values if v > 0), default=1.0)
    return x.scale(type="symlog", constant=least / 3, nice=False).axis(values=values, **ticks)


def lines(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    axis: str,
    scale: Scale = "log",
    size: tuple[int, int] = (560, 280),
    top: float | None = None,
) -> alt.LayerChart:
    """Curves of one suite over its steps, not yet styled.

    table: a row per checkpoint. columns: column -> label, at most six; where `<column>_low` and `<column>_high` exist
    they are drawn as a band. top: where the vertical axis ends, so that panels can be compared.
    """
    data = pd.concat([_line(table, column, label) for column, label in columns.items()], ignore_index=True)
    labels = list(columns.values())
    key = alt.Legend(title=None, orient="top", columns=1, symbolStrokeWidth=0)
    tall = alt.Scale(zero=True) if top is None else alt.Scale(domain=[0, top], nice=True)
    step = over_steps(data["step"], scale)
    base = alt.Chart(data).encode(step)
    bands = [
        base.transform_filter(alt.datum.line == label)
        .mark_area(opacity=0.16, color=color)
        .encode(alt.Y("low:Q", title=axis, scale=tall), alt.Y2("high:Q"))
        for label, color in zip(labels, SERIES, strict=False)
    ]
    n = len(labels)
    color = alt.Color("line:N", legend=key, scale=alt.Scale(domain=labels, range=SERIES[:n]))
    dash = alt.StrokeDash("line:N", legend=None, scale=alt.Scale(domain=labels, range=DASHES[:n]))
    shape = alt.Shape("line:N", legend=key, scale=alt.Scale(domain=labels, range=SHAPES[:n]))
    value = alt.Y("value:Q", title=axis, scale=tall)
    curve = base.mark_line(strokeWidth=2.2).encode(value, color, dash)
    points = base.mark_point(filled=True, size=46, opacity=1).encode(value, color, shape)
    return alt.layer(*bands, curve, points).properties(width=size[0], height=size[1])


def _line(table: pd.DataFrame, column: str, label: str) -> pd.DataFrame:
    frame = pd.DataFrame({"step": table["step"].astype(float), "value": table[column], "line": label})
    for end in ("low", "high"):
        frame[end] = table[f"{column}_{end}"] if f"{column}_{end}" in table else float("nan")
    return frame.dropna(subset=["value"])


def _trained(found: Material) -> list[tuple[str, pd.DataFrame]]:
    """Suites with steps that are known and more than one."""
    return [
        (str(name), part)
        for name, part in found.summary.groupby("suite", sort=False)
        if len(part) > 1 and part["step"].notna().all()
    ]


def emergence(found: Material) -> Iterator[Figure]:
    """Binding and behavior by step, once on a log and once on a linear scale; a row of panels for each suite."""
    trained = _trained(found)
    if not trained:
        return
    scales: tuple[Scale, ...] = ("log", "linear")
    what = "Binding and behavior" if {"accuracy", "generation"} & set(found.summary) else "Binding"
    for scale in scales:
        rows = []
        for suite, part in trained:
            row = []
            for column, other, axis, title in _PANELS:
                if column not in part or part[column].isna().all():
                    continue
                shown = {column: _KIND[0]} | ({other: _KIND[1]} if other and part[other].notna().any() else {})
                top = float(found.summary[[c for c in _ends(column) if c in found.summary]].max().max())
                panel = lines(part, shown, axis, scale, (255, 165), top)
                row.append(panel.properties(title=f"{line(suite)}: {title}"))
            rows.append(alt.hconcat(*row, bounds="flush", spacing=66))
        chart = alt.vconcat(*rows).resolve_scale(color="shared", strokeDash="shared", shape="shared")
        told = " ".join(_told(suite, part) for suite, part in trained)
        columns = ["suite", "revision", "step", *(c for p in _PANELS for q in p[:2] if q for c in _ends(q))]
        data = found.summary[[c for c in columns if c in found.summary]]
        yield Figure(
            f"emergence-{scale}",
            "",
            f"{what} over training, {scale} scale",
            styled(chart),
            told,
            data,
            "Recognition is the share of questions answered right; generation the rubric score of greedy answers. The "
            "dashed line under binding is EB* of windows of as many tokens elsewhere in the same prompts.",
        )


def _ends(column: str) -> tuple[str, ...]:
    return column, f"{column}_low", f"{column}_high"


def _told(suite: str, part: pd.DataFrame) -> str:
    first, last = part.iloc[0], part.iloc[-1]
    said = []
    for column, other, axis, title in _PANELS:
        if column not in part or part[column].isna().all():
            continue
        top = part.sort_values(column).iloc[-1]
        text = f"{title} ({axis}) goes from {number(first[column])} to {number(last[column])}"
        if top.name not in (first.name, last.name):
            text += f", at its highest {number(top[column])} at step {place(top.to_dict())}"
        if other and pd.notna(last[other]):
            text += (
                f", while {'other windows have' if other == 'null' else 'chance is'} {number(last[other])} at the end"
            )
        said.append(text)
    ends = f"from step {place(first.to_dict())} to step {place(last.to_dict())}"
    return f"{line(suite)}, {ends}: {'; '.join(said)}."


def small_multiples(found: Material) -> Iterator[Figure]:
    """One panel a term: EB* and behavior by step."""
    for i, (suite, _) in enumerate(_trained(found)):
        part = found.paths[found.paths["suite"] == suite] if not found.paths.empty else found.paths
        if part.empty or part["t"].nunique() < 2:
            continue
        labels = {"eb_star": "EB*", "behavior": "behavior (accuracy, or its mean with the generation score)"}
        wide = part.assign(term=part["term"].map(line), step=part["step"].astype(float))
        data = wide.melt(["term", "step"], list(labels), "line", "value").replace({"line": labels})
        key = alt.Legend(title=None, orient="top", columns=2)
        x = over_steps(data["step"], "log")
        ends = sorted({float(s) for s in data["step"]})
        x = x.axis(values=[ends[0], ends[-1]], grid=False, labelExpr=_STEP, labelFlush=True).title(None)
        y = alt.Y("value:Q", title=None).scale(domain=[0, 1]).axis(values=[0, 0.5, 1], grid=True)
        names = list(labels.values())
        color = alt.Color("line:N", legend=key, scale=alt.Scale(domain=names, range=SERIES[:2]))
        dash = alt.StrokeDash("line:N", legend=key, scale=alt.Scale(domain=names, range=DASHES[:2]))
        panel = alt.Chart(data).mark_line(strokeWidth=2).encode(x, y, color, dash).properties(width=120, height=72)
        chart = panel.facet(alt.Facet("term:N", title=None, sort=list(dict.fromkeys(data["term"]))), columns=6)
        rising = wide.sort_values("t").groupby("term").agg(a=("eb_star", "first"), b=("eb_star", "last"))
        gain = (rising["b"] - rising["a"]).sort_values()
        text = (
            f"{count(len(gain), 'term')} of {line(suite)}, x is the training step on a log scale, y runs from 0 to 1. "
            f"EB* rises most for {gain.index[-1]} ({number(gain.iloc[-1])} from first to last checkpoint) and least "
            f"for {gain.index[0]} ({number(gain.iloc[0])})."
        )
        columns = ["suite", "term", "revision", "step", "eb_star", "behavior"]
        yield Figure(
            f"terms-{i + 1}",
            "",
            f"Each term by itself: {line(suite)}",
            styled(chart),
            text,
            part[columns],
            "Means over a term's prompts.",
        )


def onsets(found: Material) -> Iterator[Figure]:
    """C1-B term by term: the interval of steps in which binding, and knowing, first reach half of their rise."""
    table = found.analysis.emergence if found.analysis is not None else pd.DataFrame()
    for i, (suite, steps) in enumerate(_trained(found)):
        part = table[table["suite"] == suite] if not table.empty else table
        if part.empty:
            continue
        first, end = float(steps["step"].min()), float(steps["step"].max())
        order = part.sort_values(["binding_right", "knowing_right"])["term"].map(line).to_list()
        names = {"binding": "binding (EB*)", "knowing": "knowing (behavior)"}
        rows = [
            {
                "term": line(str(r["term"])),
                "what": label,
                "left": max(first, float(r[f"{what}_left"])),
                "right": min(end, float(r[f"{what}_right"])),
                "never": bool(np.isinf(r[f"{what}_right"])),
            }
            for r in part.to_dict("records")
            for what, label in names.items()
        ]
        data = pd.DataFrame(rows)
        left, right = (over_steps(steps["step"], "log", e) for e in ("left", "right"))
        look = {"domain": list(names.values()), "range": SERIES[:2]}
        base = alt.Chart(data).encode(
            alt.Y("term:N", sort=order, title=None).axis(grid=False, ticks=False, labelLimit=220),
            alt.YOffset("what:N", sort=list(names.values())),
            alt.Color("what:N", scale=alt.Scale(**look), legend=alt.Legend(title=None, orient="top")),
        )
        bars = base.mark_rule(strokeWidth=4, strokeCap="round").encode(left, alt.X2("right:Q"))
        shape = alt.Shape(
            "what:N",
            scale=alt.Scale(domain=list(names.values()), range=SHAPES[:2]),
            legend=alt.Legend(title=None, orient="top"),
        )
        seen = base.transform_filter(~alt.datum.never)
        dots = seen.mark_point(filled=True, size=60, opacity=1).encode(right, shape)
        late = base.transform_filter(alt.datum.never).mark_text(text="not reached", align="left", dx=8, fontSize=11)
        chart = alt.layer(bars, dots, late.encode(right)).properties(width=520, height=alt.Step(13))
        before = int((part["binding_right"] <= part["knowing_left"]).sum())
        after = int((part["knowing_right"] <= part["binding_left"]).sum())
        text = (
            f"{line(suite)}: of {count(len(part), 'term')}, {before} reach half of the rise of binding surely before "
            f"half of the rise of knowing, {after} surely after; in {len(part) - before - after} the intervals "
            "overlap."
        )
        yield Figure(
            f"onset-{i + 1}",
            "C1-B",
            f"When each term is bound and when it is known: {line(suite)}",
            styled(chart),
            text,
            part,
            "A bar runs from the last checkpoint below the threshold to the first one at or above it (the mark): that "
            "is all that checkpoints can tell. The threshold is half of the rise of the mean over terms.",
        )


def runs(found: Material) -> Iterator[Figure]:
    """Several runs on one scale: EB* and accuracy of each, a line a run."""
    trained = _trained(found)
    if len(trained) < 2 or len({tuple(part["step"]) for _, part in trained}) > 1:
        return
    names = [line(suite) for suite, _ in trained]
    key = alt.Legend(title=None, orient="top", columns=3)
    panels = []
    for column, _, axis, title in _PANELS:
        if column not in found.summary or any(part[column].isna().all() for _, part in trained):
            continue
        data = pd.concat([_line(part, column, line(suite)) for suite, part in trained])
        base = alt.Chart(data).encode(over_steps(data["step"], "log"), alt.Y("value:Q", title=axis))
        color = alt.Color("line:N", legend=key, scale=alt.Scale(domain=names, range=_cycle(SERIES, len(names))))
        shape = alt.Shape("line:N", legend=key, scale=alt.Scale(domain=names, range=_cycle(SHAPES, len(names))))
        panel = alt.layer(
            base.mark_line(strokeWidth=1.6).encode(color),
            base.mark_point(filled=True, size=52, opacity=1).encode(color, shape),
        )
        panels.append(panel.properties(width=270, height=190, title=title))
    final = [(line(s), part.iloc[-1]) for s, part in trained]
    values = [float(row["eb_star"]) for _, row in final]
    text = (
        f"At the last checkpoint EB* is between {number(min(values))} and {number(max(values))} over {len(final)} "
        "runs: " + "; ".join(f"{name} {number(row['eb_star'])}" for name, row in final) + "."
    )
    columns = ["suite", "step", *(c for c, *_ in _PANELS if c in found.summary)]
    yield Figure(
        "runs",
        "",
        "The same curves from each training run",
        styled(alt.hconcat(*panels)),
        text,
        found.summary[columns],
        "Where runs differ in their seed only, their spread is what training itself leaves to chance.",
    )


def _cycle(values: list[str], n: int) -> list[str]:
    return [values[i % len(values)] for i in range(n)]


def threshold_rule(value: float, axis: str = "x") -> alt.Chart:
    """A dashed line at a value of one axis."""
    data = pd.DataFrame({"at": [value]})
    where = alt.X("at:Q") if axis == "x" else alt.Y("at:Q")
    return alt.Chart(data).mark_rule(color=COLOR["axis"], strokeDash=[4, 3]).encode(where)
