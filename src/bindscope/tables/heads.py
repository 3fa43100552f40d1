"""BSI of every head over the terms' prompts, compared with its windows and its previous-token score."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bindscope.tables.observations import own_prompts

_PLACE = ["suite", "revision", "step"]


def by_head(binding: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """A row per suite, checkpoint and head.

    binding: the joined table of a run
    heads: the stored table previous_token

    Columns
    layer, head: from 0
    bsi: BSI, mean over prompts with a span
    null_bsi: mean BSI over windows, for the prompts that have a null; NaN where there is none
    excess: bsi less null_bsi on the same prompts
    previous_token_score: mean attention to the previous token on neutral text
    n: number of prompts
    rank: rank of bsi, 1 for the highest
    """
    rows = []
    for place, part in own_prompts(binding).groupby(_PLACE, sort=False, dropna=False) if not binding.empty else ():
        kept = part[part["eb_star"].notna()]
        if kept.empty:
            continue
        here = heads[(heads["suite"] == place[0]) & (heads["revision"] == place[1])]
        table = here[[*_PLACE, "layer", "head", "previous_token_score"]].reset_index(drop=True)
        table["bsi"], table["n"] = np.mean(np.stack(kept["bsi"].to_list()), 0), len(kept)
        table["null_bsi"] = table["excess"] = np.nan
        if "null_bsi" in kept and not (with_null := kept[kept["null_bsi"].notna()]).empty:
            own, null = (np.mean(np.stack(with_null[name].to_list()), 0) for name in ("bsi", "null_bsi"))
            table["null_bsi"], table["excess"] = null, own - null
        table["rank"] = table["bsi"].rank(ascending=False, method="first").astype(int)
        rows.append(table)
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
