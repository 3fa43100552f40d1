"""Compares real terms and control groups in the same carrier sentences at equal token counts."""

from __future__ import annotations

import pandas as pd

from bindscope.stats.compare import stratified_difference
from bindscope.stats.correlate import Undefined
from bindscope.stats.resample import cluster_mean

_PLACE = ["suite", "revision", "step"]
_VALUES = ("eb_star", "eb_star_mass", "excess")


def carrier_rows(binding: pd.DataFrame) -> pd.DataFrame:
    """Rows of carrier sentences with a binding value: term, group, k, frame (the sentence), binding columns."""
    if binding.empty:
        return binding
    kept = binding[(binding["task"] == "carrier") & binding["eb_star"].notna()]
    return kept.assign(frame=kept["kind"], k=kept["k"].astype(int))


def by_group(binding: pd.DataFrame) -> pd.DataFrame:
    """Mean EB*, EB*_mass and excess by suite, checkpoint, group and k, with bootstrap intervals over terms.

    The columns difference, difference_low and difference_high are the mean EB* of real terms less that of the group at
    equal k and frame, with its interval; `reason` says why they are missing.

    binding: the joined table of a run
    """
    table = carrier_rows(binding)
    rows = []
    if not table.empty:
        for place, part in table.groupby(_PLACE, sort=False, dropna=False):
            for group in dict.fromkeys(part["group"]):
                for k, cell in part[part["group"] == group].groupby("k"):
                    row = dict(zip(_PLACE, place, strict=True)) | {
                        "group": group,
                        "k": k,
                        "terms": cell["term"].nunique(),
                    }
                    for name in _VALUES:
                        row |= _mean(cell, name)
                    rows.append(row | _difference(part[part["k"] == k], group))
    return pd.DataFrame(rows)


def _mean(cell: pd.DataFrame, name: str) -> dict[str, float | None]:
    kept = cell[cell[name].notna()]
    if kept.empty:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    mean = cluster_mean(kept[name].astype(float), kept["term"])
    return {name: mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high}


def _difference(part: pd.DataFrame, group: str) -> dict[str, object]:
    empty: dict[str, object] = {"difference": None, "difference_low": None, "difference_high": None, "reason": None}
    if group == "real":
        return empty
    both = part[part["group"].isin(["real", group])]
    if not (both["group"] == "real").any():
        return empty | {"reason": f"no term has {part['k'].iloc[0]} tokens"}
    try:
        gap = stratified_difference(both["eb_star"], both["group"] == "real", both["frame"], both["term"])
    except Undefined:
        sizes = both.groupby("group")["term"].nunique()
        return empty | {"reason": f"too few expressions ({sizes.get('real', 0)} and {sizes.get(group, 0)})"}
    return empty | {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high}
