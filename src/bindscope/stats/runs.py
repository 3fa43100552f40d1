"""What only several training runs (seeds) can carry, with the run as the unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from bindscope.stats.claims import series
from bindscope.stats.correlate import Undefined
from bindscope.stats.leadlag import swap_test
from bindscope.stats.result import Reading, Result, row


def across_runs(tables: dict[str, pd.DataFrame], per_run: dict[str, list[Result]]) -> list[Result]:
    """The swap test of C1-B, and for every statistic the mean over runs with the t interval of their spread.

    tables, per_run: suite -> its observations and its claims.
    """
    runs = [series(table[table["eb_star"].notna()])[1:] for table in tables.values()]
    method = "labels EB* and behavior swapped for whole runs; least p is 2 to the power of minus the runs"

    def compute() -> dict[str, Any]:
        if len(runs) < 2:
            raise Undefined("one training run; claims about training need several")
        found = swap_test([r[0] for r in runs], [r[1] for r in runs])
        return {"value": found.value, "p": found.p, "n": found.runs, "clusters": found.runs, "cluster": "training run"}

    quantity = "share of terms that EB* leads less share that behavior leads"
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
