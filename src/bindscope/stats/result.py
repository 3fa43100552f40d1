"""One line of an answer: a number with its interval, its n, what it is clustered by, and what it assumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd

from bindscope.stats.correlate import Undefined

Reading = Literal["published", "controlled"]


@dataclass(frozen=True)
class Result:
    """A statistic of a claim, as published or as controlled.

    value is None where the data cannot carry the statistic; `reason` then says why. low and high bound a 95% interval
    unless `method` says otherwise. n counts `unit`s (term x prompt x checkpoint, say); clusters counts the groups,
    named by `cluster`, that were redrawn or modelled as dependent. method names the test and its assumptions.
    """

    claim: str
    quantity: str
    reading: Reading
    value: float | None
    n: int
    unit: str
    method: str
    low: float | None = None
    high: float | None = None
    p: float | None = None
    clusters: int | None = None
    cluster: str | None = None
    reason: str | None = None


def row(
    claim: str, quantity: str, reading: Reading, unit: str, method: str, n: int, compute: Callable[[], dict[str, Any]]
) -> Result:
    """What `compute` gives as fields of a Result; without a value and with the reason where it raises Undefined."""
    try:
        found = compute()
        if not np.isfinite(found["value"]):
            raise Undefined(f"the statistic comes out as {found['value']}")
    except Undefined as error:
        return Result(claim, quantity, reading, None, n, unit, method, reason=str(error))
    return Result(claim, quantity, reading, unit=unit, method=method, **({"n": n} | found))


def interval(found: Any, cluster: str = "term") -> dict[str, Any]:
    """The fields of a Result from a clustered statistic: value, low, high, p, n, clusters."""
    return {
        "value": found.value, "low": found.low, "high": found.high, "p": found.p, "n": found.n,
        "clusters": found.clusters, "cluster": cluster,
    }  # fmt: skip


def table(results: Iterable[Result]) -> pd.DataFrame:
    """Results as a tidy data frame, a row each, columns in the order of the fields."""
    rows = [asdict(result) for result in results]
    return pd.DataFrame(rows, columns=[field.name for field in fields(Result)])
