"""Figures of the run over training: binding and behavior, term by term, and the spread of runs."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from bindscope.charts.axes import STEP, Scale, lines, long, over_steps, trained
from bindscope.charts.figure import DASHES, SERIES, SHAPES, Figure, styled
from bindscope.charts.text import count, line, number, place
from bindscope.claims.inputs import Findings

#: Quantity of the summary, its companion, and what the panel is called.
_PANELS = (
    ("eb_star", "null", "EB*", "binding"),
    ("accuracy", "chance", "accuracy", "recognition"),
    ("generation", None, "rubric score", "generation"),
)
_KIND = ["terms (band: 95% interval over terms)", "what to expect without them: other windows; chance"]


def emergence(found: Findings) -> Iterator[Figure]:
    """Binding and behavior by step, once on a log and once on a linear scale; a row of panels for each suite."""
    suites = trained(found.tables.summary)
    if not suites:
        return
    scales: tuple[Scale, ...] = ("log", "linear")
    what = "Binding and behavior" if {"accuracy", "generation"} & set(found.tables.summary) else "Binding"
    for scale in scales:
        rows = []
        for suite, part in suites:
            row = []
            for column, other, axis, title in _PANELS:
                if column not in part or part[column].isna().all():
                    continue
                shown = {column: _KIND[0]} | ({other: _KIND[1]} if other and part[other].notna().any() else {})
                top = float(found.tables.summary[[c for c in _ends(column) if c in found.tables.summary]].max().max())
                panel = lines(part, shown, axis, scale, (255, 165), top)
                row.append(panel.properties(title=f"{line(suite)}: {title}"))
            rows.append(alt.hconcat(*row, bounds="flush", spacing=66))
        chart = alt.vconcat(*rows).resolve_scale(color="shared", strokeDash="shared", shape="shared")
        text = " ".join(_in_words(suite, part) for suite, part in suites)
        columns = ["suite", "revision", "step", *(c for p in _PANELS for q in p[:2] if q for c in _ends(q))]
        data = found.tables.summary[[c for c in columns if c in found.tables.summary]]
        yield Figure(
            name=f"emergence-{scale}",
            section="lead" if scale == "log" else "training",
            title=f"{what} over training, {scale} scale",
            chart=styled(chart),
            text=text,
            data=data,
            note="Recognition is the share of questions answered right; generation the rubric score of greedy answers. "
            "The dashed line under binding is EB* of windows of as many tokens elsewhere in the same prompts.",
        )


def _ends(column: str) -> tuple[str, ...]:
    return column, f"{column}_low", f"{column}_high"


def _in_words(suite: str, part: pd.DataFrame) -> str:
    first, last = part.iloc[0], part.iloc[-1]
    sentences = []
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
        sentences.append(text)
    ends = f"from step {place(first.to_dict())} to step {place(last.to_dict())}"
    return f"{line(suite)}, {ends}: {'; '.join(sentences)}."


def small_multiples(found: Findings) -> Iterator[Figure]:
    """One panel a term: EB* and behavior by step."""
    for i, (suite, _) in enumerate(trained(found.tables.summary)):
        part = (
            found.tables.paths[found.tables.paths["suite"] == suite]
            if not found.tables.paths.empty
            else found.tables.paths
        )
        if part.empty or part["t"].nunique() < 2:
            continue
        labels = {"eb_star": "EB*", "behavior": "behavior (accuracy, or its mean with the generation score)"}
        wide = part.assign(term=part["term"].map(line), step=part["step"].astype(float))
        data = wide.melt(["term", "step"], list(labels), "line", "value").replace({"line": labels})
        key = {"title": None, "orient": "top", "columns": 2}
        x = over_steps(data["step"], "log")
        ends = sorted({float(s) for s in data["step"]})
        x = x.axis(values=[ends[0], ends[-1]], grid=False, labelExpr=STEP, labelFlush=True).title(None)
        y = alt.Y("value:Q", title=None).scale(domain=[0, 1]).axis(values=[0, 0.5, 1], grid=True)
        names = list(labels.values())
        color = alt.Color("line:N", legend=key, scale={"domain": names, "range": SERIES[:2]})
        dash = alt.StrokeDash("line:N", legend=key, scale={"domain": names, "range": DASHES[:2]})
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
            name=f"terms-{i + 1}",
            section="training",
            title=f"Each term by itself: {line(suite)}",
            chart=styled(chart),
            text=text,
            data=part[columns],
            note="Means over a term's prompts.",
        )


def runs(found: Findings) -> Iterator[Figure]:
    """Several runs on one scale: EB* and accuracy of each, a line a run."""
    suites = trained(found.tables.summary)
    if len(suites) < 2 or len({tuple(part["step"]) for _, part in suites}) > 1:
        return
    names = [line(suite) for suite, _ in suites]
    key = {"title": None, "orient": "top", "columns": 3}
    panels = []
    for column, _, axis, title in _PANELS:
        if column not in found.tables.summary or any(part[column].isna().all() for _, part in suites):
            continue
        data = pd.concat([long(part, column, line(suite)) for suite, part in suites])
        base = alt.Chart(data).encode(over_steps(data["step"], "log"), alt.Y("value:Q", title=axis))
        color = alt.Color("line:N", legend=key, scale={"domain": names, "range": _cycle(SERIES, len(names))})
        shape = alt.Shape("line:N", legend=key, scale={"domain": names, "range": _cycle(SHAPES, len(names))})
        panel = alt.layer(
            base.mark_line(strokeWidth=1.6).encode(color),
            base.mark_point(filled=True, size=52, opacity=1).encode(color, shape),
        )
        panels.append(panel.properties(width=270, height=190, title=title))
    final = [(line(s), part.iloc[-1]) for s, part in suites]
    values = [float(row["eb_star"]) for _, row in final]
    text = (
        f"At the last checkpoint EB* is between {number(min(values))} and {number(max(values))} over {len(final)} "
        "runs: " + "; ".join(f"{name} {number(row['eb_star'])}" for name, row in final) + "."
    )
    columns = ["suite", "step", *(c for c, *_ in _PANELS if c in found.tables.summary)]
    yield Figure(
        name="runs",
        section="runs",
        title="The same curves from each training run",
        chart=styled(alt.hconcat(*panels)),
        text=text,
        data=found.tables.summary[columns],
        note="Where runs differ in their seed only, their spread is what training itself leaves to chance.",
    )


def _cycle(values: list[str], n: int) -> list[str]:
    return [values[i % len(values)] for i in range(n)]
