"""Stored tables -> the tables of the page, at the last checkpoint of each suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from bindscope.stats.ablation import effects
from bindscope.stats.behavior import gains, positions, variability
from bindscope.stats.groups import by_group
from bindscope.stats.resample import Interval, cluster_mean
from bindscope.store import Store

Number = Callable[[Any], str]


def last(frame: pd.DataFrame, suite: str) -> pd.DataFrame:
    """The rows of a suite's last checkpoint."""
    part = frame[frame["suite"] == suite] if "suite" in frame else frame
    return part if part.empty else part[part["revision"] == part["revision"].iloc[-1]]


def tables(store: Store, suite: str, number: Number) -> Iterator[dict[str, Any]]:
    """What the run measured beside the curves: title, note, head and rows of text, a table each."""
    yield from _controls(by_group(last(store.read("binding"), suite)), number)
    yield from _positions(positions(last(store.read("recognition"), suite)), number)
    yield from _few_shot(last(gains(store.read("generation"), store.read("few_shot")), suite), number)
    yield from _edits(last(_effects(store), suite), number)
    yield from _sampling(variability(last(store.read("variability"), suite)), number)


def _span(row: dict[Any, Any], name: str, number: Number) -> str:
    if pd.isna(row[name]):
        return str(row.get("reason") or "")
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return number(row[name]) + ("" if pd.isna(low) else f" [{number(low)}, {number(high)}]")


def _controls(frame: pd.DataFrame, number: Number) -> Iterator[dict[str, Any]]:
    if frame.empty or set(frame["group"]) <= {"real"}:
        return
    rows = [
        [f"{r['group']}, {r['k']} tokens", "" if r["group"] == "real" else _span(r, "difference", number),
         str(r["terms"]), _span(r, "eb_star", number), number(r["eb_star_mass"]), _span(r, "excess", number)]
        for r in frame.sort_values(["k"], kind="stable").to_dict("records")
    ]  # fmt: skip
    yield {
        "title": "Terms and controls in the same sentences",
        "note": "The second column compares at equal token counts within each sentence; brackets: 95% interval.",
        "head": ["Group", "EB* of terms less group", "Expressions", "EB*", "EB*_mass", "Excess"],
        "rows": rows,
    }


def _positions(frame: pd.DataFrame, number: Number) -> Iterator[dict[str, Any]]:
    if frame.empty:
        return
    yield {
        "title": "Accuracy by the place of the right answer",
        "note": f"Without a preference each place is chosen in {number(1 / frame['places'].iloc[0])} of the questions.",
        "head": ["Place", "Questions with gold there", "Accuracy", "How often the place is chosen"],
        "rows": [
            [r["position"], str(r["n"]), number(r["accuracy"]), number(r["chosen"])] for r in frame.to_dict("records")
        ],
    }


def _few_shot(frame: pd.DataFrame, number: Number) -> Iterator[dict[str, Any]]:
    if frame.empty:
        return
    rows = []
    for column, label in (
        ("zero", "none"), ("exemplar", "the term's own"), ("paraphrased", "paraphrased, without keywords"),
        ("mismatched", "another term's"),
    ):  # fmt: skip
        found = cluster_mean(frame[column], frame["term"])
        gain = cluster_mean(frame[column] - frame["zero"], frame["term"])
        rows.append([label, _whole(found, number), "" if column == "zero" else _whole(gain, number)])
    copied, matched = int(frame["copied"].sum()), int(frame["matched"].sum())
    yield {
        "title": "Generation behind an exemplar",
        "note": f"Of {matched} keywords in the answers behind the term's own exemplar {copied} stand in the exemplar.",
        "head": ["Exemplar in front", "Rubric score", "Gain"],
        "rows": rows,
    }


def _whole(found: Interval, number: Number) -> str:
    return f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"


def _effects(store: Store) -> pd.DataFrame:
    recognition = store.read("recognition")
    if recognition.empty:
        return pd.DataFrame()
    chance = float((1 / recognition["choices"].map(len)).mean())
    return effects(store.read("ablation"), store.read("ablation_sets"), chance)


def _edits(frame: pd.DataFrame, number: Number) -> Iterator[dict[str, Any]]:
    if frame.empty:
        return
    rows = [
        [f"{r['k']} heads by {r['ranking']}, {r['mode']}, {r['outcome']}", number(r["baseline"]), number(r["top"]),
         number(r["random"]), number(r["bottom"]),
         number(r["specificity"]) + ("" if pd.isna(r["low"]) else f" [{number(r['low'])}, {number(r['high'])}]"),
         number(r["p"]), number(r["loss_top"]), number(r["loss_random"]), r["verdict"]]
        for r in frame.to_dict("records")
    ]  # fmt: skip
    yield {
        "title": "Heads taken out",
        "note": f"Against {int(frame['random_sets'].max())} random sets of as many heads. Loss: nats, on neutral text.",
        "head": ["Edit and outcome", "Whole", "Top", "Random", "Bottom", "Specificity", "p", "Loss, top",
                 "Loss, random", "Verdict"],
        "rows": rows,
    }  # fmt: skip


def _sampling(frame: pd.DataFrame, number: Number) -> Iterator[dict[str, Any]]:
    if frame.empty:
        return
    yield {
        "title": "Sampling",
        "note": "Spread: standard deviation over seeds of a prompt's score, mean over prompts.",
        "head": ["Temperature", "Rubric score", "Spread", "Different texts"],
        "rows": [
            [str(t), number(part["mean"].mean()), number(part["sd"].mean()), number(part["texts"].mean())]
            for t, part in frame.groupby("temperature")
        ],
    }
