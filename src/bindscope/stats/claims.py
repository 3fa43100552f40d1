"""Each claim of the study on a run's own measurements: the published statistic and, beside it, the controlled one.

A function per claim takes the observations of one suite (`stats.observations`) and gives `Result` rows. A statistic
that the data cannot carry is a row without a value, with the reason. Behavior is recognition accuracy (mean over
rotations) unless a row says margin; the study's own behavior score also averages generated answers in.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from bindscope.stats.compare import binomial_p, wilson
from bindscope.stats.correlate import (
    Undefined,
    clustered_repeated,
    clustered_spearman,
    mixed_slope,
    spearman,
    spearman_of_means,
)
from bindscope.stats.emergence import crossings, paired_emergence, turnbull
from bindscope.stats.leadlag import lead_lag, surrogate_null, swap_test
from bindscope.stats.observations import by_term
from bindscope.stats.result import Reading, Result, row
from bindscope.stats.variance import components, cv, icc

PAIRS = "question x checkpoint"
#: Emergence thresholds: shares of the way from the first to the highest mean of all terms. The middle one is reported.
THRESHOLDS = (0.25, 0.5, 0.75)


def claims(table: pd.DataFrame) -> list[Result]:
    """All claims on one suite's observations, in the study's order."""
    kept = table[table["eb_star"].notna()]
    return [
        *_not_here("V", "discriminant validity", "real terms against control groups", "the run has no control terms"),
        *coupling(kept),
        *precedence(kept),
        *stability(kept),
        *_not_here("C3", "unlockability", "few-shot minus zero-shot score", "the run has no generated answers"),
        *decoupling(kept),
        *_not_here("C5", "causal effect", "specificity of ablating the binding heads", "the run has no ablations"),
        *robustness(kept),
    ]


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
    for name, part in windows(table).items():
        claim = "C1-A" if name == "all checkpoints" else "C4-A"
        yield row(
            claim, f"rho(EB*, accuracy), {name}", "published", PAIRS, "Spearman, pairs taken as independent", len(part),
            partial(_published, part),
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


def _published(part: pd.DataFrame) -> dict[str, Any]:
    return _plain(spearman(part["eb_star"], part["accuracy"]))


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
            return _interval(found)

        quantity = f"rho({labels[x]}, {y}), {name}{suffix}"
        yield row(claim, quantity, "controlled", PAIRS, f"Spearman, {how}", len(used), compute)


def _interval(found: Any) -> dict[str, Any]:
    return {
        "value": found.value, "low": found.low, "high": found.high, "p": found.p, "n": found.n,
        "clusters": found.clusters, "cluster": "term",
    }  # fmt: skip


def _repeated(table: pd.DataFrame) -> dict[str, Any]:
    return _interval(clustered_repeated(table["eb_star"], table["accuracy"], table["term"], within=table["t"]))


def _mixed(table: pd.DataFrame) -> dict[str, Any]:
    found = mixed_slope(table["accuracy"], table["eb_star"], table["t"], table["term"])
    return {
        "value": found.slope, "low": found.low, "high": found.high, "p": found.p, "n": found.n,
        "clusters": found.clusters, "cluster": "term",
    }  # fmt: skip


def series(table: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Terms with EB* and accuracy at every checkpoint, and both as arrays (terms, checkpoints)."""
    names, eb = by_term(table, "eb_star")
    others, known = by_term(table, "accuracy")
    both = [name for name in names if name in others]
    return both, eb[[names.index(n) for n in both]], known[[others.index(n) for n in both]]


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
    for label, values in (("EB*", eb), ("accuracy", known)):
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
    """Per term the interval (left, right] of steps in which EB* and accuracy first reach their thresholds.

    Raises Undefined where a threshold cannot be set.
    """
    names, eb, known = series(table)
    steps = _steps(table)
    out = pd.DataFrame({"term": names})
    for label, values in (("binding", eb), ("knowing", known)):
        limit = thresholds(values, share)
        (left,), (right,) = crossings(steps, values, [limit])
        out[f"{label}_left"], out[f"{label}_right"], out[f"{label}_threshold"] = left, right, limit
    return out


def stability(table: pd.DataFrame) -> Iterator[Result]:
    """C2, at the last checkpoint: is EB* a property of the term, or of the sentence? By layer band too."""
    last = table[table["t"] == table["t"].max()] if len(table) else table
    method = "one-way ICC(1): share of variance between terms"
    yield Result("C2", "ICC of EB* by term", "published", None, 0, "question", method, reason="not tested in the study")
    yield row(
        "C2", "ICC of EB* by term", "controlled", "question", method, len(last),
        lambda: _interval(icc(last["eb_star"], last["term"])),
    )  # fmt: skip
    yield row(
        "C2", "ICC of excess by term", "controlled", "question", method, int(last["excess"].notna().sum()),
        lambda: _interval(icc(last["excess"].dropna(), last.loc[last["excess"].notna(), "term"])),
    )  # fmt: skip
    depth = len(last["eb_per_layer"].iloc[0]) if len(last) else 0
    for name, layers in (("early third", slice(0, depth // 3)), ("late two thirds", slice(depth // 3, depth))):
        values = [max(row[layers], default=np.nan) for row in last["eb_per_layer"].map(list)]
        yield row(
            "C2", f"ICC of EB* by term, {name} of the layers", "controlled", "question", method, len(last),
            partial(_band, values, last["term"], depth),
        )  # fmt: skip
    for factor in ("term", "kind"):
        yield row(
            "C2", f"share of the variance of EB* by {factor}", "controlled", "question", "crossed random effects of "
            "term and kind of question", len(last),
            partial(_share, last, factor),
        )  # fmt: skip


def _band(values: list[float], terms: pd.Series, depth: int) -> dict[str, Any]:
    if depth < 3:
        raise Undefined(f"{depth} layers cannot be cut into thirds")
    return _interval(icc(values, terms))


def _share(last: pd.DataFrame, factor: str) -> dict[str, Any]:
    found = components(last["eb_star"], {"term": last["term"], "kind": last["kind"]})
    return {"value": found.share[factor], "n": found.n}


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


def robustness(table: pd.DataFrame) -> Iterator[Result]:
    """How much EB* depends on the sentence, at the last checkpoint."""
    last = table[table["t"] == table["t"].max()] if len(table) else table
    yield row(
        "robustness", "mean CV of EB* over the questions of a term", "published", "term", "standard deviation / mean",
        last["term"].nunique(), lambda: _cv(last),
    )  # fmt: skip
    yield row(
        "robustness", "rho(EB*, prompt length)", "published", "question", "Spearman, questions taken as independent",
        len(last), lambda: _plain(spearman(last["eb_star"], last["n_tokens"])),
    )  # fmt: skip
    yield row(
        "robustness", "rho(EB*, prompt length)", "controlled", "question", "Spearman, terms redrawn", len(last),
        lambda: _interval(clustered_spearman(last["eb_star"], last["n_tokens"], last["term"])),
    )  # fmt: skip
    yield row(
        "robustness", "rho(EB*, tokens of the term)", "controlled", "question", "Spearman, terms redrawn; EB* of a "
        "previous-token head falls as 2/k", len(last),
        lambda: _interval(clustered_spearman(last["eb_star"], last["k"], last["term"])),
    )  # fmt: skip


def _cv(last: pd.DataFrame) -> dict[str, Any]:
    found = cv(last["eb_star"], last["term"])
    kept = found.values[np.isfinite(found.values)]
    if len(kept) < len(found.values) or not len(kept):
        reasons = "; ".join(sorted(set(found.undefined.values()))[:2])
        raise Undefined(f"undefined in {len(found.names) - len(kept)} of {len(found.names)} terms ({reasons})")
    return {"value": float(kept.mean()), "n": len(kept)}


def across_runs(tables: dict[str, pd.DataFrame], per_run: dict[str, list[Result]]) -> list[Result]:
    """What only several training runs (seeds) can carry, with the run as the unit.

    tables, per_run: suite -> its observations and its claims. The swap test of C1-B, and for every statistic the mean
    over runs with the t interval of their spread.
    """
    runs = [series(table[table["eb_star"].notna()])[1:] for table in tables.values()]
    method = "labels EB* and accuracy swapped for whole runs; least p is 2 to the power of minus the runs"

    def compute() -> dict[str, Any]:
        if len(runs) < 2:
            raise Undefined("one training run; claims about training need several")
        found = swap_test([r[0] for r in runs], [r[1] for r in runs])
        return {"value": found.value, "p": found.p, "n": found.runs, "clusters": found.runs, "cluster": "training run"}

    quantity = "share of terms that EB* leads less share that accuracy leads"
    swap = row("C1-B", quantity, "controlled", "training run", method, len(runs), compute)
    values: dict[tuple[str, str, Reading], list[float]] = {}
    for results in per_run.values():
        for found in results:
            if found.value is not None:
                values.setdefault((found.claim, found.quantity, found.reading), []).append(found.value)
    return [swap, *[_spread(*key, found) for key, found in values.items() if len(found) > 1]]


def _spread(claim: str, quantity: str, reading: Reading, values: list[float]) -> Result:
    n, mean, spread = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(student.ppf(0.975, n - 1)) * spread / np.sqrt(n)
    method = f"mean over training runs, t interval; standard deviation between runs {spread:.3g}"
    return Result(claim, quantity, reading, mean, n, "training run", method, mean - half, mean + half, clusters=n,
                  cluster="training run")  # fmt: skip
