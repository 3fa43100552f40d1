"""C1-B: does binding come before knowing?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bindscope.charts.figure import COLOR, SERIES, SHAPES, Figure, styled
from bindscope.charts.text import chance, count, line, number
from bindscope.claims.answers import against_chance
from bindscope.claims.base import Answer, Claim, Statistic, statistic
from bindscope.claims.inputs import Findings, Inputs
from bindscope.stats.correlate import Undefined
from bindscope.stats.emergence import crossings, paired_emergence, turnbull
from bindscope.stats.leadlag import lead_lag, surrogate_null, swap_test
from bindscope.tables.series import steps, threshold

Floats = NDArray[np.float64]
#: Emergence thresholds: shares of the way from the first to the highest mean of all terms.
THRESHOLDS = (0.25, 0.5, 0.75)
_SHARE = "c1b.share"


def precedence(inputs: Inputs) -> Iterator[Statistic]:
    """Shares of terms that EB* leads, and the order in which binding and knowing emerge."""
    names, eb, known = inputs.series
    table, n = inputs.observations, len(names)
    for reading, compute, method in (
        ("published", _lead, "cross-lagged r; binomial over terms, taken as independent; Wilson interval"),
        (
            "controlled",
            _simulated,
            "p from runs simulated with the same trends and noise in which nothing leads; the interval is that of the "
            "null",
        ),
    ):
        yield statistic(
            partial(compute, eb, known),
            id=_SHARE,
            reading="published" if reading == "published" else "controlled",
            quantity="share of terms that EB* leads",
            n=n,
            unit="term",
            method=method,
        )
    word = "Beh" if inputs.has_generation else "accuracy"
    for subject, label, values in (("binding", "EB*", eb), ("knowing", word, known)):
        yield statistic(
            partial(_median, table, values),
            id="c1b.median_step",
            subject=subject,
            reading="controlled",
            quantity=f"median step at which {label} reaches half of its rise",
            n=n,
            unit="term",
            method="Turnbull's estimate from interval-censored crossings; it lies between the two checkpoints given",
        )
    for share in THRESHOLDS:
        yield statistic(
            partial(_order, table, eb, known, share),
            id="c1b.order",
            subject=f"{share:.2f}",
            reading="controlled",
            quantity=f"terms bound surely before known minus surely after, threshold {share:.2f}",
            n=n,
            unit="term",
            method="interval-censored first crossing of the share of the way from first to highest mean; sign test on "
            "decided",
        )


def between_runs(inputs: Sequence[Inputs]) -> Iterator[Statistic]:
    """The swap test, which takes a training run as its unit."""
    runs = [each.series[1:] for each in inputs]

    def compute() -> dict[str, Any]:
        if len(runs) < 2:
            raise Undefined("one training run; claims about training need several")
        test = swap_test([eb for eb, _ in runs], [known for _, known in runs])
        return {"value": test.value, "p": test.p, "n": test.runs, "clusters": test.runs, "cluster": "training run"}

    yield statistic(
        compute,
        id="c1b.swap",
        reading="controlled",
        quantity="share of terms that EB* leads minus share that behavior leads",
        n=len(runs),
        unit="training run",
        method="labels EB* and behavior swapped for whole runs; least p is 2 to the power of minus the runs",
    )


def _lead(eb: Floats, known: Floats) -> dict[str, Any]:
    result = lead_lag(eb, known)
    return {"value": result.fraction, "low": result.low, "high": result.high, "p": result.p, "n": result.n}


def _simulated(eb: Floats, known: Floats) -> dict[str, Any]:
    result = surrogate_null(eb, known)
    return {
        "value": result.fraction,
        "low": result.null_low,
        "high": result.null_high,
        "p": result.p,
        "n": result.n,
        "clusters": 1,
        "cluster": "training run",
    }


def _median(table: pd.DataFrame, values: Floats) -> dict[str, Any]:
    if len(values) == 0:
        raise Undefined("no term has a value at every checkpoint")
    (left,), (right,) = crossings(steps(table), values, [threshold(values, 0.5)])
    times = turnbull(left, right)
    if not np.isfinite(times.median_right):
        raise Undefined("fewer than half of the terms reach the threshold")
    return {"value": times.median_right, "low": times.median_left, "high": times.median_right, "n": times.n}


def _order(table: pd.DataFrame, eb: Floats, known: Floats, share: float) -> dict[str, Any]:
    if len(eb) == 0:
        raise Undefined("no term has a value at every checkpoint")
    at = steps(table)
    (bound_left,), (bound_right,) = crossings(at, eb, [threshold(eb, share)])
    (known_left,), (known_right,) = crossings(at, known, [threshold(known, share)])
    order = paired_emergence(bound_left, bound_right, known_left, known_right)
    return {
        "value": float(order.earlier - order.later),
        "p": order.p,
        "n": order.n,
        "clusters": 1,
        "cluster": "training run",
        "reason": f"{order.earlier} before, {order.later} after, {order.undecided} cannot be told",
    }


def _answer(rows: pd.DataFrame) -> Answer:
    closing = (
        "The interval is where the share falls when nothing leads; one training run cannot tell a lead from a later "
        "rise."
    )
    return against_chance(rows, _SHARE, _SHARE, closing)


def leads(found: Findings) -> Iterator[Figure]:
    """The share of terms in which EB* leads, as published, and the shares that come out when nothing leads."""
    import altair as alt

    from bindscope.charts.axes import threshold_rule

    seen, null = (
        found.rows(_SHARE, reading).assign(suite=lambda t: t["suite"].map(line))
        for reading in ("published", "controlled")
    )
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
    sentences = []
    for row in seen.to_dict("records"):
        text = f"{row['suite']}: EB* leads in {number(100 * row['value'], 0)}% of {row['n']} terms "
        text += f"({chance(row['p'])} as published"
        for other in null[null["suite"] == row["suite"]].to_dict("records"):
            ends = f"{number(100 * other['low'], 0)}% and {number(100 * other['high'], 0)}%"
            text += f"; when nothing leads, between {ends}, {chance(other['p'])}"
        sentences.append(f"{text})")
    yield Figure(
        name="leads",
        title="Does binding come first? Share of terms that it leads",
        chart=styled(chart.properties(width=460, height=alt.Step(44))),
        text=". ".join(sentences) + ".",
        data=found.rows(_SHARE)[["suite", "reading", "value", "low", "high", "p", "n"]],
        note="Square and line: published share with its Wilson interval. Box: where 95% of the shares fall in runs "
        "simulated with the same trends and noise in which nothing leads. Dashed: one half.",
    )


def onsets(found: Findings) -> Iterator[Figure]:
    """Term by term, the interval of steps in which binding, and knowing, first reach half of their rise."""
    import altair as alt

    from bindscope.charts.axes import over_steps, trained

    table, _ = found.tables.emergence
    names = {"binding": "binding (EB*)", "knowing": "knowing (behavior)"}
    for i, (suite, checkpoints) in enumerate(trained(found.tables.summary)):
        part = table[table["suite"] == suite]
        if part.empty:
            continue
        order = part.sort_values(["binding_right", "knowing_right"])["term"].map(line).to_list()
        data = _bars(part, names, float(checkpoints["step"].min()), float(checkpoints["step"].max()))
        left, right = (over_steps(checkpoints["step"], "log", end) for end in ("left", "right"))
        base = alt.Chart(data).encode(
            alt.Y("term:N", sort=order, title=None).axis(grid=False, ticks=False, labelLimit=220),
            alt.YOffset("what:N", sort=list(names.values())),
            alt.Color(
                "what:N",
                scale={"domain": list(names.values()), "range": SERIES[:2]},
                legend={"title": None, "orient": "top"},
            ),
        )
        bars = base.mark_rule(strokeWidth=4, strokeCap="round").encode(left, alt.X2("right:Q"))
        shape = alt.Shape(
            "what:N",
            scale={"domain": list(names.values()), "range": SHAPES[:2]},
            legend={"title": None, "orient": "top"},
        )
        seen = base.transform_filter(~alt.datum.never)
        dots = seen.mark_point(filled=True, size=60, opacity=1).encode(right, shape)
        late = base.transform_filter(alt.datum.never).mark_text(text="not reached", align="left", dx=8, fontSize=11)
        chart = alt.layer(bars, dots, late.encode(right)).properties(width=520, height=alt.Step(13))
        before = int((part["binding_right"] <= part["knowing_left"]).sum())
        after = int((part["knowing_right"] <= part["binding_left"]).sum())
        yield Figure(
            name=f"onset-{i + 1}",
            title=f"When each term is bound and when it is known: {line(suite)}",
            chart=styled(chart),
            text=f"{line(suite)}: of {count(len(part), 'term')}, {before} reach half of the rise of binding surely "
            f"before half of the rise of knowing, {after} surely after; in {len(part) - before - after} the intervals "
            "overlap.",
            data=part,
            note="A bar runs from the last checkpoint below the threshold to the first one at or above it (the mark): "
            "that is all that checkpoints can tell. The threshold is half of the rise of the mean over terms.",
        )


def _bars(part: pd.DataFrame, names: dict[str, str], first: float, end: float) -> pd.DataFrame:
    """A row per term and quantity: the ends of its bar, and whether the threshold is never reached."""
    return pd.DataFrame(
        [
            {
                "term": line(str(row["term"])),
                "what": label,
                "left": max(first, float(row[f"{what}_left"])),
                "right": min(end, float(row[f"{what}_right"])),
                "never": bool(np.isinf(row[f"{what}_right"])),
            }
            for row in part.to_dict("records")
            for what, label in names.items()
        ]
    )


CLAIM = Claim(
    id="C1-B",
    name="precedence",
    order=30,
    question="Does binding come first?",
    limit="Two series that rise at different times need not have to do with each other, and the noisier one trails by "
    "itself. One training run cannot tell a lead from a later rise; several seeds can.",
    needs=("binding", "recognition"),
    published=_SHARE,
    controlled=_SHARE,
    statistics=precedence,
    across=between_runs,
    answer=_answer,
    figures=(leads, onsets),
)
