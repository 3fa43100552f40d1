"""What a claim is: a question asked of a run, its statistics as published and as controlled, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bindscope.stats.correlate import Undefined

if TYPE_CHECKING:
    from bindscope.charts.figure import Figure
    from bindscope.charts.table import Table
    from bindscope.claims.inputs import Findings, Inputs

Reading = Literal["published", "controlled"]
READINGS: tuple[Reading, ...] = ("published", "controlled")
#: What a claim comes to. in part: the controlled statistic holds for some groups, edits or controls only; open: it is
#: missing.
State = Literal["both", "in part", "published only", "controlled only", "neither", "open"]


_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One number of a claim, as published or as controlled.

    id: a stable name such as "c1a.rho.all"; code refers to a statistic by it, never by a text.
    subject: what the statistic is of, where a claim has several alike (a control group, an edit, a threshold).
    reading: "published", as in the reference study, or "controlled", with a known confound removed.
    quantity: what it is, in words.
    value: None where the data cannot carry the statistic; `reason` then says why.
    low, high: a 95% interval, unless `method` says otherwise.
    p: of no effect, unless `method` says otherwise.
    n: number of `unit`s (prompt x checkpoint, say).
    clusters: number of groups, named by `cluster`, that were redrawn or modelled as dependent.
    method: the test and its assumptions.
    verdict: what the claim's own rule calls the value, where it has one ("coupled").
    reason: why the value is missing, or what to know about it.
    """

    id: str
    reading: Reading
    quantity: str
    value: float | None
    n: int
    unit: str
    method: str
    subject: str | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    clusters: int | None = None
    cluster: str | None = None
    verdict: str | None = None
    reason: str | None = None


def statistic(
    compute: Callable[[], dict[str, Any]],
    *,
    id: str,
    reading: Reading,
    quantity: str,
    n: int,
    unit: str,
    method: str,
    subject: str | None = None,
) -> Statistic:
    """A `Statistic` with what `compute` returns: a dictionary of value and of low, high, p, n, clusters, cluster,
    verdict, reason where there are any. Where it raises `Undefined` or the value is not finite, the value is missing,
    with the reason.
    """
    known: dict[str, Any] = {
        "id": id,
        "reading": reading,
        "quantity": quantity,
        "n": n,
        "unit": unit,
        "method": method,
        "subject": subject,
    }
    try:
        computed = compute()
        if not np.isfinite(computed["value"]):
            raise Undefined(f"the statistic comes out as {computed['value']}")
    except Undefined as error:
        return Statistic(**known, value=None, reason=str(error))
    return Statistic(**(known | computed))


def missing(*, id: str, reading: Reading, quantity: str, reason: str) -> Statistic:
    """A `Statistic` that the run does not carry."""
    return Statistic(id=id, reading=reading, quantity=quantity, value=None, n=0, unit="-", method="-", reason=reason)


def clustered(result: Any, cluster: str = "term") -> dict[str, Any]:
    """The fields of a `Statistic` from a result of `bindscope.stats` with value, low, high, p, n and clusters."""
    return {
        "value": result.value,
        "low": result.low,
        "high": result.high,
        "p": result.p,
        "n": result.n,
        "clusters": result.clusters,
        "cluster": cluster,
    }


def as_table(statistics: Iterable[Statistic]) -> pd.DataFrame:
    """A row per statistic, columns in the order of the fields."""
    columns = [field.name for field in fields(Statistic)]
    return pd.DataFrame([asdict(each) for each in statistics], columns=columns)


@dataclass(frozen=True)
class Answer:
    """What one suite says on a claim.

    state: whether the claim holds as published, as controlled, both, in part or neither, or is open.
    sentence: the answer in words, no more than the numbers carry.
    detail: the same with the leading numbers; the sentence where it is empty.
    """

    state: State
    sentence: str
    detail: str = ""


@dataclass(frozen=True)
class Bound:
    """An effect smaller than `value`, either way, in `unit`, counts as no effect."""

    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim: one question about the results of a run, and all that analysis, page, paper and terminal say on it.

    id: short and stable ("C1-A"); it names files and anchors.
    name: two or three words ("coupling").
    question: in plain words.
    limit: what no answer to it would show.
    needs: stored tables that it reads beside binding and recognition; without them its statistics are missing.
    published, controlled: ids of the two statistics that lead it; both may have one id, since they differ in reading.
    statistics: the claim's numbers for one suite.
    across: numbers that only several training runs can give, from the inputs of all suites.
    answer: reads the claim's rows of one suite, columns as the fields of `Statistic`; where it is left out,
        `bindscope.claims.answers.compared` reads the two leading statistics.
    no_effect: the bound below which an effect would count as none; None where none is declared.
    bounded: the leading statistics lie in [-1, 1], so the figure across runs can show them on one axis.
    figures, tables: functions from `Findings` to the figures and tables of its section; each gets the claim's id.
    order: where it stands on the page; lower comes first.

    Raises ValueError for an id that cannot name a file.
    """

    id: str
    name: str
    question: str
    limit: str
    published: str
    controlled: str
    statistics: Callable[[Inputs], Iterable[Statistic]]
    needs: tuple[str, ...] = ()
    across: Callable[[Sequence[Inputs]], Iterable[Statistic]] | None = None
    answer: Callable[[pd.DataFrame], Answer] | None = None
    no_effect: Bound | None = None
    bounded: bool = True
    figures: tuple[Callable[[Findings], Iterable[Figure]], ...] = ()
    tables: tuple[Callable[[Findings], Iterable[Table]], ...] = ()
    order: int = 1000

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"a claim's id is of letters, digits, hyphens and underscores, got {self.id!r}")

    def leading(self, rows: pd.DataFrame, reading: Reading) -> pd.DataFrame:
        """Of rows of the claim, those of its leading published or controlled statistic; several if it has subjects."""
        wanted = self.published if reading == "published" else self.controlled
        return rows[(rows["id"] == wanted) & (rows["reading"] == reading)]
