"""Figures of ablated heads: the top heads among random sets, and more heads for more effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.text import chance, line, number
from bindscope.claims.inputs import Findings
from bindscope.tables.run import last

_AXES = {
    "accuracy": "drop in accuracy",
    "margin": "drop in margin (nats per token)",
    "generation": "drop in rubric score",
}
RANKINGS = {"bsi": "BSI", "excess": "excess over windows", "previous_token": "previous-token score", "named": "name"}
_LABELS = {"top": "top heads", "bottom": "bottom heads"}
_BINS = 24


def among_random(found: Findings) -> Iterator[Figure]:
    """The drop under the top heads, and the distribution of drops under random sets of as many."""
    import altair as alt

    table = found.tables.draws
    if table.empty or found.results.empty:
        return
    effects = last(found.tables.effects)
    for i, (suite, part) in enumerate(table.groupby("suite", sort=False)):
        of_suite = effects[effects["suite"] == suite]
        part = part[part["k"] == part.groupby("ranking")["k"].transform("first")]  # the size that was asked for first
        sizes = " or ".join(str(k) for k in dict.fromkeys(part["k"]))
        panels, sentences = list[Any](), list[str]()
        for (ranking, mode), cell in part.groupby(["ranking", "mode"], sort=False):
            row = []
            for outcome, draws in cell.groupby("outcome", sort=False):
                effect = _effect(of_suite, str(ranking), str(mode), int(cell["k"].iloc[0]), str(outcome))
                subtitle = f"{outcome}: {effect['verdict']}; {chance(effect['p'])}"
                title = alt.TitleParams(f"{mode}, heads by {RANKINGS[str(ranking)]}", subtitle=subtitle)
                row.append(_null(draws, _AXES[str(outcome)]).properties(width=300, height=130, title=title))
                sentences.append(
                    f"{mode}, by {RANKINGS[str(ranking)]}, {outcome}: without the top heads "
                    f"{number(effect['drop_top'])} lost, without random ones {number(effect['drop_random'])} on "
                    f"average ({chance(effect['p'])}; {effect['verdict']})"
                )
            panels.append(alt.hconcat(*row))
        yield Figure(
            name=f"ablation-{i + 1}",
            title=f"{sizes} heads removed, among random sets: {line(str(suite))}",
            chart=styled(alt.vconcat(*panels)),
            text=f"{line(str(suite))}. " + ". ".join(sentences) + ".",
            data=part.drop(columns=["step"]),
            note=f"Bars: {int(of_suite['random_sets'].max())} random sets of as many heads. A top set that lies inside "
            "the bars does nothing that other heads do not do as well.",
        )


def _effect(effects: pd.DataFrame, ranking: str, mode: str, k: int, outcome: str) -> dict[str, Any]:
    wanted = {"ranking": ranking, "mode": mode, "k": k, "outcome": outcome}
    return dict(effects[(effects[list(wanted)] == list(wanted.values())).all(axis=1)].iloc[0])


def _null(draws: pd.DataFrame, axis: str) -> Any:
    import altair as alt

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
        legend={"title": None, "orient": "top"},
        scale={"domain": list(_LABELS.values()), "range": ["triangle-down", "triangle-up"]},
    )
    color = alt.Color(
        "label:N",
        legend={"title": None, "orient": "top"},
        scale={"domain": list(_LABELS.values()), "range": [COLOR["s2"], COLOR["s3"]]},
    )
    base = alt.Chart(marks).encode(alt.X("drop:Q", title=axis), color)
    return alt.layer(
        null,
        base.mark_rule(strokeWidth=2).encode(),
        base.mark_point(filled=True, size=120, opacity=1).encode(alt.Y("top:Q"), shapes),
    )


def by_size(found: Findings) -> Iterator[Figure]:
    """The drop by number of heads, for the top, the bottom and random sets."""
    import altair as alt

    table = found.tables.doses
    if table.empty:
        return
    for i, (suite, part) in enumerate(table.groupby("suite", sort=False)):
        part = part[part.groupby("ranking")["k"].transform("nunique") > 1]
        if part.empty:
            continue
        panels, sentences = list[Any](), list[str]()
        for (ranking, mode), cell in part.groupby(["ranking", "mode"], sort=False):
            row = []
            for outcome, each in cell.groupby("outcome", sort=False):
                each = each.sort_values("k")
                title = alt.TitleParams(f"{mode}, heads by {RANKINGS[str(ranking)]}", subtitle=str(outcome))
                row.append(_dose(each, _AXES[str(outcome)]).properties(width=300, height=170, title=title))
                sizes = "; ".join(
                    f"{int(r['k'])} heads {number(r['top'])} (random {number(r['random'])})"
                    for r in each.to_dict("records")
                )
                sentences.append(f"{mode}, by {RANKINGS[str(ranking)]}, {outcome}: {sizes}")
            panels.append(alt.hconcat(*row))
        chart = alt.vconcat(*panels).resolve_scale(color="shared", shape="shared", strokeDash="shared")
        yield Figure(
            name=f"dose-{i + 1}",
            title=f"More heads, more effect? {line(str(suite))}",
            chart=styled(chart),
            text=f"{line(str(suite))}. " + ". ".join(sentences) + ".",
            data=part.drop(columns=["step"]),
            note="Band: where 95% of the random sets of that size fall.",
        )


def _dose(cell: pd.DataFrame, axis: str) -> Any:
    import altair as alt

    names = ["top heads", "random sets, mean", "bottom heads"]
    data = cell.melt("k", ["top", "random", "bottom"], "set", "drop")
    data["set"] = data["set"].map(dict(zip(("top", "random", "bottom"), names, strict=True)))
    key = {"title": None, "orient": "top", "columns": 3, "symbolStrokeWidth": 0}
    color = alt.Color("set:N", legend=key, scale={"domain": names, "range": [COLOR["s2"], COLOR["s6"], COLOR["s3"]]})
    shape = alt.Shape("set:N", legend=key, scale={"domain": names, "range": ["triangle-down", "circle", "triangle-up"]})
    dash = alt.StrokeDash("set:N", legend=key, scale={"domain": names, "range": [[1, 0], [5, 4], [2, 3]]})
    x = alt.X("k:Q", title="heads removed").axis(values=cell["k"].tolist(), format="d", grid=False).scale(zero=True)
    band = (
        alt.Chart(cell[["k", "random_low", "random_high"]])
        .mark_area(color=COLOR["s6"], opacity=0.2)
        .encode(x, alt.Y("random_low:Q", title=axis), alt.Y2("random_high:Q"))
    )
    base = alt.Chart(data).encode(x, alt.Y("drop:Q", title=axis), color)
    return alt.layer(
        band, base.mark_line(strokeWidth=2).encode(dash), base.mark_point(filled=True, size=60, opacity=1).encode(shape)
    )
