"""From the two leading statistics of a claim to its answer: a state, a sentence, and the sentence with the numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bindscope.claims.base import Answer, State

ALPHA = 0.05
SENTENCES: dict[State, str] = {
    "both": "Yes, as published and when controlled.",
    "published only": "As published, yes; when controlled, no evidence for it.",
    "controlled only": "Not as published, but yes when controlled.",
    "in part": "As published, yes; when controlled, in part.",
    "neither": "No evidence for it, published or controlled.",
    "open": "These data cannot say.",
}


def state(published: bool, controlled: bool) -> State:
    """The state where the claim holds, or does not, as published and as controlled."""
    if published:
        return "both" if controlled else "published only"
    return "controlled only" if controlled else "neither"


def undecided(reason: str, controlled: bool = False, detail: str = "") -> Answer:
    """The open answer, with the reason why the data cannot give one."""
    where = " when controlled" if controlled else ""
    return Answer("open", f"These data cannot say{where}: {reason}.", detail or f"The data do not carry it: {reason}.")


def pick(rows: pd.DataFrame, id: str, reading: str) -> dict[str, Any]:
    """The one row of a statistic without subjects. Raises KeyError where the claim gave none."""
    part = rows[(rows["id"] == id) & (rows["reading"] == reading)]
    if part.empty:
        raise KeyError(f"there is no {reading} statistic {id!r}")
    return dict(part.iloc[0])


def in_words(row: dict[str, Any]) -> str:
    """A statistic in a sentence: what it is, its value, interval and p."""
    if pd.isna(row["value"]):
        return f"{row['quantity']} is missing ({row['reason']})"
    text = f"{row['quantity']} {row['value']:+.2f}"
    if pd.notna(row["low"]):
        text += f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    if pd.isna(row["p"]):
        return text
    return text + (", p < 0.001" if row["p"] < 0.001 else f", p {row['p']:.3f}")


def about_zero(row: dict[str, Any]) -> str:
    """What the interval of a controlled statistic says about zero, in a sentence; nothing where it has none."""
    if pd.isna(row["value"]) or pd.isna(row["low"]):
        return ""
    if row["low"] <= 0 <= row["high"]:
        return "The controlled interval holds zero: no evidence here, which is not evidence of no effect."
    if row["p"] >= ALPHA:
        return "The interval leaves out zero but the test does not reject it: there are too few clusters to conclude."
    return "The controlled interval leaves out zero."


def side_by_side(published: dict[str, Any], controlled: dict[str, Any], closing: str) -> str:
    """Both statistics with their numbers, and a closing sentence."""
    text = f"As published: {in_words(published)}. Controlled: {in_words(controlled)}."
    return f"{text} {closing}".strip()


def supported(row: dict[str, Any], middle: float = 0.0) -> bool:
    """Whether a published statistic lies above `middle` with p at most 0.05."""
    if pd.isna(row["value"]) or pd.isna(row["p"]):
        return False
    return bool(row["value"] > middle and row["p"] <= ALPHA)


def confirmed(row: dict[str, Any]) -> bool:
    """Whether a controlled statistic has p at most 0.05 and an interval wholly above zero."""
    return bool(pd.notna(row["low"]) and row["low"] > 0 and pd.notna(row["p"]) and row["p"] <= ALPHA)


def compared(rows: pd.DataFrame, published: str, controlled: str) -> Answer:
    """The answer of a claim that two statistics lead, ids `published` and `controlled`: it holds as published where
    `supported`, and as controlled where `confirmed`."""
    if rows["value"].isna().all():
        return undecided(rows["reason"].iloc[-1])
    first, second = pick(rows, published, "published"), pick(rows, controlled, "controlled")
    detail = side_by_side(first, second, about_zero(second))
    if pd.isna(second["value"]):
        return undecided(second["reason"], controlled=True, detail=detail)
    outcome = state(supported(first), confirmed(second))
    return Answer(outcome, SENTENCES[outcome], detail)


def against_chance(rows: pd.DataFrame, published: str, controlled: str, closing: str) -> Answer:
    """The answer of a claim on a share of terms: it holds as published above one half, and as controlled if p is at
    most 0.05, where p compares the share with shares that arise by chance."""
    if rows["value"].isna().all():
        return undecided(rows["reason"].iloc[-1])
    first, second = pick(rows, published, "published"), pick(rows, controlled, "controlled")
    detail = side_by_side(first, second, closing if pd.notna(second["value"]) else "")
    if pd.isna(second["value"]):
        return undecided(second["reason"], controlled=True, detail=detail)
    outcome = state(supported(first, middle=0.5), bool(pd.notna(second["p"]) and second["p"] <= ALPHA))
    return Answer(outcome, SENTENCES[outcome], detail)
