"""Observations of one suite -> binding and behavior of each term over training, and when each first emerges."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bindscope.stats.correlate import Undefined
from bindscope.stats.emergence import crossings
from bindscope.tables.observations import by_term

Floats = NDArray[np.float64]
#: Columns of `emergence`, with the suite in front.
EMERGENCE = (
    "suite",
    "term",
    "binding_left",
    "binding_right",
    "binding_threshold",
    "knowing_left",
    "knowing_right",
    "knowing_threshold",
)
_PATHS = ["term", "t", "revision", "step", "eb_star", "behavior", "half"]


def series(table: pd.DataFrame) -> tuple[list[str], Floats, Floats]:
    """The terms that have EB* and behavior at every checkpoint, with both as arrays (terms, checkpoints).

    Behavior is the mean over tasks (recognition, and generation where it is stored) of the means over prompts.
    """
    names, eb = by_term(table, "eb_star")
    tasks = [by_term(part, "behavior") for _, part in table.groupby("task")]
    both = [name for name in names if all(name in others for others, _ in tasks)]
    known = [values[[others.index(n) for n in both]] for others, values in tasks]
    return both, eb[[names.index(n) for n in both]], np.mean(known, axis=0) if known else np.empty((0, 0))


def steps(table: pd.DataFrame) -> Floats:
    """The training step of each checkpoint. Raises Undefined where one is not known."""
    values = table.drop_duplicates("t").sort_values("t")["step"]
    if values.isna().any():
        raise Undefined("the steps of the checkpoints are not known")
    return values.to_numpy(dtype=np.float64)


def threshold(values: Floats, share: float) -> float:
    """The value at this share of the way from the first checkpoint's mean over terms to the highest such mean.

    values: (terms, checkpoints). Raises Undefined where the mean never rises.
    """
    means = values.mean(0)
    if len(means) < 2 or means.max() <= means[0]:
        raise Undefined("the mean over terms never rises above its first checkpoint")
    return float(means[0] + share * (means.max() - means[0]))


def emergence(table: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """Per term the interval (left, right] of steps in which EB* and behavior first reach their `threshold`.

    Raises Undefined where a threshold cannot be set.
    """
    names, eb, known = series(table)
    if not names:
        raise Undefined("no term has binding and behavior at every checkpoint")
    at = steps(table)
    out = pd.DataFrame({"term": names})
    for label, values in (("binding", eb), ("knowing", known)):
        limit = threshold(values, share)
        (left,), (right,) = crossings(at, values, [limit])
        out[f"{label}_left"], out[f"{label}_right"], out[f"{label}_threshold"] = left, right, limit
    return out


def paths(table: pd.DataFrame) -> pd.DataFrame:
    """A row per term and checkpoint: t, step, EB* and behavior, means over the term's prompts and tasks.

    half: the half of training that the checkpoint is in ("early", "late", or "middle" for the middle one of an odd
    number); None with fewer than four checkpoints.
    """
    names, eb, known = series(table)
    order = table.drop_duplicates("t").sort_values("t")
    number, half = len(order), len(order) // 2
    when = ["early" if t < half else "late" if t >= number - half else "middle" for t in range(number)]
    rows = [
        {
            "term": name,
            "t": t,
            "revision": place.revision,
            "step": place.step,
            "eb_star": eb[i, t],
            "behavior": known[i, t],
            "half": when[t] if number >= 4 else None,
        }
        for i, name in enumerate(names)
        for t, place in enumerate(order.itertuples())
    ]
    return pd.DataFrame(rows, columns=_PATHS)
