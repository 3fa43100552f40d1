"""Every span measure with its null: means by checkpoint, and its correlation with accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from bindscope.schema import LEADING, PER_PROMPT, Table
from bindscope.stats.correlate import Undefined, clustered_repeated
from bindscope.tables.observations import own_prompts
from bindscope.tables.summary import mean_columns

_PLACE = ["suite", "revision", "step"]


def measured(tables: tuple[Table, ...]) -> Iterator[Table]:
    """The tables with a row per prompt and a leading value, without EB*, which has its own figures."""
    yield from (t for t in tables if t.row == PER_PROMPT and t.value and t.name != LEADING)


def by_measure(binding: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Means of one measure over the terms' own prompts, a row per suite and checkpoint.

    binding: the joined table of a run
    table: the table of the measure

    Columns
    value, null, excess: means; null and excess only where the measure has a null
    *_low, *_high: their 95% bootstrap intervals over terms
    *_n: number of prompts with a value
    by_layer: mean of the value of every layer, where the measure gives it
    """
    columns = {"value": table.value, "null": f"{table.name}_null_mean", "excess": f"{table.name}_excess"}
    rows: list[dict[str, Any]] = []
    for place, part in own_prompts(binding).groupby(_PLACE, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(_PLACE, place, strict=True))
        for name, column in columns.items():
            if column in part:
                row |= mean_columns(part, column, name)
        if table.by_layer:
            layers = part[table.by_layer].dropna()
            row["by_layer"] = np.mean(np.stack(layers.to_list()), 0).tolist() if len(layers) else None
        rows.append(row)
    return pd.DataFrame(rows)


def with_knowing(binding: pd.DataFrame, observations: pd.DataFrame, table: Table) -> pd.DataFrame:
    """The repeated-measures correlation of a measure and accuracy within terms and checkpoints, a row per suite.

    binding: the joined table of a run
    observations: the observations of the run
    table: the table of the measure

    Columns
    r, low, high, p: the correlation, its 95% interval and p
    n: number of questions x checkpoints
    reason: why it cannot be computed
    """
    keys = ["suite", "revision", "question"]
    asked = observations[observations["task"] == "recognition"]
    values = binding[binding["task"] == "recognition"][[*keys, table.value]].rename(columns={table.value: "value"})
    both = asked[[*keys, "term", "t", "accuracy"]].merge(values, on=keys).dropna(subset=["value", "accuracy"])
    rows = []
    for suite, part in both.groupby("suite", sort=False):
        row: dict[str, Any] = {"suite": suite, "n": len(part), "reason": None}
        try:
            r = clustered_repeated(part["value"].astype(float), part["accuracy"], part["term"], within=part["t"])
            row |= {"r": r.value, "low": r.low, "high": r.high, "p": r.p}
        except Undefined as error:
            row |= {"r": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "reason": str(error)}
        rows.append(row)
    return pd.DataFrame(rows)
