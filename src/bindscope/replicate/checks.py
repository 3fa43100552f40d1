"""Checks the published data for consistency: stored results against the records from which they were computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from bindscope.replicate.numbers import effects, gains, means, pairs, paper
from bindscope.replicate.published import Published

#: Possible generation scores: a third for each keyword, at most 1, less 0.2 for each contradiction, at least 0.
GRID = sorted({max(round(hits / 3 - 0.2 * wrong, 4), 0.0) for hits in range(4) for wrong in range(6)})
_EXACT = 1.5e-6  # six digits are stored
_ROUNDED = 1.01e-4  # four digits are stored, of values that were stored with four


class Check(NamedTuple):
    """The result of one check.

    check: what is checked
    n: number of records
    agree: number of records that pass
    verdict: match, mismatch or not computable
    detail: the first records that fail, and notes
    """

    check: str
    n: int
    agree: int
    verdict: str
    detail: str


def checks(data: Published) -> pd.DataFrame:
    """All checks: a row for each, "not computable" where the folder has no records for it."""
    rows = [*_binding(data), *_behavior(data), *_summary(data), *_few_shot(data), *_ablation(data), *_tables(data)]
    return pd.DataFrame(rows, columns=list(Check._fields))


def _check(what: str, rows: pd.DataFrame, holds: pd.Series | list[bool], note: str = "") -> Check:
    good = np.asarray(holds, dtype=bool)
    if not len(good):
        return Check(check=what, n=0, agree=0, verdict="not computable", detail=note or "no such records in the folder")
    bad = rows[~good]
    named = [c for c in ("size", "model", "checkpoint", "task", "term", "prompt_id", "name") if c in rows]
    named = [c for c in named if not (c == "model" and "size" in named)]
    first = ["; ".join(" ".join(map(str, values)) for values in bad[named].head(3).itertuples(index=False))]
    more = [f"and {len(bad) - 3} more"] if len(bad) > 3 else []
    detail = " ".join([*first, *more, note]).strip()
    return Check(
        check=what, n=len(good), agree=int(good.sum()), verdict="match" if good.all() else "mismatch", detail=detail
    )


def _binding(data: Published) -> Iterator[Check]:
    rows = data.binding
    heads = rows["size"].map(paper()["heads"])
    layers = rows["size"].map(paper()["layers"])
    top = rows["eb_per_layer"].map(max)
    best = [
        0 <= layer < len(values) and abs(values[layer] - max(values)) < _EXACT
        for layer, values in zip(rows["best_layer"], rows["eb_per_layer"], strict=True)
    ]
    yield _check("EB* is the maximum over layers", rows, (rows["eb_star"] - top).abs() < _EXACT)
    yield _check("best layer is where EB* stands", rows, best)
    yield _check("n_term_tokens counts the span's tokens", rows, rows["span_indices"].map(len) == rows["n_term_tokens"])
    known = heads.notna()
    rows, heads = rows[known], heads[known]
    yield _check("one EB for each layer of the model", rows, rows["eb_per_layer"].map(len) == layers[known])
    yield _check("0 <= entropy <= ln H", rows, rows["entropy"].between(-_EXACT, np.log(heads.astype(float)) + _EXACT))
    yield _check("EB* <= 1 - 1/H, its largest value", rows, rows["eb_star"] <= 1 - 1 / heads + _EXACT)


def _behavior(data: Published) -> Iterator[Check]:
    rows = data.behavior
    asked = rows[(rows["task"] == "recognition") & rows["log_probs"].notna() & rows["predicted_idx"].notna()]
    first = [
        int(np.argmax(values)) == index
        for values, index in zip(asked["log_probs"], asked["predicted_idx"], strict=True)
    ]
    yield _check("predicted option has the largest log-probability", asked, first)
    marked = rows[(rows["task"] == "recognition") & rows["is_correct"].notna()]
    yield _check(
        "recognition score is 1 where correct, else 0", marked, marked["score"] == marked["is_correct"].astype(float)
    )
    key = gold(data)
    judged = (
        asked.merge(key, on=["term", "prompt_id", "prompt_template"]) if len(asked) and len(key) else asked.iloc[:0]
    )
    right: list[bool] = []
    if len(judged):
        right = (judged["is_correct"] == (judged["predicted_idx"] == judged["gold"])).tolist()
    yield _check("correct means: the option predicted is the prompt's answer", judged, right)
    completions = rows[rows["task"] == "generation"]
    near = completions["score"].map(lambda score: min(abs(score - value) for value in GRID) < _ROUNDED)
    note = "the hits themselves cannot be counted again: the rubric's keywords are not in these files"
    yield _check("generation score is thirds of keyword hits, less penalties", completions, near, note)
    joined = len(pairs(data))
    n = max(len(data.binding), len(rows))
    whole = "match" if n == joined else "mismatch"
    detail = "" if n == joined else f"{len(data.binding)} binding and {len(rows)} behavior records"
    yield Check(
        check="every record of binding has one of behavior",
        n=n,
        agree=joined,
        verdict=whole if n else "not computable",
        detail=detail,
    )


def gold(data: Published) -> pd.DataFrame:
    """The index of the right answer of every recognition prompt, from the prompt files.

    Prompts for which the files give different answers are left out.
    """
    rows = data.prompts[(data.prompts["task"] == "recognition") & data.prompts["answer_idx"].notna()]
    rows = rows.rename(columns={"template": "prompt_template", "answer_idx": "gold"})
    rows = rows[["term", "prompt_id", "prompt_template", "gold"]].drop_duplicates()
    return rows[~rows.duplicated(["term", "prompt_id", "prompt_template"], keep=False)].astype({"gold": int})


def _summary(data: Published) -> Iterator[Check]:
    if data.summary.empty:
        yield _check("pilot_summary.csv", data.summary, [])
        return
    both = data.summary.merge(means(data), on=["model", "size", "checkpoint"], how="left", suffixes=("", "_again"))
    for column in ("rec_acc", "gen_mean", "beh_avg", "eb_star_mean", "eb_star_max"):
        holds = (both[column] - both[f"{column}_again"]).abs() < _ROUNDED
        yield _check(f"pilot_summary.csv: {column}", both, holds)
    prompts = both["n_prompts"] == both["eb_star_mean_n"]
    yield _check("pilot_summary.csv: n_prompts", both, prompts)
    pilot = data.binding[data.binding["set"] == "pilot"]
    modes = {key: set(part["best_layer"].mode()) for key, part in pilot.groupby(["model", "checkpoint"])}
    keys = both[["model", "checkpoint"]].itertuples(index=False, name=None)
    is_mode = [layer in modes.get(key, set()) for key, layer in zip(keys, both["best_layer_mode"], strict=True)]
    yield _check("pilot_summary.csv: best_layer_mode", both, is_mode, "any of the most frequent layers counts")


def _few_shot(data: Published) -> Iterator[Check]:
    again = gains(data).merge(data.few_shot_stored, on=["file", "size", "checkpoint"], suffixes=("", "_stored"))
    for column, digits in (("zero", 4), ("one", 4), ("pp", 1)):
        # The stored gain was computed from unrounded means, the details are rounded.
        holds = (again[column] - again[f"{column}_stored"]).abs() < _ROUNDED * 10 ** (4 - digits) * (
            1 if digits == 4 else 0.6
        )
        yield _check(f"few-shot file: {column} from its details", again, holds)
    share = again.dropna(subset=["relative", "relative_stored"])
    yield _check("few-shot file: relative gain", share, (share["relative"] - share["relative_stored"]).abs() < 0.1)
    zero = data.few_shot[data.few_shot["shots"] == 0]
    completions = data.behavior[data.behavior["task"] == "generation"][
        ["size", "checkpoint", "term", "prompt_template", "score"]
    ].drop_duplicates()
    both = (
        zero.merge(
            completions,
            left_on=["size", "checkpoint", "term", "template"],
            right_on=["size", "checkpoint", "term", "prompt_template"],
            suffixes=("", "_behavior"),
        )
        if len(zero) and len(completions)
        else zero.iloc[:0].assign(score_behavior=0.0)
    )
    yield _check("zero-shot scores equal the behavior records'", both, both["score"] == both["score_behavior"])
    one = data.few_shot[data.few_shot["shots"] == 1]
    if data.prompts.empty:
        one = one.iloc[:0]
    used = one["template"].isin(set(data.prompts["template"]))
    yield _check("one-shot texts used stand in the prompt files", one, used)


def _ablation(data: Published) -> Iterator[Check]:
    counted = data.ablation.dropna(subset=["correct", "total"])
    ratio = (counted["correct"] / counted["total"]).astype(float)
    yield _check("ablation accuracy is correct / total", counted, (ratio - counted["value"]).abs() < _EXACT)
    computed = effects(data).set_index(["file", "task"])
    names = {
        "top_rec_drop": ("recognition", "top_drop"),
        "top_gen_drop": ("generation", "top_drop"),
        "mean_random_rec_drop": ("recognition", "random_drop"),
        "mean_random_gen_drop": ("generation", "random_drop"),
    }
    rows, holds = [], []
    for row in data.ablation_stored.to_dict("records"):
        task, column = names.get(row["name"], ("combined", "specificity"))
        if row["name"] == "specificity" and (row["file"], "combined") not in computed.index:
            task = "recognition"
        if row["name"] in (*names, "specificity") and (row["file"], task) in computed.index:
            rows.append(row)
            holds.append(abs(float(computed.loc[(row["file"], task), column]) - row["value"]) < 2 * _ROUNDED)
    yield _check("ablation: stored drops and specificity", pd.DataFrame(rows), holds)


def _tables(data: Published) -> Iterator[Check]:
    rows = data.decoupling.dropna(subset=["rho_early", "rho_late", "decouple_strict"])
    rule = (rows["rho_early"] > 0) & (rows["rho_late"] <= 0)
    if len(data.decoupling):
        yield _check("strict decoupling is rho_early > 0, rho_late <= 0", rows, rule == rows["decouple_strict"])
    rows = data.tokenization
    if len(rows):
        yield _check("token table: n_tokens counts the ids", rows, rows["token_ids"].map(len) == rows["n_tokens"])
