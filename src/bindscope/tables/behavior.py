"""Behavior: Beh of each term, preference for positions of options, few-shot gains, spread over sampling seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bindscope.stats.resample import cluster_mean

_PLACE = ["suite", "revision", "step"]
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SHOTS = {"exemplar": "exemplar", "paraphrase": "paraphrased", "mismatched": "mismatched"}


def behavior(recognition: pd.DataFrame, generation: pd.DataFrame) -> pd.DataFrame:
    """Beh per suite, checkpoint and term: the mean of recognition accuracy and generation score (Tran 2026).

    recognition, generation: the stored tables; either may be empty

    Columns
    recognition: accuracy, mean over questions and rotations, by the score per token
    generation: mean rubric score
    beh: mean of the two, NaN where one is missing, since a mean of one task cannot be compared with a mean of two
    reason: which of the two is missing
    """
    keys = [*_PLACE, "term"]
    parts = []
    for frame, column, name in ((recognition, "correct_per_token", "recognition"), (generation, "score", "generation")):
        means = (
            pd.DataFrame(columns=[*keys, name])
            if frame.empty
            else (frame.groupby(keys, sort=False, dropna=False)[column].mean().rename(name).reset_index())
        )
        parts.append(means)
    kept = [part for part in parts if not part.empty]
    if not kept:
        return pd.DataFrame(columns=[*keys, "recognition", "generation", "beh", "reason"])
    table = kept[0] if len(kept) == 1 else kept[0].merge(kept[1], on=keys, how="outer", sort=False)
    for name in ("recognition", "generation"):
        table[name] = table[name].astype(float) if name in table else np.nan
    table["beh"] = (table["recognition"] + table["generation"]) / 2
    reasons = {"recognition": "no recognition questions are stored", "generation": "no generated answers are stored"}
    table["reason"] = None
    for name, reason in reasons.items():
        table.loc[table[name].isna(), "reason"] = reason
    return table


def positions(recognition: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by position of the right option, and how often each position is chosen, by suite and checkpoint.

    recognition: the stored table; only questions with listed options count

    Columns
    position: the position, as a letter
    n: questions whose right option is there
    accuracy: of these questions
    chosen: share of all questions for which the model chooses this position; 1 / places without a preference
    places: number of positions
    """
    columns = [*_PLACE, "position", "n", "accuracy", "chosen", "places"]
    if recognition.empty or not (recognition["format"] == "listed").any():
        return pd.DataFrame(columns=columns)
    rows = []
    shown = recognition[recognition["format"] == "listed"]
    for place, part in shown.groupby(_PLACE, sort=False, dropna=False):
        for position in range(int(part["choices"].map(len).max())):
            here = part[part["gold"] == position]
            rows.append(
                {
                    **dict(zip(_PLACE, place, strict=True)),
                    "position": _LETTERS[position] if position < len(_LETTERS) else str(position + 1),
                    "n": len(here),
                    "accuracy": float(here["correct_per_token"].mean()) if len(here) else np.nan,
                    "chosen": float((part["predicted_per_token"] == position).mean()),
                    "places": int(part["choices"].map(len).max()),
                }
            )
    return pd.DataFrame(rows, columns=columns)


def scoring(recognition: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and margin under every score, by suite, checkpoint and format, with bootstrap intervals over terms."""
    rows = []
    if not recognition.empty:
        for place, part in recognition.groupby([*_PLACE, "format"], sort=False, dropna=False):
            for score in ("per_token", "raw", "per_byte", "pmi"):
                accuracy = cluster_mean(part[f"correct_{score}"].astype(float), part["term"])
                rows.append(
                    {
                        **dict(zip([*_PLACE, "format"], place, strict=True)),
                        "score": score,
                        "n": len(part),
                        "accuracy": accuracy.mean,
                        "low": accuracy.low,
                        "high": accuracy.high,
                        "margin": float(part[f"margin_{score}"].mean()),
                    }
                )
    columns = [*_PLACE, "format", "score", "n", "accuracy", "low", "high", "margin"]
    return pd.DataFrame(rows, columns=columns)


def gains(generation: pd.DataFrame, few_shot: pd.DataFrame) -> pd.DataFrame:
    """Scores of each opening without an exemplar and after each kind of exemplar: a row per suite, checkpoint, opening.

    generation, few_shot: the stored tables

    Columns
    zero, exemplar, paraphrased, mismatched: the scores
    matched: number of keywords in the completion after the term's own exemplar
    copied: number of those keywords that the exemplar contains
    """
    if generation.empty or few_shot.empty:
        return pd.DataFrame()
    keys = [*_PLACE, "question"]
    table = generation[[*keys, "prompt", "term", "kind", "score"]].rename(columns={"score": "zero"})
    for shot, name in _SHOTS.items():
        part = few_shot[few_shot["shot"] == shot]
        if part.empty:
            continue
        columns = {"score": name}
        if shot == "exemplar":
            part = part.assign(matched=part["matched"].map(len), copied=part["copied"].map(len))
            columns |= {"matched": "matched", "copied": "copied"}
        behind = part[[*keys, *columns]].rename(columns=columns)
        table = table.merge(behind, on=keys, validate="one_to_one")
    return table


def shots(gained: pd.DataFrame) -> pd.DataFrame:
    """Means by suite, checkpoint and kind of exemplar: score, gain over no exemplar, bootstrap intervals over terms.

    A kind that was not measured has no row.

    gained: the result of `gains`
    """
    rows = []
    for place, part in gained.groupby(_PLACE, sort=False, dropna=False) if not gained.empty else ():
        for name in ("zero", *_SHOTS.values()):
            if name not in part:
                continue
            score = cluster_mean(part[name], part["term"])
            row = dict(zip(_PLACE, place, strict=True)) | {"exemplar": name, "prompts": len(part), "score": score.mean}
            row |= {"score_low": score.low, "score_high": score.high}
            if name != "zero":
                gain = cluster_mean(part[name] - part["zero"], part["term"])
                row |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
            if name == "exemplar":
                row |= {"matched": int(part["matched"].sum()), "copied": int(part["copied"].sum())}
            rows.append(row)
    return pd.DataFrame(rows)


def variability(table: pd.DataFrame) -> pd.DataFrame:
    """Spread of the rubric score over seeds, by suite, checkpoint, temperature and term.

    table: the stored table variability

    Columns
    mean: mean score over prompts and seeds
    sd: standard deviation (n - 1) of a prompt's score over seeds, mean over prompts
    texts: distinct completions of a prompt divided by the number of seeds, mean over prompts
    """
    columns = [*_PLACE, "temperature", "term", "prompts", "seeds", "mean", "sd", "texts"]
    if table.empty:
        return pd.DataFrame(columns=columns)
    per = table.groupby([*_PLACE, "temperature", "term", "prompt"], sort=False, dropna=False)
    prompts = per.agg(
        mean=("score", "mean"),
        sd=("score", "std"),
        texts=("text", lambda s: s.nunique() / len(s)),
        seeds=("seed", "size"),
    ).reset_index()
    terms = prompts.groupby([*_PLACE, "temperature", "term"], sort=False, dropna=False)
    out = terms.agg(
        prompts=("prompt", "size"),
        seeds=("seeds", "min"),
        mean=("mean", "mean"),
        sd=("sd", "mean"),
        texts=("texts", "mean"),
    )
    return out.reset_index()[columns]
