"""The effect of ablation: drops, specificity compared with random head sets, and a verdict with its rule."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bindscope.stats.compare import paired_difference, permutation_p
from bindscope.stats.correlate import Undefined

Floats = NDArray[np.float64]
_PLACE = ["suite", "revision", "step"]
_CONDITION = ["ranking", "mode", "k"]
#: Outcome, task of its prompts, column.
OUTCOMES = (
    ("accuracy", "recognition", "score"),
    ("margin", "recognition", "margin"),
    ("generation", "generation", "score"),
)
#: Above this baseline accuracy the questions are too easy; below chance plus this value the accuracy cannot drop.
CEILING, ABOVE_CHANCE = 0.95, 0.05
#: "no effect" means that the 90% interval of the specificity is within +- this bound (margin: nats per token).
BOUNDS = {"accuracy": 0.05, "margin": 0.05}

RULES = {
    "coupled": "p <= alpha and the 95% interval over terms above 0: the top heads cost more than random ones",
    "suppressor": "p of the other side <= alpha and the 95% interval below 0: the top heads cost less than random ones",
    "ceiling": f"baseline accuracy >= {CEILING}: the questions leave too little room",
    "floor": f"baseline accuracy <= chance + {ABOVE_CHANCE}: there is nothing to lose",
    "no effect": "the 90% interval of the specificity lies inside the equivalence bound",
    "no evidence": "none of the other rules applies",
}


def effects(ablation: pd.DataFrame, sets: pd.DataFrame, chance: float, alpha: float = 0.05) -> pd.DataFrame:
    """A row per suite, checkpoint, ranking, mode, size and outcome (accuracy, margin, generation).

    ablation, sets: the stored tables ablation and ablation_sets
    chance: accuracy of guessing
    alpha: significance level

    Columns
    baseline, top, bottom, random: mean outcomes
    drop_top, drop_bottom, drop_random: baseline less outcome
    specificity: drop under the top set less the mean drop under random sets, with p = (b + 1) / (R + 1), one-sided, and
        the 95% interval of the paired difference over terms (jackknife)
    loss_top, loss_bottom, loss_random: change of the loss on neutral text (nats per token)
    verdict, rule: the verdict and its rule, see `RULES`
    """
    rows = []
    if ablation.empty:
        return pd.DataFrame()
    for place, part in ablation.groupby(_PLACE, sort=False, dropna=False):
        its_sets = sets[(sets["suite"] == place[0]) & (sets["revision"] == place[1])]
        loss = float(its_sets.loc[its_sets["set"] == "baseline", "neutral_loss"].iloc[0])
        base = part[part["set"] == "baseline"]
        for condition, cell in part[part["set"] != "baseline"].groupby(_CONDITION, sort=False):
            losses = _losses(its_sets, condition, loss)
            for outcome, task, column in OUTCOMES:
                values = _values(base, cell, task, column)
                if values is not None:
                    effect = _effect(values, outcome, chance, alpha)
                    identity = dict(zip((*_PLACE, *_CONDITION), (*place, *condition), strict=True))
                    rows.append(identity | {"outcome": outcome} | effect | losses)
    return pd.DataFrame(rows)


def _losses(sets: pd.DataFrame, condition: tuple[Any, ...], base: float) -> dict[str, float]:
    chosen = sets[(sets[_CONDITION] == list(condition)).all(axis=1)]
    return {
        f"loss_{name}": float(chosen.loc[chosen["set"] == name, "neutral_loss"].mean()) - base
        for name in ("top", "bottom", "random")
    }


def draws(ablation: pd.DataFrame) -> pd.DataFrame:
    """The drop under every set of heads: a row per suite, checkpoint, ranking, mode, size, outcome, set and draw.

    Drops are means over prompts; `effects` computes specificity and p from them. Under the null hypothesis the top set
    is one more random set.

    ablation: the stored table
    """
    rows = []
    if ablation.empty:
        return pd.DataFrame()
    for place, part in ablation.groupby(_PLACE, sort=False, dropna=False):
        base = part[part["set"] == "baseline"]
        for condition, cell in part[part["set"] != "baseline"].groupby(_CONDITION, sort=False):
            identity = dict(zip((*_PLACE, *_CONDITION), (*place, *condition), strict=True))
            for outcome, task, column in OUTCOMES:
                if (values := _values(base, cell, task, column)) is None:
                    continue
                whole = float(values.base.mean())
                for name, each in (("top", [values.top]), ("bottom", [values.bottom]), ("random", values.random)):
                    for draw, outcomes in enumerate(each):
                        drop = whole - float(outcomes.mean())
                        rows.append(identity | {"outcome": outcome, "set": name, "draw": draw, "drop": drop})
    return pd.DataFrame(rows)


def dose(drops: pd.DataFrame) -> pd.DataFrame:
    """The drops by number of heads: a row per suite, checkpoint, ranking, mode, outcome and k.

    It has the drops of the top and the bottom set, and the mean and the central 95% of the random sets.

    drops: the result of `draws`
    """
    keys = [*_PLACE, "ranking", "mode", "outcome", "k"]
    rows = []
    for key, part in drops.groupby(keys, sort=False, dropna=False) if not drops.empty else ():
        by = {name: cell["drop"].to_numpy() for name, cell in part.groupby("set")}
        low, high = np.quantile(by["random"], [0.025, 0.975])
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "top": by["top"][0],
                "bottom": by["bottom"][0],
                "random": float(by["random"].mean()),
                "random_low": float(low),
                "random_high": float(high),
                "sets": len(by["random"]),
            }
        )
    return pd.DataFrame(rows)


class _Values(NamedTuple):
    """One outcome over P prompts.

    base, top, bottom: (P,) without ablation, with the top set, with the bottom set
    random: (R, P) with each random set
    terms: (P,) term of each prompt
    """

    base: Floats
    top: Floats
    bottom: Floats
    random: Floats
    terms: np.ndarray


def _values(base: pd.DataFrame, cell: pd.DataFrame, task: str, column: str) -> _Values | None:
    first = base[base["task"] == task].set_index("prompt")
    if first.empty:
        return None
    wide = cell[cell["task"] == task].pivot_table(index=["set", "draw"], columns="prompt", values=column)[first.index]
    top, bottom, random = (wide.loc[name].to_numpy(dtype=np.float64) for name in ("top", "bottom", "random"))
    return _Values(first[column].to_numpy(np.float64), top[0], bottom[0], random, first["term"].to_numpy())


def _effect(values: _Values, outcome: str, chance: float, alpha: float) -> dict[str, Any]:
    base, top, bottom, random, terms = values
    drops = base.mean() - random.mean(1)
    drop = float(base.mean() - top.mean())
    row: dict[str, Any] = {
        "prompts": len(base),
        "random_sets": len(random),
        "baseline": float(base.mean()),
        "top": float(top.mean()),
        "bottom": float(bottom.mean()),
        "random": float(random.mean()),
        "random_sd": float(drops.std(ddof=1)) if len(drops) > 1 else None,
        "drop_top": drop,
        "drop_bottom": float(base.mean() - bottom.mean()),
        "drop_random": float(drops.mean()),
        "specificity": drop - float(drops.mean()),
        "p": permutation_p(drop, drops),
        "p_less": permutation_p(drop, drops, "less"),
    }
    try:
        wide = paired_difference(random.mean(0), top, terms)
        narrow = paired_difference(random.mean(0), top, terms, level=0.90)
        row |= {"low": wide.low, "high": wide.high, "low_90": narrow.low, "high_90": narrow.high, "reason": None}
    except Undefined as error:
        each = pd.Series(random.mean(0) - top).groupby(terms).mean()
        if len(each) > 1 and float(each.max() - each.min()) < 1e-12:  # all terms have the same value
            row |= dict.fromkeys(("low", "high", "low_90", "high_90"), row["specificity"])
            row |= {"reason": "every term gives the same value"}
        else:
            row |= _no_interval(str(error))
    row["verdict"] = _verdict(row, outcome, chance, alpha)
    row["rule"] = RULES[row["verdict"]]
    return row


def _no_interval(reason: str) -> dict[str, Any]:
    return {"low": None, "high": None, "low_90": None, "high_90": None, "reason": reason}


def _verdict(row: dict[str, Any], outcome: str, chance: float, alpha: float) -> str:
    if outcome == "accuracy" and row["baseline"] >= CEILING and row["p"] > alpha:
        return "ceiling"
    if outcome == "accuracy" and row["baseline"] <= chance + ABOVE_CHANCE:
        return "floor"
    if row["p"] <= alpha and row["low"] is not None and row["low"] > 0:
        return "coupled"
    if row["p_less"] <= alpha and row["high"] is not None and row["high"] < 0:
        return "suppressor"
    bound = BOUNDS.get(outcome, BOUNDS["accuracy"])
    if row["low_90"] is not None and -bound < row["low_90"] and row["high_90"] < bound:
        return "no effect"
    return "no evidence"
