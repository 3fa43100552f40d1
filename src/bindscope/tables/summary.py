"""A summary of each checkpoint: binding, its null, and behavior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bindscope.stats.resample import cluster_mean
from bindscope.tables.observations import own_prompts

#: Column in the stored tables -> name in the summary.
_BINDING = {"eb_star": "eb_star", "null_mean": "null", "excess": "excess", "position_excess": "position_excess"}
_RECOGNITION = {"correct_per_token": "accuracy", "margin_per_token": "margin"}
_GENERATION = {"score": "generation"}


def by_checkpoint(
    binding: pd.DataFrame, recognition: pd.DataFrame, generation: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Means over the terms' prompts with 95% bootstrap intervals over terms: a row per suite and checkpoint.

    binding: the joined table of a run
    recognition, generation: the stored tables

    Columns
    eb_star, null, excess, ...: means of the quantities
    *_low, *_high: their intervals
    *_n: number of prompts with a value
    chance: mean of 1 / number of choices
    """
    rows: list[dict[str, Any]] = []
    binding, completions = own_prompts(binding), pd.DataFrame() if generation is None else generation
    order = binding[["suite", "revision", "step"]].drop_duplicates()
    for suite, revision, step in order.itertuples(index=False):
        row: dict[str, Any] = {"suite": suite, "revision": revision, "step": step}
        for table, columns in ((binding, _BINDING), (recognition, _RECOGNITION), (completions, _GENERATION)):
            if not table.empty:
                part = table[(table["suite"] == suite) & (table["revision"] == revision)]
                for column, name in columns.items():
                    row |= mean_columns(part, column, name)
        if not recognition.empty:
            row["chance"] = float((1 / recognition["choices"].map(len)).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def mean_columns(part: pd.DataFrame, column: str, name: str) -> dict[str, float]:
    """The columns name, name_low, name_high and name_n: mean, its 95% bootstrap interval over terms, number of values.

    part: a row per prompt, with the column `term`
    column: the column that is averaged
    name: name of the mean
    """
    kept = part[part[column].notna()]
    if kept.empty:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan, f"{name}_n": 0}
    mean = cluster_mean(kept[column].astype(float), kept["term"])
    return {name: mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high, f"{name}_n": len(kept)}


def without_null(binding: pd.DataFrame) -> pd.DataFrame:
    """Prompts with EB* but without a null: a row per reason, with the numbers of prompts and checkpoints."""
    bare = binding[binding["eb_star"].notna() & binding["null_mean"].isna()]
    counts = bare.groupby("null_reason", sort=True)
    return counts.agg(prompts=("prompt", "nunique"), checkpoints=("revision", "nunique")).reset_index()


def excluded(binding: pd.DataFrame) -> pd.DataFrame:
    """Prompts without a binding value: a row per prompt and reason, with the number of checkpoints."""
    gone = binding[binding["reason"].notna()]
    return gone.groupby(["prompt", "reason"], sort=True).size().rename("checkpoints").reset_index()
