"""C5: do the binding heads matter? Heads are ablated, and what it costs is set against random sets of as many heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from bindscope.charts.figure import Figure
from bindscope.charts.table import Table
from bindscope.charts.text import count, line, number, span
from bindscope.claims.answers import state, undecided
from bindscope.claims.base import Answer, Bound, Claim, Statistic
from bindscope.claims.inputs import Findings, Inputs
from bindscope.tables.ablation import BOUNDS
from bindscope.tables.run import last

#: The published rule: heads are called coupled where their specificity exceeds this.
COUPLED = 0.10
_SPECIFICITY = "c5.specificity"
#: Verdicts after which there was nothing to lose, or nothing to see it by.
_BLIND = {"ceiling", "floor"}


def causal(inputs: Inputs) -> Iterator[Statistic]:
    """Specificity of each ablation at the last checkpoint."""
    yield from specificities(inputs.effects)


def specificities(effects: pd.DataFrame) -> Iterator[Statistic]:
    """Rows of `tables.ablation.effects` as published (specificity of accuracy, coupled above 0.10) and as controlled
    (p among the random sets, interval over terms, verdict with its rule)."""
    for row in effects.to_dict("records"):
        edit = f"{row['outcome']}, {row['k']} heads by {row['ranking']}, {row['mode']}"
        shared: dict[str, Any] = {
            "id": _SPECIFICITY,
            "subject": edit,
            "quantity": f"specificity of {row['outcome']}: {row['k']} heads by {row['ranking']}, {row['mode']}",
            "value": row["specificity"],
            "n": int(row["prompts"]),
            "unit": "prompt",
        }
        if row["outcome"] != "margin":
            verdict = "coupled" if row["specificity"] > COUPLED else "not coupled"
            yield Statistic(
                **shared,
                reading="published",
                method="drop(top) - mean drop(random)",
                verdict=verdict,
                reason=f"{verdict} by the published rule (> {COUPLED})",
            )
        low, high = (None if pd.isna(row[end]) else row[end] for end in ("low", "high"))
        damage = f"loss on neutral text {row['loss_top']:+.3f}, random {row['loss_random']:+.3f}"
        yield Statistic(
            **shared,
            reading="controlled",
            method=f"p among {int(row['random_sets'])} random sets; paired difference, jackknife over terms",
            low=low,
            high=high,
            p=row["p"],
            clusters=int(row["random_sets"]),
            cluster="random set",
            verdict=row["verdict"],
            reason=f"{row['verdict']}: {row['rule']}; {damage}",
        )


def _answer(rows: pd.DataFrame) -> Answer:
    if rows["value"].isna().all():
        return undecided(rows["reason"].iloc[-1])
    published, controlled = (rows.loc[rows["reading"] == name, "verdict"] for name in ("published", "controlled"))
    verdicts = controlled.value_counts()
    coupled = int((published == "coupled").sum()), int(verdicts.get("coupled", 0))
    come_to = state(coupled[0] > 0, coupled[1] > 0)
    if 0 < coupled[1] < len(controlled):
        come_to = "in part"
    elif set(verdicts.index) <= _BLIND:
        come_to = "open"
    counted = ", ".join(f"{verdict} in {n}" for verdict, n in verdicts.items())
    sentence = (
        f"As published, {coupled[0]} of {count(len(published), 'ablation')} cost{'s' if len(published) == 1 else ''} "
        f"more than the limit of {COUPLED:.2f}. Against random heads, of {count(len(controlled), 'comparison')}: "
        f"{counted}."
    )
    detail = (
        f"As published: {coupled[0]} of {count(len(published), 'ablation')} called coupled. Controlled, against random "
        f"sets of heads, in {count(len(controlled), 'comparison')} (an ablation may have several outcomes): {counted}. "
        "The rule of each verdict stands in the table."
    )
    return Answer(come_to, sentence, detail)


def among_random(found: Findings) -> Iterable[Figure]:
    """The drop under the top heads, and the distribution of drops under random sets of as many."""
    from bindscope.claims import causal_figures

    return causal_figures.among_random(found)


def by_size(found: Findings) -> Iterable[Figure]:
    """The drop by number of heads, for the top, the bottom and random sets."""
    from bindscope.claims import causal_figures

    return causal_figures.by_size(found)


def ablations(found: Findings) -> Iterator[Table]:
    """What each ablation costs."""
    frame = last(found.tables.effects) if not found.results.empty else pd.DataFrame()
    if frame.empty:
        return
    rows = [
        [
            line(str(row["suite"])),
            f"{row['k']} heads by {row['ranking']}, {row['mode']}, {row['outcome']}",
            number(row["baseline"]),
            number(row["top"]),
            number(row["random"]),
            number(row["bottom"]),
            f"{number(row['specificity'])} {span(row['low'], row['high'])}".strip(),
            number(row["p"]),
            number(row["loss_top"]),
            number(row["loss_random"]),
            row["verdict"],
        ]
        for row in frame.to_dict("records")
    ]
    head = ["Suite", "Edit and outcome", "Whole", "Top", "Random", "Bottom", "Specificity", "p", "Loss, top"]
    yield Table(
        name="heads-taken-out",
        title="Heads removed",
        note=f"Of the last checkpoint, against {int(frame['random_sets'].max())} random sets of as many heads. Loss: "
        "nats, on neutral text.",
        head=[*head, "Loss, random", "Verdict"],
        rows=rows,
        data=frame,
        keys=2,
    )


CLAIM = Claim(
    id="C5",
    name="causal effect",
    order=80,
    question="Do the binding heads matter?",
    limit="An effect beyond random heads shows that these heads matter for these answers, not that they matter because "
    "they bind. Without an effect, other heads may have taken over.",
    needs=("ablation", "ablation_sets"),
    published=_SPECIFICITY,
    controlled=_SPECIFICITY,
    statistics=causal,
    answer=_answer,
    no_effect=Bound(BOUNDS["accuracy"], "share of questions answered right, or nats per token of margin"),
    figures=(among_random, by_size),
    tables=(ablations,),
)
