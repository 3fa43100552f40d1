"""C3: what does one exemplar sentence in front unlock, and how much of it is copied from the exemplar?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pandas as pd

from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.table import Table
from bindscope.charts.text import interval_of, line, number
from bindscope.claims.answers import about_zero, pick, side_by_side, state, undecided
from bindscope.claims.base import READINGS, Answer, Claim, Statistic, clustered, missing, statistic
from bindscope.claims.inputs import Findings, Inputs
from bindscope.stats.compare import paired_difference
from bindscope.stats.correlate import Undefined

_GAIN, _OVER_OTHER, _PARAPHRASED, _COPIED = "c3.gain", "c3.over_mismatched", "c3.paraphrased", "c3.copied"
_NO_EXEMPLAR = "the run has no answers behind the terms' own exemplars"
#: Kind of exemplar -> how it is called in a figure, and in a table.
_IN_FIGURE = {"exemplar": "the term's own", "paraphrased": "paraphrased, no keywords", "mismatched": "another term's"}
_IN_TABLE = {
    "zero": "none",
    "exemplar": "the term's own",
    "paraphrased": "paraphrased, without keywords",
    "mismatched": "another term's",
}


def unlockability(inputs: Inputs) -> Iterator[Statistic]:
    """Gains behind exemplars at the last checkpoint."""
    if "exemplar" in inputs.gains:
        yield from exemplar_gains(inputs.gains)
        return
    for id, reading in ((_GAIN, READINGS[0]), (_OVER_OTHER, READINGS[1])):
        yield missing(id=id, reading=reading, quantity="few-shot minus zero-shot score", reason=_NO_EXEMPLAR)


def exemplar_gains(table: pd.DataFrame) -> Iterator[Statistic]:
    """What exemplars add to the rubric score.

    table: a row per prompt with term, scores in [0, 1] in the columns zero and exemplar and, where they were measured,
    mismatched (the exemplar of another term) and paraphrased (without keyword phrases); matched and copied: numbers of
    keywords in the answers behind the term's own exemplar, and of those that stand in it. Published: mean gain in
    percentage points, and relative gain. Controlled: the gain over the mismatched exemplar and that of the paraphrase,
    paired by prompt, jackknife over terms. Raises ValueError for missing columns.
    """
    if absent := [name for name in ("term", "zero", "exemplar") if name not in table]:
        raise ValueError(
            f"the table lacks the columns {', '.join(absent)}; it has {', '.join(map(str, table.columns))}"
        )
    for id, quantity, unit in (
        (_GAIN, "gain with an exemplar (pp)", "pp"),
        ("c3.relative_gain", "relative gain with an exemplar (%)", "%"),
    ):
        yield statistic(
            partial(_gain, table, "pp" if unit == "pp" else "%"),
            id=id,
            reading="published",
            quantity=quantity,
            n=len(table),
            unit="prompt",
            method="paired by prompt; prompts taken as independent",
        )
    for id, quantity, a, b in (
        (_GAIN, "gain with an exemplar (pp)", "exemplar", "zero"),
        (_OVER_OTHER, "gain over another term's exemplar (pp)", "exemplar", "mismatched"),
        (_PARAPHRASED, "gain with a paraphrased exemplar (pp)", "paraphrased", "zero"),
    ):
        yield statistic(
            partial(_paired, table, a, b),
            id=id,
            reading="controlled",
            quantity=quantity,
            n=len(table),
            unit="prompt",
            method="paired by prompt; jackknife over terms",
        )
    if "matched" in table:
        yield statistic(
            lambda: _copied(table),
            id=_COPIED,
            reading="controlled",
            quantity="share of matched keywords that stand in the exemplar",
            n=int(table["matched"].sum()),
            unit="keyword",
            method="over all answers behind the term's own exemplar",
        )


def _gain(table: pd.DataFrame, unit: Literal["pp", "%"]) -> dict[str, Any]:
    zero, exemplar = float(table["zero"].mean()), float(table["exemplar"].mean())
    if unit == "pp":
        return {"value": 100 * (exemplar - zero)}
    if zero == 0:
        raise Undefined("the zero-shot score is 0, so there is nothing to relate a gain to")
    return {"value": 100 * (exemplar - zero) / zero}


def _paired(table: pd.DataFrame, a: str, b: str) -> dict[str, Any]:
    for name in (a, b):
        if name not in table:
            raise Undefined(f"{name} exemplars were not measured")
    return clustered(paired_difference(100 * table[a], 100 * table[b], table["term"]))


def _copied(table: pd.DataFrame) -> dict[str, Any]:
    if not table["matched"].sum():
        raise Undefined("no answer behind an exemplar holds a keyword")
    return {"value": float(table["copied"].sum() / table["matched"].sum())}


def _answer(rows: pd.DataFrame) -> Answer:
    """The exemplar's gain against both controls: another term's exemplar, and a paraphrase without keywords."""
    if rows["value"].isna().all():
        return undecided(rows["reason"].iloc[-1])
    gain, other = pick(rows, _GAIN, "published"), pick(rows, _OVER_OTHER, "controlled")
    paraphrase = pick(rows, _PARAPHRASED, "controlled")
    detail = side_by_side(gain, other, about_zero(other))
    measured = [row for row in (other, paraphrase) if pd.notna(row["value"])]
    if pd.isna(gain["value"]) or not measured:
        return undecided("no other kind of exemplar was measured", controlled=True, detail=detail)
    sentence = f"{_moves('With its own exemplar in front', gain)}."
    if pd.notna(other["value"]):
        sentence += f" {_than_another(other)}."
    if pd.notna(paraphrase["value"]):
        sentence += f" {_moves('With a paraphrase without keywords', paraphrase)} {_brackets(paraphrase)}."
    copied = rows[(rows["id"] == _COPIED) & rows["value"].notna()]
    if len(copied):
        sentence += (
            " Of the keywords in the answers behind the term's own exemplar, "
            f"{100 * copied['value'].iloc[0]:.0f}% stand in that exemplar."
        )
    holds = [bool(row["low"] > 0) for row in measured]
    if any(holds) and not all(holds):
        return Answer("in part", sentence, detail)
    return Answer(state(bool(gain["value"] > 0), all(holds)), sentence, detail)


def _moves(start: str, row: dict[str, Any]) -> str:
    way = "rises" if row["value"] >= 0 else "falls"
    return f"{start}, the score {way} by {abs(row['value']):.1f} points"


def _than_another(row: dict[str, Any]) -> str:
    way = "higher" if row["value"] >= 0 else "lower"
    return f"That is {abs(row['value']):.1f} points {way} than behind another term's exemplar {_brackets(row)}"


def _brackets(row: dict[str, Any]) -> str:
    return f"[{row['low']:.1f}, {row['high']:.1f}]"


def by_exemplar(found: Findings) -> Iterator[Figure]:
    """What each kind of exemplar adds to the rubric score."""
    import altair as alt

    from bindscope.charts.axes import threshold_rule

    shots = found.tables.shots
    table = shots if shots.empty else shots[shots["exemplar"] != "zero"]
    if table.empty or found.results.empty:
        return
    axis, panels, sentences = "gain in rubric score over no exemplar (percentage points)", list[Any](), list[str]()
    for suite, part in table.groupby("suite", sort=False):
        data = part.assign(label=part["exemplar"].map(_IN_FIGURE), text=part["gain"].map(lambda v: number(100 * v, 1)))
        for column in ("gain", "gain_low", "gain_high"):
            data[column] = 100 * data[column].astype(float)
        base = alt.Chart(data[["label", "text", "gain", "gain_low", "gain_high"]]).encode(
            alt.Y("label:N", sort=list(_IN_FIGURE.values()), title=None).axis(labelLimit=240, ticks=False)
        )
        panels.append(
            alt.layer(
                base.mark_bar(height=18, color=COLOR["h3"], stroke=COLOR["s1"]).encode(alt.X("gain:Q", title=axis)),
                base.mark_rule(strokeWidth=2, color=COLOR["ink"]).encode(
                    alt.X("gain_low:Q", title=axis), alt.X2("gain_high:Q")
                ),
                base.mark_text(align="left", dx=6, fontWeight="bold").encode(
                    alt.X("gain_high:Q", title=axis), alt.Text("text:N")
                ),
                threshold_rule(0),
            ).properties(width=420, height=alt.Step(34), title=line(str(suite)))
        )
        each = "; ".join(
            f"{_IN_FIGURE[row['exemplar']]} {number(100 * row['gain'], 1)} points" for row in part.to_dict("records")
        )
        own = part[part["exemplar"] == "exemplar"].iloc[0]
        sentences.append(
            f"{line(str(suite))}: {each}. Of {int(own['matched'])} keywords in the answers behind the term's own "
            f"exemplar {int(own['copied'])} stand in the exemplar"
        )
    yield Figure(
        name="exemplars",
        title="What an exemplar in front adds, and what of it is the term's own",
        chart=styled(alt.vconcat(*panels).resolve_scale(x="shared")),
        text=". ".join(sentences) + ".",
        data=shots,
        note="Lines are 95% intervals over terms. What the term's own exemplar adds over another term's, and over a "
        "paraphrase without keywords, is more than the effect of having any example in front, or of copying.",
    )


def scores(found: Findings) -> Iterator[Table]:
    """Scores and gains by kind of exemplar."""
    frame = found.tables.shots
    if frame.empty or found.results.empty:
        return
    own = frame[frame["exemplar"] == "exemplar"]
    copied = f"{int(own['copied'].sum())} of {int(own['matched'].sum())}" if len(own) else "none"
    yield Table(
        name="few-shot",
        title="Generation behind an exemplar",
        note=f"Of the last checkpoint. Keywords behind the term's own exemplar that stand in the exemplar: {copied}.",
        head=["Suite", "Exemplar in front", "Rubric score", "Gain"],
        rows=[
            [
                line(str(row["suite"])),
                _IN_TABLE[row["exemplar"]],
                interval_of(row, "score"),
                "" if row["exemplar"] == "zero" else interval_of(row, "gain"),
            ]
            for row in frame.to_dict("records")
        ],
        data=frame,
        keys=2,
    )


CLAIM = Claim(
    id="C3",
    name="unlockability",
    order=50,
    question="What does an exemplar unlock?",
    limit="A gain behind an exemplar may be copied from it, or come from having any example in front. It does not show "
    "that the knowledge was there before.",
    needs=("few_shot", "generation"),
    published=_GAIN,
    controlled=_OVER_OTHER,
    statistics=unlockability,
    answer=_answer,
    bounded=False,
    figures=(by_exemplar,),
    tables=(scores,),
)
