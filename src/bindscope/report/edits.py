"""Figures of heads taken out: the top heads among random sets, and more heads for more effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from bindscope.report.figure import COLOR, Figure, styled
from bindscope.report.material import Material
from bindscope.report.text import chance, line, number

_AXES = {
    "accuracy": "drop in accuracy",
    "margin": "drop in margin (nats per token)",
    "generation": "drop in rubric score",
}
RANKINGS = {"bsi": "BSI", "excess": "excess over windows", "previous_token": "previous-token score",
            "named": "name"}  # fmt: skip
_LABELS = {"top": "top heads", "bottom": "bottom heads"}
_BINS = 24


def among_random(found: Material) -> Iterator[Figure]:
    """C5: the drop under the top heads, and the distribution of drops under random sets of as many."""
    table, effects = found.draws, found.more("ablation")
    if table.empty or effects.empty:
        return
    for i, (suite, part) in enumerate(table.groupby("suite", sort=False)):
        mine, rows, said = effects[effects["suite"] == suite], [], []
        part = part[part["k"] == part.groupby("ranking")["k"].transform("first")]  # the size that was asked for first
        sizes = " or ".join(str(k) for k in dict.fromkeys(part["k"]))
        for (ranking, mode), cell in part.groupby(["ranking", "mode"], sort=False):
            row = []
            for outcome, draws in cell.groupby("outcome", sort=False):
                found_row = mine[
                    (mine["ranking"] == ranking)
                    & (mine["mode"] == mode)
                    & (mine["k"] == cell["k"].iloc[0])
                    & (mine["outcome"] == outcome)
                ].iloc[0]
                subtitle = f"{outcome}: {found_row['verdict']}; {chance(found_row['p'])}"
                title = alt.TitleParams(f"{mode}, heads by {RANKINGS[str(ranking)]}", subtitle=subtitle)
                row.append(_null(draws, _AXES[str(outcome)]).properties(width=300, height=130, title=title))
                said.append(
                    f"{mode}, by {RANKINGS[str(ranking)]}, {outcome}: without the top heads "
                    f"{number(found_row['drop_top'])} lost, without random ones {number(found_row['drop_random'])} on "
                    f"average ({chance(found_row['p'])}; {found_row['verdict']})"
                )
            rows.append(alt.hconcat(*row))
        sets = int(mine["random_sets"].max())
        yield Figure(
            f"ablation-{i + 1}",
            "C5",
            f"{sizes} heads taken out, among random sets: {line(str(suite))}",
            styled(alt.vconcat(*rows)),
            f"{line(str(suite))}. " + ". ".join(said) + ".",
            part.drop(columns=["step"]),
            f"Bars: {sets} random sets of as many heads. A top set that lies inside the bars does nothing that other "
            "heads do not do as well.",
        )


def _null(draws: pd.DataFrame, axis: str) -> Any:
    random = draws.loc[draws["set"] == "random", "drop"].to_numpy(dtype=float)
    low, high = float(draws["drop"].min()), float(draws["drop"].max())
    pad = 0.05 * (high - low) or 0.05
    counts, edges = np.histogram(random, bins=_BINS, range=(low - pad, high + pad))
    bars = pd.DataFrame({"left": edges[:-1], "right": edges[1:], "count": counts, "zero": 0})
    marks = pd.DataFrame(
        [
            {
                "drop": float(draws.loc[draws["set"] == name, "drop"].iloc[0]),
                "label": label,
                "top": int(counts.max()) * 1.12,
            }
            for name, label in _LABELS.items()
        ]
    )
    x = alt.X("left:Q", title=axis).scale(domain=[low - pad, high + pad], nice=False)
    null = (
        alt.Chart(bars[bars["count"] > 0])
        .mark_bar(color=COLOR["h3"], stroke=COLOR["s6"], strokeWidth=1)
        .encode(x, alt.X2("right:Q"), alt.Y("count:Q", title="random sets").axis(tickMinStep=1), alt.Y2("zero:Q"))
    )
    shapes = alt.Shape(
        "label:N",
        legend=alt.Legend(title=None, orient="top"),
        scale=alt.Scale(domain=list(_LABELS.values()), range=["triangle-down", "triangle-up"]),
    )
    color = alt.Color(
        "label:N",
        legend=alt.Legend(title=None, orient="top"),
        scale=alt.Scale(domain=list(_LABELS.values()), range=[COLOR["s2"], COLOR["s3"]]),
    )
    base = alt.Chart(marks).encode(alt.X("drop:Q", title=axis), color)
    return alt.layer(
        null,
        base.mark_rule(strokeWidth=2).encode(),
        base.mark_point(filled=True, size=120, opacity=1).encode(alt.Y("top:Q"), shapes),
    )


def doses(found: Material) -> Iterator[Figure]:
    """C5: the drop by number of heads, for the top, the bottom and random sets."""
    table = found.doses
    if table.empty:
        return
    for i, (suite, part) in enumerate(table.groupby("suite", sort=False)):
        part = part[part.groupby("ranking")["k"].transform("nunique") > 1]
        if part.empty:
            continue
        rows, said = [], []
        for (ranking, mode), cell in part.groupby(["ranking", "mode"], sort=False):
            row = []
            for outcome, each in cell.groupby("outcome", sort=False):
                title = alt.TitleParams(f"{mode}, heads by {RANKINGS[str(ranking)]}", subtitle=str(outcome))
                row.append(
                    _dose(each.sort_values("k"), _AXES[str(outcome)]).properties(width=300, height=170, title=title)
                )
                ends = each.sort_values("k")
                said.append(
                    f"{mode}, by {RANKINGS[str(ranking)]}, {outcome}: "
                    + "; ".join(
                        f"{int(r['k'])} heads {number(r['top'])} (random {number(r['random'])})"
                        for r in ends.to_dict("records")
                    )
                )
            rows.append(alt.hconcat(*row))
        chart = alt.vconcat(*rows).resolve_scale(color="shared", shape="shared", strokeDash="shared")
        yield Figure(
            f"dose-{i + 1}",
            "C5",
            f"More heads, more effect? {line(str(suite))}",
            styled(chart),
            f"{line(str(suite))}. " + ". ".join(said) + ".",
            part.drop(columns=["step"]),
            "Band: where 95% of the random sets of that size fall.",
        )


def _dose(cell: pd.DataFrame, axis: str) -> Any:
    names = ["top heads", "random sets, mean", "bottom heads"]
    data = cell.melt("k", ["top", "random", "bottom"], "set", "drop")
    data["set"] = data["set"].map(dict(zip(("top", "random", "bottom"), names, strict=True)))
    key = alt.Legend(title=None, orient="top", columns=3, symbolStrokeWidth=0)
    color = alt.Color("set:N", legend=key, scale=alt.Scale(domain=names, range=[COLOR["s2"], COLOR["s6"], COLOR["s3"]]))
    shape = alt.Shape(
        "set:N", legend=key, scale=alt.Scale(domain=names, range=["triangle-down", "circle", "triangle-up"])
    )
    dash = alt.StrokeDash("set:N", legend=key, scale=alt.Scale(domain=names, range=[[1, 0], [5, 4], [2, 3]]))
    x = alt.X("k:Q", title="heads taken out").axis(values=cell["k"].tolist(), format="d", grid=False).scale(zero=True)
    band = (
        alt.Chart(cell[["k", "random_low", "random_high"]])
        .mark_area(color=COLOR["s6"], opacity=0.2)
        .encode(x, alt.Y("random_low:Q", title=axis), alt.Y2("random_high:Q"))
    )
    base = alt.Chart(data).encode(x, alt.Y("drop:Q", title=axis), color)
    return alt.layer(
        band, base.mark_line(strokeWidth=2).encode(dash), base.mark_point(filled=True, size=60, opacity=1).encode(shape)
    )
