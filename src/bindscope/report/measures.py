"""Figures and a table of every measure that a run holds, made from what the measure declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from bindscope.charts.axes import lines, trained
from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.table import Table
from bindscope.charts.text import chance, line, number, place, span
from bindscope.claims.inputs import Findings
from bindscope.schema import Table as Declared
from bindscope.tables.measures import by_measure, measured, with_knowing


def figures(found: Findings) -> Iterator[Figure]:
    """For each measure its mean over training, beside its null, and its value by layer at the last checkpoint."""
    for declared in measured(found.tables.declared):
        summary = by_measure(found.tables.stored("binding"), declared)
        panels = [_suite(suite, part, declared) for suite, part in summary.groupby("suite", sort=False)]
        drawn = [panel for panel in panels if panel is not None]
        if not drawn or summary["value"].isna().all():
            continue
        column = declared[declared.value]
        yield Figure(
            name=f"measure-{declared.name}",
            section="measures",
            title=f"{declared.title}: {column.description}",
            chart=styled(alt.vconcat(*drawn).resolve_scale(color="shared", strokeDash="shared", shape="shared")),
            text=" ".join(_in_words(str(suite), part) for suite, part in summary.groupby("suite", sort=False)),
            data=summary.drop(columns="by_layer", errors="ignore"),
            note="Means over prompts with 95% intervals over terms. "
            + ("The dashed line is the same measure on other runs of as many tokens." if "null" in summary else ""),
        )


def _suite(suite: Any, part: pd.DataFrame, declared: Declared) -> Any:
    """One suite: over training where it has several checkpoints, and by layer; None where there is nothing to draw."""
    panels = []
    name, unit = line(declared.title), declared[declared.value].unit
    if trained(part) and part["value"].notna().any():
        null = "null" in part and part["null"].notna().any()
        shown = {"value": name} | ({"null": "other runs of tokens"} if null else {})
        panels.append(lines(part, shown, unit or name, size=(330, 180)).properties(title=f"{line(str(suite))}: {name}"))
    layers: Any = part["by_layer"].dropna() if "by_layer" in part else []
    if len(layers):
        panels.append(_layers(list(layers)[-1]).properties(title="by layer, last checkpoint"))
    return alt.hconcat(*panels, spacing=50) if panels else None


def _layers(values: list[float]) -> alt.Chart:
    data = pd.DataFrame({"layer": np.arange(len(values)), "value": values})
    x = alt.X("layer:Q", title="layer").axis(format="d", grid=False, tickMinStep=1)
    base = alt.Chart(data).encode(x, alt.Y("value:Q", title=None).scale(zero=False))
    curve = base.mark_line(strokeWidth=2.2, color=COLOR["s1"], point={"filled": True, "color": COLOR["s1"]})
    return curve.properties(width=250, height=180)


def _in_words(suite: str, part: pd.DataFrame) -> str:
    first, last = part.iloc[0], part.iloc[-1]
    if len(part) == 1:
        text = f"{line(suite)}: {number(last['value'])}"
    else:
        text = (
            f"{line(suite)}: from {number(first['value'])} at step {place(first.to_dict())} to {number(last['value'])}"
        )
        text += f" at step {place(last.to_dict())}"
    if "null" in part and pd.notna(last["null"]):
        text += f", where other runs of tokens have {number(last['null'])}"
    return f"{text}."


def table(found: Findings) -> Iterator[Table]:
    """Every measure at the last checkpoint of each suite, and its correlation with accuracy."""
    rows: list[list[str]] = []
    parts: list[dict[str, Any]] = []
    binding = found.tables.stored("binding")
    for declared in measured(found.tables.declared):
        ends = by_measure(binding, declared).groupby("suite", sort=False).tail(1)
        knowing = _knowing(found, declared)
        for row in ends.to_dict("records"):
            r = knowing.get(row["suite"], {})
            rows.append([line(str(row["suite"])), declared.title, *_cells(row, r)])
            numbers = {str(k): v for k, v in row.items() if k != "by_layer"}
            parts.append({"measure": declared.name} | numbers | _named(r))
    if rows:
        yield Table(
            name="measures",
            title="Further measures",
            note="Of the last measured checkpoint; means over prompts, in brackets 95% intervals over terms. Excess: "
            "minus the mean of other runs of as many tokens. r: with accuracy, within terms and checkpoints.",
            head=["Suite", "Measure", "Value", "Excess", "r with accuracy", "p"],
            rows=rows,
            data=pd.DataFrame(parts),
            keys=2,
        )


def _knowing(found: Findings, declared: Declared) -> dict[str, dict[str, Any]]:
    if not found.tables.has_questions:
        return {}
    table = with_knowing(found.tables.stored("binding"), found.tables.observations, declared)
    return {str(row["suite"]): {str(k): v for k, v in row.items()} for row in table.to_dict("records")}


def _cells(row: dict[Any, Any], r: dict[str, Any]) -> list[str]:
    def cell(name: str, values: dict[Any, Any], low: str, high: str) -> str:
        if name not in values or pd.isna(values[name]):
            return ""
        return f"{number(values[name])} {span(values[low], values[high])}".strip()

    return [
        cell("value", row, "value_low", "value_high"),
        cell("excess", row, "excess_low", "excess_high"),
        cell("r", r, "low", "high"),
        chance(r.get("p")),
    ]


def _named(r: dict[str, Any]) -> dict[str, Any]:
    return {
        "r": r.get("r"),
        "r_low": r.get("low"),
        "r_high": r.get("high"),
        "p": r.get("p"),
        "r_n": r.get("n"),
        "reason": r.get("reason"),
    }
