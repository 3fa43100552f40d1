"""Claims in plain words: what was asked, what the published and the controlled reading say, what they do not show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from bindscope.stats.analysis import PAIRS

#: What the two readings of a claim come to. in part: the controlled one holds for some groups, edits or controls only;
#: open: it is missing.
State = Literal["both", "in part", "published only", "controlled only", "neither", "open"]

ALPHA = 0.05
QUESTIONS = {
    "V": "Are terms bound more than other expressions?",
    "C1-A": "Does binding go with knowing?",
    "C1-B": "Does binding come first?",
    "C2": "Is binding a property of the term?",
    "C3": "What does an exemplar unlock?",
    "C4-A": "Does binding go with knowing late in training?",
    "C4-B": "Do binding and knowing come apart?",
    "C5": "Do the binding heads matter?",
    "robustness": "Does binding depend on the sentence?",
}
LIMITS = {
    "V": "Only the groups measured here are compared, at token counts that both have. A difference would not show "
    "that a concept is bound: words that often stand together differ from others too.",
    "C1-A": "A correlation does not say which of the two brings the other, or whether a third thing brings both. No "
    "evidence for it is not evidence that there is none.",
    "C1-B": "Two series that rise at different times need not have to do with each other, and the noisier one trails "
    "by itself. One training run cannot tell a lead from a later rise; several seeds can.",
    "C2": "Terms may differ because their tokens do: a large share of variance says that terms differ, not why.",
    "C3": "A gain behind an exemplar may be copied from it, or come from having any example in front. It does not "
    "show that the knowledge was there before.",
    "C4-A": "Half of the checkpoints carry half of the evidence: a correlation that is not seen late has not been "
    "shown to be gone.",
    "C4-B": "With few checkpoints in a half the rule is met by chance in about a quarter of the terms, so a count of "
    "terms says little by itself.",
    "C5": "An effect beyond random heads shows that these heads matter for these answers, not that they matter "
    "because they bind. Without an effect, other heads may have taken over.",
    "robustness": "Prompts differ in more than their length: in capital letters and endings, which change the tokens "
    "of the term, and in what precedes it.",
}
_WORDS: dict[State, str] = {
    "both": "Yes, as published and when controlled.",
    "published only": "As published, yes; when controlled, no evidence for it.",
    "controlled only": "Not as published, but yes when controlled.",
    "in part": "As published, yes; when controlled, in part.",
    "neither": "No evidence for it in either reading.",
    "open": "These data cannot say.",
}


@dataclass(frozen=True)
class Answer:
    """One claim on one suite: state and words; detail is the sentence of `stats.analysis` with the numbers."""

    suite: str
    claim: str
    state: State
    text: str
    detail: str


def answers(results: pd.DataFrame, sentences: pd.DataFrame) -> list[Answer]:
    """An answer for every suite and claim. results, sentences: of an `Analysis`."""
    out = []
    for row in sentences.to_dict("records"):
        rows = results[(results["suite"] == row["suite"]) & (results["claim"] == row["claim"])]
        state, text = _read(row["claim"], rows)
        out.append(Answer(row["suite"], row["claim"], state, text, row["text"]))
    return out


def _read(claim: str, rows: pd.DataFrame) -> tuple[State, str]:
    if rows["value"].isna().all():
        return "open", f"These data cannot say: {rows['reason'].iloc[-1]}."
    if claim == "V":
        return _validity(rows)
    if claim == "C5":
        return _edits(rows)
    if claim == "C3":
        return _unlocked(rows)
    if claim == "C2":
        return _stability(rows)
    if claim == "robustness":
        return _sentence(rows)
    first, second = (
        rows[(rows["quantity"] == quantity) & (rows["reading"] == reading)].iloc[0]
        for quantity, reading in zip(PAIRS[claim], ("published", "controlled"), strict=True)
    )
    if pd.isna(second["value"]):
        return "open", f"These data cannot say when controlled: {second['reason']}."
    state = _state(_published(claim, first), _controlled(claim, second))
    return state, _WORDS[state]


def _state(published: bool, controlled: bool) -> State:
    if published:
        return "both" if controlled else "published only"
    return "controlled only" if controlled else "neither"


def _published(claim: str, row: pd.Series) -> bool:
    """Whether the study would call the claim supported: p at most 0.05 in its direction."""
    if pd.isna(row["value"]):
        return False
    middle = 0.5 if claim in ("C1-B", "C4-B") else 0.0
    return bool(row["value"] > middle and row["p"] <= ALPHA)


def _controlled(claim: str, row: pd.Series) -> bool:
    """p at most 0.05 and, where the interval is the statistic's own and not that of a null, all of it above 0."""
    if claim in ("C1-B", "C4-B"):
        return bool(row["p"] <= ALPHA)
    return bool(pd.notna(row["low"]) and row["low"] > 0 and row["p"] <= ALPHA)


def _validity(rows: pd.DataFrame) -> tuple[State, str]:
    found = rows[rows["quantity"].str.startswith("difference of")].dropna(subset="value")
    parts = {reading: found[found["reading"] == reading] for reading in ("published", "controlled")}
    above = {reading: int((part["low"] > 0).sum()) for reading, part in parts.items()}
    if parts["controlled"].empty:
        return "open", "These data cannot say when controlled: no control group has a match at equal token counts."
    state = _state(above["published"] > 0, above["controlled"] > 0)
    if 0 < above["controlled"] < len(parts["controlled"]):
        state = "in part"
    groups = len(parts["published"]), len(parts["controlled"])
    return state, (
        f"As published, terms stand above {above['published']} of {groups[0]} control groups; at equal token counts in "
        f"the same sentences, above {above['controlled']} of {groups[1]}."
    )


def _unlocked(rows: pd.DataFrame) -> tuple[State, str]:
    """The exemplar's gain against both controls: another term's exemplar, and a paraphrase without keywords."""
    found = {(r["quantity"], r["reading"]): r for r in rows.to_dict("records") if pd.notna(r["value"])}
    gain = found.get((PAIRS["C3"][0], "published"))
    controls = {
        "behind another term's exemplar it is {} less": found.get((PAIRS["C3"][1], "controlled")),
        "a paraphrase without keywords adds {}": found.get(("gain with a paraphrased exemplar (pp)", "controlled")),
    }
    kept = {what: row for what, row in controls.items() if row is not None}
    if gain is None or not kept:
        return "open", "These data cannot say when controlled: no other kind of exemplar was measured."
    each = [what.format(f"{r['value']:.1f} [{r['low']:.1f}, {r['high']:.1f}]") for what, r in kept.items()]
    text = f"The term's own exemplar adds {gain['value']:.1f} points to the score; {'; '.join(each)}."
    if (copied := found.get(("share of matched keywords that stand in the exemplar", "controlled"))) is not None:
        text += f" {100 * copied['value']:.0f}% of the keywords it brings stand in it."
    held = [r["low"] > 0 for r in kept.values()]
    if any(held) and not all(held):
        return "in part", text
    return _state(bool(gain["value"] > 0), all(held)), text


def _edits(rows: pd.DataFrame) -> tuple[State, str]:
    called = {reading: rows.loc[rows["reading"] == reading, "reason"] for reading in ("published", "controlled")}
    verdicts = called["controlled"].str.partition(":")[0].value_counts()
    coupled = int(called["published"].str.startswith("coupled").sum()), int(verdicts.get("coupled", 0))
    state = _state(coupled[0] > 0, coupled[1] > 0)
    if 0 < coupled[1] < len(called["controlled"]):
        state = "in part"
    elif set(verdicts.index) <= {"ceiling", "floor"}:
        state = "open"  # there was nothing to lose, or nothing to see it by
    told = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
    n = {reading: len(part) for reading, part in called.items()}
    return state, (
        f"As published, {coupled[0]} of {n['published']} edits count as coupled; against random heads: {told} "
        f"(of {n['controlled']})."
    )


def _stability(rows: pd.DataFrame) -> tuple[State, str]:
    row = rows[(rows["quantity"] == PAIRS["C2"][1]) & (rows["reading"] == "controlled")].iloc[0]
    if pd.isna(row["value"]):
        return "open", f"These data cannot say: {row['reason']}."
    text = (
        f"intraclass correlation {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]. The study did not test it."
    )
    if row["low"] > 0:
        return "controlled only", f"In part: prompts of one term are alike in EB*, {text}"
    return "neither", f"No evidence that prompts of one term are more alike than those of others, {text}"


def _sentence(rows: pd.DataFrame) -> tuple[State, str]:
    controlled = rows[rows["reading"] == "controlled"].set_index("quantity")
    said, state = list[str](), list[bool]()
    for what, quantity in (
        ("the prompt", "rho(EB*, prompt length)"),
        ("the term in tokens", "rho(EB*, tokens of the term)"),
    ):
        row: dict[str, Any] = dict(controlled.loc[quantity])
        if pd.isna(row["value"]):
            continue
        clear = bool(row["low"] > 0 or row["high"] < 0)
        state.append(clear)
        moves = ("rises" if row["value"] > 0 else "falls") if clear else "does not clearly change"
        said.append(f"EB* {moves} with the length of {what}")
    if not said:
        return "open", f"These data cannot say: {controlled['reason'].iloc[-1]}."
    published = rows[(rows["reading"] == "published") & (rows["quantity"] == "rho(EB*, prompt length)")].iloc[0]
    return _state(bool(pd.notna(published["p"]) and published["p"] <= ALPHA), any(state)), f"{'; '.join(said)}."
