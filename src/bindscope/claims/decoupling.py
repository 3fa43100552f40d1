"""C4-B: do binding and knowing come apart?

The published rule: a term decouples if its EB* and behavior correlate above 0 over the early half of the checkpoints
and at or below 0 over the late half.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.text import count, line, number
from bindscope.claims.answers import against_chance
from bindscope.claims.base import Answer, Claim, Statistic, statistic
from bindscope.claims.inputs import Findings, Inputs
from bindscope.stats.compare import binomial_p, wilson
from bindscope.stats.correlate import Undefined
from bindscope.tables.series import series

Floats = NDArray[np.float64]
_SHARE, _CHANCE = "c4b.share", "c4b.chance"
_DRAWS = 500


def decoupling(inputs: Inputs) -> Iterator[Statistic]:
    """The share of terms that decouple by the published rule, and the share that would decouple by chance."""
    names, eb, known = inputs.series
    half = eb.shape[1] // 2 if eb.size else 0
    yield statistic(
        partial(_decoupled, eb, known, half, "observed"),
        id=_SHARE,
        reading="published",
        quantity="share of terms that decouple",
        n=len(names),
        unit="term",
        method="per-term Spearman over early and late checkpoints; Wilson interval, terms taken as independent",
    )
    yield statistic(
        partial(_decoupled, eb, known, half, "chance"),
        id=_CHANCE,
        reading="controlled",
        quantity="share that would decouple by chance (behavior shuffled within each half)",
        n=len(names),
        unit="term",
        method=f"behavior shuffled within each half, {_DRAWS} times; p: observed share against the share by chance",
    )


def _decoupled(eb: Floats, known: Floats, half: int, wanted: Literal["observed", "chance"]) -> dict[str, Any]:
    if half < 3:
        raise Undefined(f"each half of training has {count(half, 'checkpoint')}; a rank correlation needs 3")
    hits = _by_rule(eb, known, half)
    n, k = int((~np.isnan(hits)).sum()), int(np.nansum(hits))
    if n == 0:
        raise Undefined("in every term EB* or behavior is constant over a half")
    if wanted == "observed":
        share = wilson(k, n)
        return {"value": share.value, "low": share.low, "high": share.high, "p": binomial_p(k, n), "n": n}
    rng, chance = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        shuffled = np.concatenate([rng.permuted(known[:, :half], axis=1), rng.permuted(known[:, -half:], axis=1)], 1)
        chance.append(np.nanmean(_by_rule(np.concatenate([eb[:, :half], eb[:, -half:]], 1), shuffled, half)))
    rate = float(np.mean(chance))
    return {"value": rate, "p": binomial_p(k, n, rate), "n": n, "clusters": 1, "cluster": "training run"}


def halves(table: pd.DataFrame) -> pd.DataFrame:
    """Per term the rank correlation of EB* and behavior over the early and over the late checkpoints, and whether they
    decouple (early > 0 and late <= 0).

    table: observations of one suite. Terms whose EB* or behavior is constant over a half are left out. With
    fewer than six checkpoints the result is empty.
    """
    names, eb, known = series(table)
    half = eb.shape[1] // 2 if eb.size else 0
    if half < 3:
        return pd.DataFrame(columns=["term", "early", "late", "decoupled"])
    early, late = (_rank_correlation(eb[:, cut], known[:, cut]) for cut in (slice(0, half), slice(-half, None)))
    out = pd.DataFrame({"term": names, "early": early, "late": late}).dropna()
    return out.assign(decoupled=(out["early"] > 0) & (out["late"] <= 0))


def _by_rule(eb: Floats, known: Floats, half: int) -> Floats:
    """1 where a term decouples, 0 where not, NaN where EB* or behavior is constant over a half."""
    early = _rank_correlation(eb[:, :half], known[:, :half])
    late = _rank_correlation(eb[:, -half:], known[:, -half:])
    return np.where(np.isnan(early) | np.isnan(late), np.nan, (early > 0) & (late <= 0))


def _rank_correlation(x: Floats, y: Floats) -> Floats:
    """Spearman's rho of each row of x with that of y; NaN where one is constant."""
    a, b = (pd.DataFrame(v).rank(axis=1).to_numpy() for v in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    bottom = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.asarray(np.divide((a * b).sum(1), bottom, out=np.full(len(a), np.nan), where=bottom > 0))


def _answer(rows: pd.DataFrame) -> Answer:
    return against_chance(rows, _SHARE, _CHANCE, "The controlled value is the share that decouples by chance alone.")


def term_by_term(found: Findings) -> Iterator[Figure]:
    """A point per term: early (x) and late (y) rank correlation; the rule calls those at the lower right decoupled."""
    import altair as alt

    from bindscope.charts.axes import threshold_rule

    table = found.tables.each_suite(halves)
    if table.empty:
        return
    panels, sentences = list[Any](), list[str]()
    kinds = ["decoupled", "not decoupled"]
    for suite, part in table.groupby("suite", sort=False):
        data = part.assign(term=part["term"].map(line), kind=part["decoupled"].map({True: kinds[0], False: kinds[1]}))
        key = {"title": None, "orient": "top"}
        side = {"domain": [-1.05, 1.05], "nice": False}
        base = alt.Chart(data).encode(
            alt.X("early:Q", title="\u03c1 over early checkpoints", scale=side).axis(values=[-1, -0.5, 0, 0.5, 1]),
            alt.Y("late:Q", title="\u03c1 over late checkpoints", scale=side).axis(values=[-1, -0.5, 0, 0.5, 1]),
        )
        points = base.mark_point(size=70, opacity=0.9, strokeWidth=2).encode(
            alt.Color("kind:N", scale={"domain": kinds, "range": [COLOR["s2"], COLOR["s1"]]}, legend=key),
            alt.Shape("kind:N", scale={"domain": kinds, "range": ["square", "circle"]}, legend=key),
        )
        names = (
            base.transform_filter(alt.datum.decoupled)
            .mark_text(align="left", dx=7, dy=-5, fontSize=10.5)
            .encode(alt.Text("term:N"))
        )
        shares = _shares(found, str(suite))
        layers = [threshold_rule(0), threshold_rule(0, "y"), points]
        if data["decoupled"].sum() <= 12:
            layers.append(names)
        title = alt.TitleParams(line(str(suite)), subtitle=shares)
        panels.append(alt.layer(*layers).properties(width=330, height=330, title=title))
        gone = ", ".join(data.loc[data["decoupled"], "term"]) or "none"
        sentences.append(f"{line(str(suite))}: {shares}. Decoupled by the rule: {gone}")
    yield Figure(
        name="decoupling",
        title="Do binding and behavior come apart, term by term?",
        chart=styled(alt.concat(*panels, columns=2)),
        text=". ".join(sentences) + ".",
        data=table[["suite", "term", "early", "late", "decoupled"]],
        note="The rule: a correlation above 0 over the early checkpoints and at or below 0 over the late ones (lower "
        "right). With four checkpoints in a half a correlation can take few values, so its p cannot be small.",
    )


def _shares(found: Findings, suite: str) -> str:
    rows = [found.rows(id) for id in (_SHARE, _CHANCE)]
    values = [part.loc[part["suite"] == suite, "value"] for part in rows]
    if any(part.empty for part in values):
        return "share not available"
    share, chance = (100 * float(part.iloc[0]) for part in values)
    return f"{number(share, 0)}% decouple; by chance {number(chance, 0)}% would decouple"


CLAIM = Claim(
    id="C4-B",
    name="decoupling",
    order=70,
    question="Do binding and knowing come apart?",
    limit="With few checkpoints in a half the rule is met by chance in about a quarter of the terms, so a count of "
    "terms says little by itself.",
    needs=("binding", "recognition"),
    published=_SHARE,
    controlled=_CHANCE,
    statistics=decoupling,
    answer=_answer,
    figures=(term_by_term,),
)
