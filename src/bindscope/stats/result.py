"""One line of an answer: a number with its interval, its n, what it is clustered by, and what it assumes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Literal

import pandas as pd

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


def table(results: Iterable[Result]) -> pd.DataFrame:
    """Results as a tidy data frame, a row each, columns in the order of the fields."""
    rows = [asdict(result) for result in results]
    return pd.DataFrame(rows, columns=[field.name for field in fields(Result)])
