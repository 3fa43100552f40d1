"""Binding and behavior of each term of one suite over training, and when each emerges."""

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
    """The terms with EB* and behavior at every checkpoint, and both as arrays (terms, checkpoints).

    Behavior is the mean over tasks (recognition, and generation where it is stored) of the means over prompts.

    table: observations of one suite
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
    """The value at a share of the rise from the mean over terms at the first checkpoint to the highest such mean.

    values: (terms, checkpoints)
    share: in [0, 1]
    Raises Undefined where the mean never rises.
    """
    means = values.mean(0)
    if len(means) < 2 or means.max() <= means[0]:
        raise Undefined("the mean over terms never rises above its first checkpoint")
    return float(means[0] + share * (means.max() - means[0]))


def emergence(table: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """For each term the interval (left, right] of steps in which EB* and behavior first reach their `threshold`.

    table: observations of one suite
    share: see `threshold`
    Raises Undefined where a threshold does not exist or a step is not known.
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
    """EB* and behavior over training: a row per term and checkpoint.

    table: observations of one suite

    Columns
    t, revision, step: the checkpoint
    eb_star, behavior: means over the term's prompts and tasks
    half: half of training: "early" or "late", "middle" for the middle one of an odd number of checkpoints; None with
        fewer than four checkpoints
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
