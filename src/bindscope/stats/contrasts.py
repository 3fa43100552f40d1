"""Claims that compare conditions: V (real terms and controls), C3 (with and without an exemplar), C5 (heads removed).

Each function takes a tidy table of one checkpoint's values and gives `Result` rows, published and controlled.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bindscope.stats.compare import cohen_d, paired_difference, permutation_p, stratified_difference, welch
from bindscope.stats.correlate import Undefined
from bindscope.stats.result import Result, row

#: The published rule of C5: heads are called coupled where specificity exceeds this.
COUPLED = 0.10


def _need(table: pd.DataFrame, *columns: str) -> None:
    if missing := [name for name in columns if name not in table]:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )


def discriminant(table: pd.DataFrame, real: str = "real") -> list[Result]:
    """V: is EB* larger for real terms than for each group of controls?

    table: a row per term and sentence frame, with term, group (`real` for real terms), k (tokens), frame and eb_star.
    Published: Cohen's d and Welch's t over all values. Controlled: the difference within strata of k and frame, a
    stratum without both kinds left out and counted; jackknife over terms. Raises ValueError for missing columns.
    """
    _need(table, "term", "group", "k", "frame", "eb_star")
    return [
        result
        for group in sorted(set(table["group"]) - {real})
        for result in _group(table[table["group"] == real], table[table["group"] == group], group)
    ]


def _group(real: pd.DataFrame, control: pd.DataFrame, group: str) -> Iterator[Result]:
    n = len(real) + len(control)
    name = f"EB*, real terms against {group}"
    yield row("V", f"Cohen's d of {name}", "published", "term x frame", "pooled SD; values taken as independent", n,
              lambda: {"value": cohen_d(real["eb_star"], control["eb_star"])})  # fmt: skip
    yield row("V", f"difference of {name}", "published", "term x frame", "Welch's t; values taken as independent", n,
              partial(_welch, real, control))  # fmt: skip
    yield row("V", f"difference of {name}", "controlled", "term x frame", "within strata of token count and frame; "
              "jackknife over terms", n, partial(_stratified, real, control))  # fmt: skip


def _welch(real: pd.DataFrame, control: pd.DataFrame) -> dict[str, Any]:
    found = welch(real["eb_star"], control["eb_star"])
    return {"value": found.difference, "low": found.low, "high": found.high, "p": found.p}


def _stratified(real: pd.DataFrame, control: pd.DataFrame) -> dict[str, Any]:
    both = pd.concat([real.assign(real=True), control.assign(real=False)], ignore_index=True)
    strata = both["k"].astype(str) + " tokens, " + both["frame"].astype(str)
    found = stratified_difference(both["eb_star"], both["real"], strata, both["term"])
    gone = len(found.unmatched)
    return {
        "value": found.value, "low": found.low, "high": found.high, "p": found.p, "n": found.n,
        "clusters": found.clusters, "cluster": "term",
        "reason": f"{gone} of {strata.nunique()} strata have no match and are left out" if gone else None,
    }  # fmt: skip


def unlockability(table: pd.DataFrame) -> list[Result]:
    """C3: what does one exemplar sentence unlock?

    table: a row per prompt with term, prompt, and a score in [0, 1] in the columns zero and exemplar, and where they
    were measured, mismatched (the exemplar of another term) and paraphrased (without keyword phrases). Published: mean
    gain in percentage points and relative gain. Controlled: the gain over the mismatched exemplar and that of the
    paraphrase, paired by prompt, jackknife over terms. Raises ValueError for missing columns.
    """
    _need(table, "term", "prompt", "zero", "exemplar")
    n = len(table)
    method = "paired by prompt; prompts taken as independent"
    results = [
        row("C3", "gain with an exemplar (pp)", "published", "prompt", method, n, partial(_gain, table, "pp")),
        row("C3", "relative gain with an exemplar (%)", "published", "prompt", method, n, partial(_gain, table, "%")),
    ]
    pairs = {
        "gain with an exemplar (pp)": ("exemplar", "zero"),
        "gain over another term's exemplar (pp)": ("exemplar", "mismatched"),
        "gain with a paraphrased exemplar (pp)": ("paraphrased", "zero"),
    }
    method = "paired by prompt; jackknife over terms"
    for quantity, (a, b) in pairs.items():
        results.append(row("C3", quantity, "controlled", "prompt", method, n, partial(_paired, table, a, b)))
    return results


def exemplars(table: pd.DataFrame) -> Iterator[Result]:
    """`unlockability`, and how much of what the exemplar unlocks was copied from it.

    table: as for `unlockability`, with matched and copied, counts of keywords in the answers behind the own exemplar.
    """
    yield from unlockability(table)
    yield row("C3", "share of matched keywords that stand in the exemplar", "controlled", "keyword", "over all answers "
              "behind the term's own exemplar", int(table["matched"].sum()), partial(_copied, table))  # fmt: skip


def _copied(table: pd.DataFrame) -> dict[str, Any]:
    if not table["matched"].sum():
        raise Undefined("no answer behind an exemplar holds a keyword")
    return {"value": float(table["copied"].sum() / table["matched"].sum())}


def _gain(table: pd.DataFrame, unit: str) -> dict[str, Any]:
    zero, exemplar = float(table["zero"].mean()), float(table["exemplar"].mean())
    if unit == "pp":
        return {"value": 100 * (exemplar - zero)}
    if zero == 0:
        raise Undefined("the zero-shot score is 0, so there is nothing to relate a gain to")
    return {"value": 100 * (exemplar - zero) / zero}


def _paired(table: pd.DataFrame, a: str, b: str) -> dict[str, Any]:
    for name in (a, b):
        if name not in table:
            raise Undefined(f"{name} exemplars were not measured")
    found = paired_difference(100 * table[a], 100 * table[b], table["term"])
    return {
        "value": found.value, "low": found.low, "high": found.high, "p": found.p, "n": found.n,
        "clusters": found.clusters, "cluster": "term",
    }  # fmt: skip


def causal(baseline: ArrayLike, top: ArrayLike, random: ArrayLike, terms: ArrayLike) -> list[Result]:
    """C5: does removing the binding heads cost more than removing others?

    baseline, top: (P,) accuracy or margin of each prompt, whole and with the top heads removed; random: (R, P) with
    each of R random sets removed; terms: (P,) the prompt's term. Specificity = drop(top) - mean drop(random).
    Published: the number, and "coupled" where it exceeds 0.10. Controlled: p = (b + 1) / (R + 1) among the random sets,
    one-sided, and the interval of the paired difference between random and top, jackknife over terms. Raises ValueError
    for shapes that do not fit.
    """
    base, cut, sets = (np.asarray(x, dtype=np.float64) for x in (baseline, top, random))
    if base.ndim != 1 or cut.shape != base.shape or sets.ndim != 2 or sets.shape[1:] != base.shape:
        raise ValueError(f"shapes do not fit: baseline {base.shape}, top {cut.shape}, random {sets.shape}")
    R, P = sets.shape
    if R == 0:
        raise ValueError("random holds no set; at least one is needed")
    drops = base.mean() - sets.mean(1)
    drop = float(base.mean() - cut.mean())
    value = drop - float(drops.mean())
    call = "coupled" if value > COUPLED else "not coupled"
    note = f"{call} by the published rule (> {COUPLED}); {R} random sets cannot give p below {1 / (R + 1):.3f}"

    def compute() -> dict[str, Any]:
        found = paired_difference(sets.mean(0), cut, terms)
        return {
            "value": found.value, "low": found.low, "high": found.high, "p": permutation_p(drop, drops), "n": P,
            "clusters": found.clusters, "cluster": "term", "reason": note,
        }  # fmt: skip

    return [
        Result("C5", "specificity", "published", value, P, "prompt", "drop(top) - mean drop(random)", reason=note),
        row(
            "C5",
            "specificity",
            "controlled",
            "prompt",
            "p among random sets; interval by jackknife over terms",
            P,
            compute,
        ),
    ]
