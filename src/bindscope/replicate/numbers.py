"""Recomputes the numbers of the paper from the published data and compares them with the printed ones.

The verdict on a number, at its printed digits, is "match", "rounded twice" (the reference study's four-digit value,
rounded again, gives the printed one), "mismatch", or "not computable" with a reason. checks.py tests whether the data
are consistent in themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from bindscope.replicate.published import Published
from bindscope.stats import correlate
from bindscope.stats.compare import binomial_p

FIGURE_COLUMNS = ["quantity", "name", "where", "published", "recomputed", "digits", "n", "verdict", "reason"]
JOIN = ["set", "model", "size", "checkpoint", "step", "term", "task", "prompt_id", "prompt_template"]


class Rank(NamedTuple):
    """Spearman's rank correlation.

    rho: the correlation, None where it is not defined
    p: two-sided p, which assumes independent pairs
    n: number of pairs
    reason: why rho is None
    """

    rho: float | None
    p: float | None
    n: int
    reason: str | None = None


@dataclass(frozen=True)
class Number:
    """A recomputed number.

    value: the number, None where it cannot be computed
    n: number of observations
    reason: why value is None
    """

    value: float | None
    n: int | None = None
    reason: str | None = None


@cache
def paper() -> dict[str, Any]:
    """The numbers of the paper, and facts about its models."""
    text = (resources.files("bindscope") / "data" / "published.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def spearman(x: pd.Series, y: pd.Series) -> Rank:
    """Spearman's rank correlation of two series of equal length; ties get their mean rank."""
    if len(x) < 3:
        return Rank(None, None, len(x), f"too few pairs: {len(x)}")
    for name, series in (("EB*", x), ("the score", y)):
        if series.nunique() < 2:
            return Rank(None, None, len(x), f"{name} is constant ({series.iloc[0]:g} in all {len(x)} pairs)")
    rank = correlate.spearman(x, y)
    return Rank(rank.rho, rank.p, rank.n)


def pairs(data: Published) -> pd.DataFrame:
    """EB* and score of the same prompt at the same checkpoint, joined on every key and on the text of the prompt."""
    left = data.binding[[*JOIN, "eb_star", "span_indices"]]
    right = data.behavior[[*JOIN, "score"]]
    # pandas cannot join empty tables, whose columns have no types.
    if left.empty or right.empty:
        return left.assign(score=pd.Series(dtype=float)).iloc[:0]
    return left.merge(right, on=JOIN, how="inner", validate="one_to_one")


def figures(data: Published) -> pd.DataFrame:
    """The comparison with the paper: a row for every number, with the columns `FIGURE_COLUMNS`."""
    computed = dict(_computed(data))
    rows = []
    for group in paper()["figures"]:
        for name, value, size in _spread(group["values"], ""):
            digits = group["digits"][size] if isinstance(group["digits"], dict) else group["digits"]
            number = computed.get((group["what"], name))
            verdict, reason = _verdict(value, number, digits, group.get("n"), group["needs"])
            if verdict in ("mismatch", "rounded twice"):
                reason = group.get("notes", {}).get(name, reason)
            rows.append(
                [
                    group["what"],
                    name,
                    group["where"],
                    float(value),
                    number.value if number else None,
                    digits,
                    number.n if number else None,
                    verdict,
                    reason,
                ]
            )
    return pd.DataFrame(rows, columns=FIGURE_COLUMNS)


def _spread(values: Any, name: str) -> Iterator[tuple[str, float, str]]:
    """Name, value and size of every number in nested lists and dictionaries."""
    if isinstance(values, list):
        values = dict(zip(paper()["steps"], values, strict=True))
    if not isinstance(values, dict):
        yield name, values, name.split(" ")[0]
        return
    for key, part in values.items():
        yield from _spread(part, f"{name} {key}".strip())


def _verdict(value: float, number: Number | None, digits: int, n: int | None, needs: str) -> tuple[str, str | None]:
    if number is None:
        return "not computable", f"needs {needs}"
    if number.value is None:
        return "not computable", number.reason
    if n is not None and number.n is not None and number.n != n:
        return "not computable", f"{number.n} observations in the data, {n} in the paper"
    if _prints_as(number.value, value, digits):
        return "match", None
    # The summary file of the reference study has four digits; the paper prints these, rounded again.
    if digits < 4 and _prints_as(round(number.value, 4), value, digits):
        return "rounded twice", f"rounded twice: {number.value:.6f}, then {number.value:.4f}, then {value:.{digits}f}"
    return "mismatch", f"differs by {number.value - value:+.{digits + 2}f}"


def _prints_as(number: float, printed: float, digits: int) -> bool:
    """Whether a number rounds to the printed one; the tolerance is for numbers that end in 5."""
    return abs(number - printed) <= 0.5 * 10.0**-digits + 1e-9


def _computed(data: Published) -> Iterator[tuple[tuple[str, str], Number]]:
    yield from _coupling(data)
    yield from _means(data)
    yield from _few_shot(data)
    yield from _ablation(data)
    yield from _terms(data)


def _coupling(data: Published) -> Iterator[tuple[tuple[str, str], Number]]:
    joined = pairs(data)
    for size, part in joined[joined["set"] == "pilot"].groupby("size"):
        rank = spearman(part["eb_star"], part["score"])
        yield ("Spearman(EB*, score), rho", str(size)), Number(rank.rho, rank.n, rank.reason)
        yield ("Spearman(EB*, score), p", str(size)), Number(rank.p, rank.n, rank.reason)


def _means(data: Published) -> Iterator[tuple[tuple[str, str], Number]]:
    for row in means(data).to_dict("records"):
        for column, what in (
            ("eb_star_mean", "EB* mean"),
            ("eb_star_max", "EB* maximum"),
            ("beh_avg", "behavior mean"),
            ("rec_acc", "recognition accuracy"),
            ("gen_mean", "generation score"),
        ):
            number = row[column]
            if not pd.isna(number):
                yield (what, f"{row['size']} {row['checkpoint']}"), Number(float(number), int(row[f"{column}_n"]))


def means(data: Published) -> pd.DataFrame:
    """The columns of pilot_summary.csv recomputed from the records, with their n: a row per size and checkpoint.

    Behavior is the mean of recognition accuracy and generation score; it is missing where one of them is.
    """
    key = ["model", "size", "checkpoint"]
    binding = data.binding[data.binding["set"] == "pilot"].groupby(key)["eb_star"].agg(["mean", "max", "size"])
    scores = data.behavior[data.behavior["set"] == "pilot"].groupby([*key, "task"])["score"].agg(["mean", "size"])
    out = pd.DataFrame(
        {"eb_star_mean": binding["mean"], "eb_star_max": binding["max"], "eb_star_mean_n": binding["size"]}
    )
    out["eb_star_max_n"] = out["eb_star_mean_n"]
    for task, column in (("recognition", "rec_acc"), ("generation", "gen_mean")):
        part = scores[scores.index.get_level_values("task") == task].droplevel("task")
        out = out.join(part.rename(columns={"mean": column, "size": f"{column}_n"}), how="outer")
    out["beh_avg"] = (out["rec_acc"] + out["gen_mean"]) / 2
    out["beh_avg_n"] = out["rec_acc_n"] + out["gen_mean_n"]
    return out.reset_index()


def gains(data: Published) -> pd.DataFrame:
    """Few-shot gains: a row per file.

    Columns
    zero, one: mean scores without and with an exemplar
    n: number of prompts
    pp: gain in percentage points
    relative: gain in percent of the zero-shot score, NaN where that is 0
    """
    wide = (
        data.few_shot.groupby(["file", "size", "checkpoint", "shots"])["score"].agg(["mean", "size"]).unstack("shots")
    )
    if wide.empty:
        return pd.DataFrame(columns=["file", "size", "checkpoint", "zero", "one", "n", "pp", "relative"])
    out = pd.DataFrame({"zero": wide[("mean", 0)], "one": wide[("mean", 1)], "n": wide[("size", 0)]}).reset_index()
    out["pp"] = 100 * (out["one"] - out["zero"])
    out["relative"] = out["pp"] / out["zero"].where(out["zero"] > 0)
    return out


def _few_shot(data: Published) -> Iterator[tuple[tuple[str, str], Number]]:
    names = {
        "zero": "zero-shot mean",
        "one": "one-shot mean",
        "pp": "one-shot gain (pp)",
        "relative": "one-shot gain (%)",
    }
    table = gains(data)
    # The numbers of the paper are those of the 6 prompts of the pilot; other prompt sets have other files.
    table = table[table["n"] == 6] if (table["n"] == 6).any() else table
    for (size, checkpoint), part in table.groupby(["size", "checkpoint"]):
        row = part.iloc[0]
        for column, what in names.items():
            value, reason = float(row[column]), None
            if len(part) > 1:
                value, reason = np.nan, f"{len(part)} files for it: {', '.join(part['file'])}"
            elif np.isnan(value):
                reason = "the zero-shot score is 0"
            yield (what, f"{size} {checkpoint}"), Number(None if np.isnan(value) else value, int(row["n"]), reason)


def effects(data: Published) -> pd.DataFrame:
    """The effects of ablation: a row per file and task, from counts where these are stored.

    The task "combined" averages the drops of both tasks, as the reference study does.

    Columns
    n, trials: number of items and of random trials
    baseline, top, random, bottom: mean outcomes
    top_drop, random_drop: baseline less outcome
    specificity: top_drop less random_drop
    """
    cells = data.ablation.assign(
        exact=(data.ablation["correct"] / data.ablation["total"]).astype(float).fillna(data.ablation["value"])
    )
    out = []
    for (file, size, checkpoint, task), part in cells.groupby(["file", "size", "checkpoint", "task"], sort=False):
        level = part.groupby("condition")["exact"].mean().reindex(["baseline", "top", "random", "bottom"])
        total = part["total"].dropna().unique()
        n = int(total[0]) if len(total) == 1 else None
        drop_top, drop_random = level["baseline"] - level["top"], level["baseline"] - level["random"]
        trials = int((part["condition"] == "random").sum())
        out.append([file, size, checkpoint, task, n, trials, *level, drop_top, drop_random, drop_top - drop_random])
    columns = ["file", "size", "checkpoint", "task", "n", "trials", "baseline", "top", "random", "bottom"]
    frame = pd.DataFrame(out, columns=[*columns, "top_drop", "random_drop", "specificity"])
    return pd.concat([frame, *_combined(frame)], ignore_index=True)


def _combined(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, part in frame.groupby("file", sort=False):
        if set(part["task"]) == {"recognition", "generation"}:
            columns = ["top_drop", "random_drop", "specificity"]
            head = part.iloc[[0]][["file", "size", "checkpoint", "trials"]]
            yield head.assign(task="combined", **{c: [part[c].mean()] for c in columns})


def _ablation(data: Published) -> Iterator[tuple[tuple[str, str], Number]]:
    """The numbers of ablations; the two prompt sets of the paper differ in their number of recognition items."""
    labels = {6: "ablation", 205: "ablation of 41 terms"}
    table = effects(data)
    items = table[table["task"] == "recognition"].set_index("file")["n"].to_dict()
    for row in table.to_dict("records"):
        label = labels.get(items.get(row["file"], 0))
        if label is None:
            continue
        name, task = f"{row['size']} {row['checkpoint']}", row["task"]
        n = None if pd.isna(row["n"]) else int(row["n"])
        if task == "combined":
            yield (f"{label}, combined specificity", name), Number(float(row["specificity"]))
            continue
        shown = {
            "baseline": row["baseline"],
            "top": row["top"],
            "random mean": row["random"],
            "bottom": row["bottom"],
            "top change": -row["top_drop"],
            "specificity": row["specificity"],
        }
        for what, value in shown.items():
            if not pd.isna(value):
                yield (f"{label}, {task}", f"{name} {what}"), Number(float(value), n)


def _terms(data: Published) -> Iterator[tuple[tuple[str, str], Number]]:
    """The numbers from the term table and the correlations of each term."""
    base = "term table, steps"
    for span, low, high in (("0-15k", 0, 15_000), ("120-143k", 120_000, 143_000)):
        part = data.terms[data.terms["step"].between(low, high)] if len(data.terms) else data.terms
        if len(part):
            rank = spearman(part["eb_star"], part["beh_avg"])
            yield (f"{base} {span}: rho", "all sizes"), Number(rank.rho, rank.n, rank.reason)
            yield (f"{base} {span}: p", "all sizes"), Number(rank.p, rank.n, rank.reason)
    for size, part in data.lead.dropna(subset=["r_lead", "r_lag"]).groupby("size"):
        leads, n = int((part["r_lead"] > part["r_lag"]).sum()), len(part)
        p = binomial_p(leads, n)
        yield ("share of terms that EB* leads (%)", str(size)), Number(100 * leads / n, n)
        yield ("terms that EB* leads: binomial p", str(size)), Number(p, n)
    for size, part in data.decoupling.dropna(subset=["rho_late"]).groupby("size"):
        yield ("mean rho_late over terms", str(size)), Number(float(part["rho_late"].mean()), len(part))
