"""Each claim of the study on a run's own measurements: the published statistic and, beside it, the controlled one.

A function per claim takes the observations of one suite (`stats.observations`) and gives `Result` rows. A statistic
that the data cannot carry is a row without a value, with the reason. What is known of a question is its accuracy
(mean over rotations) or its margin. Where generated answers are stored, what is known of a term is Beh, the mean of its
recognition accuracy and its generation score, as in the study; else its accuracy. A row says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bindscope.stats.ablation import caused
from bindscope.stats.compare import binomial_p, wilson
from bindscope.stats.contrasts import discriminant, exemplars
from bindscope.stats.correlate import (
    Undefined,
    clustered_repeated,
    clustered_spearman,
    mixed_slope,
    spearman,
    spearman_of_means,
)
from bindscope.stats.emergence import crossings, paired_emergence, turnbull
from bindscope.stats.frames import robustness, stability
from bindscope.stats.leadlag import lead_lag, surrogate_null
from bindscope.stats.observations import by_term
from bindscope.stats.result import Result, interval, row

PAIRS = "question x checkpoint"
#: Emergence thresholds: shares of the way from the first to the highest mean of all terms. The middle one is reported.
THRESHOLDS = (0.25, 0.5, 0.75)


def claims(
    table: pd.DataFrame,
    carried: pd.DataFrame | None = None,
    gained: pd.DataFrame | None = None,
    edited: pd.DataFrame | None = None,
) -> list[Result]:
    """All claims on one suite's observations, in the study's order.

    carried: `groups.carried`, real terms and controls in carrier sentences; gained: `behavior.gains`, scores with and
    without exemplars; edited: `ablation.effects`. V, C3 and C5 are read at the last checkpoint.
    """
    kept = table[table["eb_star"].notna()]
    asked = kept[kept["task"] == "recognition"]
    return [
        *_validity(carried),
        *coupling(kept),
        *precedence(kept),
        *stability(asked),
        *_unlocked(gained),
        *decoupling(kept),
        *_caused(edited),
        *robustness(asked),
    ]


def _validity(carried: pd.DataFrame | None) -> Iterator[Result]:
    if carried is None or set(carried.get("group", ())) <= {"real"}:
        yield from _not_here(
            "V", "discriminant validity", "real terms against controls", "the run has no control terms"
        )
        return
    yield from discriminant(carried[carried["revision"] == carried["revision"].iloc[-1]])


def _unlocked(gained: pd.DataFrame | None) -> Iterator[Result]:
    if gained is None or gained.empty or "exemplar" not in gained:
        yield from _not_here("C3", "unlockability", "few-shot minus zero-shot score", "the run has no few-shot answers")
        return
    yield from exemplars(gained[gained["revision"] == gained["revision"].iloc[-1]])


def _caused(edited: pd.DataFrame | None) -> Iterator[Result]:
    if edited is None or edited.empty:
        yield from _not_here(
            "C5", "causal effect", "specificity of ablating the binding heads", "the run has no ablations"
        )
        return
    yield from caused(edited[edited["revision"] == edited["revision"].iloc[-1]])


def _not_here(claim: str, name: str, quantity: str, reason: str) -> Iterator[Result]:
    for reading in ("published", "controlled"):
        yield Result(claim, quantity, reading, None, 0, "-", name, reason=reason)


def windows(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All checkpoints, the first half and the last half of them (the study: 0-3 and 4-7 of eight)."""
    count = int(table["t"].max()) + 1 if len(table) else 0
    parts = {"all checkpoints": table}
    if count >= 4:
        parts["early half"] = table[table["t"] < count // 2]
        parts["late half"] = table[table["t"] >= count - count // 2]
    return parts


def coupling(table: pd.DataFrame) -> Iterator[Result]:
    """C1-A (and C4-A, the same in its windows): does binding go with knowing?"""
    if (table["task"] == "generation").any():
        for name, part in windows(table).items():
            yield row(
                "C1-A" if name == "all checkpoints" else "C4-A", f"rho(EB*, behavior), {name}", "published",
                "prompt x checkpoint", "Spearman over questions (accuracy) and openings (rubric score), pairs taken as "
                "independent", len(part), partial(_published, part, "behavior"),
            )  # fmt: skip
            yield row(
                "C1-A" if name == "all checkpoints" else "C4-A",
                f"rho(EB*, behavior), {name}, within checkpoints and tasks", "controlled",
                "prompt x checkpoint",
                "Spearman, ranked within each checkpoint and task, terms redrawn", len(part),
                partial(_within_tasks, part),
            )  # fmt: skip
    table = table[table["task"] == "recognition"]
    for name, part in windows(table).items():
        claim = "C1-A" if name == "all checkpoints" else "C4-A"
        yield row(
            claim, f"rho(EB*, accuracy), {name}", "published", PAIRS, "Spearman, pairs taken as independent", len(part),
            partial(_published, part, "accuracy"),
        )  # fmt: skip
        yield from _clustered(claim, name, part, "eb_star", "accuracy")
        yield from _clustered(claim, name, part, "position_excess", "margin")
    later = table[table["t"] > 0]
    yield from _clustered("C1-A", "without the first checkpoint", later, "eb_star", "accuracy")
    yield row(
        "C1-A", "rho(EB*, accuracy), means of terms", "controlled", "term", "Spearman of term means", len(table),
        lambda: _plain(spearman_of_means(table["eb_star"], table["accuracy"], table["term"])),
    )  # fmt: skip
    yield row(
        "C1-A", "r(EB*, accuracy) within terms and checkpoints", "controlled", PAIRS, "repeated-measures r (Bland & "
        "Altman 1995) with checkpoints taken out; jackknife over terms", len(table),
        lambda: _repeated(table),
    )  # fmt: skip
    yield row(
        "C1-A", "slope of accuracy on EB*", "controlled", PAIRS, "mixed model: checkpoint fixed, term random; "
        "jackknife over terms", len(table),
        lambda: _mixed(table),
    )  # fmt: skip


def _published(part: pd.DataFrame, known: str) -> dict[str, Any]:
    return _plain(spearman(part["eb_star"], part[known]))


def _within_tasks(part: pd.DataFrame) -> dict[str, Any]:
    blocks = part["t"].astype(str) + part["task"]
    return interval(clustered_spearman(part["eb_star"], part["behavior"], part["term"], within=blocks))


def _plain(found: Any) -> dict[str, Any]:
    return {"value": found.rho, "p": found.p, "n": found.n}


def _clustered(claim: str, name: str, part: pd.DataFrame, x: str, y: str) -> Iterator[Result]:
    labels = {"eb_star": "EB*", "position_excess": "excess at like positions"}
    used = part[part[x].notna()]
    for within in (None, "t"):
        how = "terms redrawn" if within is None else "ranked within each checkpoint, terms redrawn"
        suffix = "" if within is None else ", within checkpoints"

        def compute(u: pd.DataFrame = used, w: str | None = within) -> dict[str, Any]:
            blocks = None if w is None else u[w]
            found = clustered_spearman(u[x], u[y], u["term"], within=blocks)
            return interval(found)

        quantity = f"rho({labels[x]}, {y}), {name}{suffix}"
        yield row(claim, quantity, "controlled", PAIRS, f"Spearman, {how}", len(used), compute)


def _repeated(table: pd.DataFrame) -> dict[str, Any]:
    return interval(clustered_repeated(table["eb_star"], table["accuracy"], table["term"], within=table["t"]))


def _mixed(table: pd.DataFrame) -> dict[str, Any]:
    found = mixed_slope(table["accuracy"], table["eb_star"], table["t"], table["term"])
    return {
        "value": found.slope, "low": found.low, "high": found.high, "p": found.p, "n": found.n,
        "clusters": found.clusters, "cluster": "term",
    }  # fmt: skip


def series(table: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Terms with EB* and behavior at every checkpoint, and both as arrays (terms, checkpoints).

    Behavior is the mean over tasks (recognition, and generation where stored) of the means over prompts.
    """
    names, eb = by_term(table, "eb_star")
    tasks = [by_term(part, "behavior") for _, part in table.groupby("task")]
    both = [name for name in names if all(name in others for others, _ in tasks)]
    known = [values[[others.index(n) for n in both]] for others, values in tasks]
    return both, eb[[names.index(n) for n in both]], np.mean(known, axis=0) if known else np.empty((0, 0))


def _word(table: pd.DataFrame) -> str:
    return "Beh" if (table["task"] == "generation").any() else "accuracy"


def precedence(table: pd.DataFrame) -> Iterator[Result]:
    """C1-B: does binding come before knowing?"""
    names, eb, known = series(table)
    yield row(
        "C1-B", "share of terms that EB* leads", "published", "term", "cross-lagged r; binomial over terms, taken as "
        "independent; Wilson interval", len(names),
        lambda: _lead(eb, known),
    )  # fmt: skip
    yield row(
        "C1-B", "share of terms that EB* leads", "controlled", "term", "p from runs simulated with the same trends and "
        "noise in which nothing leads; the interval is that of the null", len(names),
        lambda: _surrogate(eb, known),
    )  # fmt: skip
    for label, values in (("EB*", eb), (_word(table), known)):
        yield row(
            "C1-B", f"median step at which {label} reaches half of its rise", "controlled", "term", "Turnbull's "
            "estimate from interval-censored crossings; it lies between the two checkpoints given", len(names),
            partial(_median, table, values),
        )  # fmt: skip
    for share in THRESHOLDS:
        yield row(
            "C1-B", f"terms bound surely before known less surely after, threshold {share:.2f}", "controlled", "term",
            "interval-censored first crossing of the share of the way from first to highest mean; sign test on decided",
            len(names), partial(_order, table, eb, known, share),
        )  # fmt: skip


def _median(table: pd.DataFrame, values: np.ndarray) -> dict[str, Any]:
    if len(values) == 0:
        raise Undefined("no term has a value at every checkpoint")
    (left,), (right,) = crossings(_steps(table), values, [thresholds(values, 0.5)])
    found = turnbull(left, right)
    if not np.isfinite(found.median_right):
        raise Undefined("fewer than half of the terms reach the threshold")
    return {"value": found.median_right, "low": found.median_left, "high": found.median_right, "n": found.n}


def _lead(eb: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    found = lead_lag(eb, known)
    return {"value": found.fraction, "low": found.low, "high": found.high, "p": found.p, "n": found.n}


def _surrogate(eb: np.ndarray, known: np.ndarray) -> dict[str, Any]:
    found = surrogate_null(eb, known)
    return {
        "value": found.fraction, "low": found.null_low, "high": found.null_high, "p": found.p, "n": found.n,
        "clusters": 1, "cluster": "training run",
    }  # fmt: skip


def thresholds(values: np.ndarray, share: float) -> float:
    """The value at this share of the way from the first checkpoint's mean over terms to the highest one."""
    means = values.mean(0)
    if len(means) < 2 or means.max() <= means[0]:
        raise Undefined("the mean over terms never rises above its first checkpoint")
    return float(means[0] + share * (means.max() - means[0]))


def _steps(table: pd.DataFrame) -> np.ndarray:
    steps = table.drop_duplicates("t").sort_values("t")["step"]
    if steps.isna().any():
        raise Undefined("the steps of the checkpoints are not known")
    return steps.to_numpy(dtype=np.float64)


def _order(table: pd.DataFrame, eb: np.ndarray, known: np.ndarray, share: float) -> dict[str, Any]:
    if len(eb) == 0:
        raise Undefined("no term has a value at every checkpoint")
    steps = _steps(table)
    (bl,), (br,) = crossings(steps, eb, [thresholds(eb, share)])
    (kl,), (kr,) = crossings(steps, known, [thresholds(known, share)])
    found = paired_emergence(bl, br, kl, kr)
    return {
        "value": float(found.earlier - found.later), "p": found.p, "n": found.n, "clusters": 1,
        "cluster": "training run",
        "reason": f"{found.earlier} before, {found.later} after, {found.undecided} cannot be told",
    }  # fmt: skip


def emergence(table: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """Per term the interval (left, right] of steps in which EB* and behavior first reach their thresholds.

    Raises Undefined where a threshold cannot be set.
    """
    names, eb, known = series(table)
    if not names:
        raise Undefined("no term has binding and behavior at every checkpoint")
    steps = _steps(table)
    out = pd.DataFrame({"term": names})
    for label, values in (("binding", eb), ("knowing", known)):
        limit = thresholds(values, share)
        (left,), (right,) = crossings(steps, values, [limit])
        out[f"{label}_left"], out[f"{label}_right"], out[f"{label}_threshold"] = left, right, limit
    return out


def decoupling(table: pd.DataFrame) -> Iterator[Result]:
    """C4-B: per term, rho over the early and over the late checkpoints; decoupled if early > 0 and late <= 0."""
    names, eb, known = series(table)
    half = eb.shape[1] // 2 if eb.size else 0
    method = "per-term Spearman over early and late checkpoints; Wilson interval, terms taken as independent"
    yield row(
        "C4-B", "share of terms that decouple", "published", "term", method, len(names),
        lambda: _decoupled(eb, known, half)[0],
    )  # fmt: skip
    yield row(
        "C4-B", "the same share if halves had nothing to do with each other", "controlled", "term", "the rule on "
        "accuracy permuted within each half, 500 times; p: observed share against this chance", len(names),
        lambda: _decoupled(eb, known, half)[1],
    )  # fmt: skip


def _decoupled(eb: np.ndarray, known: np.ndarray, half: int) -> tuple[dict[str, Any], dict[str, Any]]:
    if half < 3:
        raise Undefined(f"{half} checkpoints in a half; a rank correlation needs 3")
    rng = np.random.default_rng(0)
    hits = _strict(eb, known, half)
    kept = ~np.isnan(hits)
    n, k = int(kept.sum()), int(np.nansum(hits))
    if n == 0:
        raise Undefined("in every term EB* or accuracy is constant over a half")
    chance = []
    for _ in range(500):
        shuffled = np.concatenate([rng.permuted(known[:, :half], axis=1), rng.permuted(known[:, -half:], axis=1)], 1)
        chance.append(np.nanmean(_strict(np.concatenate([eb[:, :half], eb[:, -half:]], 1), shuffled, half)))
    share, rate = wilson(k, n), float(np.mean(chance))
    observed = {"value": share.value, "low": share.low, "high": share.high, "p": binomial_p(k, n), "n": n}
    return observed, {"value": rate, "p": binomial_p(k, n, rate), "n": n, "clusters": 1, "cluster": "training run"}


def halves(table: pd.DataFrame) -> pd.DataFrame:
    """What C4-B counts: per term the rank correlation of EB* and behavior over the early and over the late checkpoints,
    and whether they decouple (early > 0 and late <= 0); terms that are constant over a half are left out. Empty below
    six checkpoints."""
    names, eb, known = series(table)
    half = eb.shape[1] // 2 if eb.size else 0
    if half < 3:
        return pd.DataFrame(columns=["term", "early", "late", "decoupled"])
    early, late = (_rank_correlation(eb[:, cut], known[:, cut]) for cut in (slice(0, half), slice(-half, None)))
    out = pd.DataFrame({"term": names, "early": early, "late": late}).dropna()
    return out.assign(decoupled=(out["early"] > 0) & (out["late"] <= 0))


def paths(table: pd.DataFrame) -> pd.DataFrame:
    """A row per term and checkpoint: t, step, EB* and behavior, means over the term's prompts and tasks, and the half
    of training (early, late, or the middle checkpoint of an odd number) where there are four checkpoints or more."""
    names, eb, known = series(table)
    order = table.drop_duplicates("t").sort_values("t")
    count, half = len(order), len(order) // 2
    when = ["early" if t < half else "late" if t >= count - half else "middle" for t in range(count)]
    rows = [
        {"term": name, "t": t, "revision": place.revision, "step": place.step, "eb_star": eb[i, t],
         "behavior": known[i, t], "half": when[t] if count >= 4 else None}
        for i, name in enumerate(names) for t, place in enumerate(order.itertuples())
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["term", "t", "revision", "step", "eb_star", "behavior", "half"])


def _strict(eb: np.ndarray, known: np.ndarray, half: int) -> np.ndarray:
    """1 where a term decouples, 0 where not, NaN where a half is constant."""
    early = _rank_correlation(eb[:, :half], known[:, :half])
    late = _rank_correlation(eb[:, -half:], known[:, -half:])
    return np.where(np.isnan(early) | np.isnan(late), np.nan, (early > 0) & (late <= 0))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = (pd.DataFrame(v).rank(axis=1).to_numpy() for v in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    bottom = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.asarray(np.divide((a * b).sum(1), bottom, out=np.full(len(a), np.nan), where=bottom > 0))
