"""The reference study's go/no-go rule for one suite."""

from __future__ import annotations

import pandas as pd

from bindscope.stats.correlate import Undefined, spearman

#: The rule asks for a rank correlation above this.
LEAST_RHO = 0.3


def gate(table: pd.DataFrame) -> dict[str, object]:
    """Apply the go/no-go rule of the reference study.

    The rule is to continue if rho(EB*, accuracy) > 0.3 over all pairs and at least one pair has EB* at or above its
    75th percentile and accuracy at or below its 25th.

    table: observations of one suite

    Keys
    rho: Spearman's rho
    rho_above: whether it is above 0.3
    quadrant: number of pairs with high EB* and low accuracy
    go: whether the rule says to continue
    n: number of pairs
    reason: why values are missing
    """
    kept = table[table["eb_star"].notna() & (table["task"] == "recognition")]
    out: dict[str, object] = {
        "rho": None,
        "rho_above": None,
        "quadrant": None,
        "go": None,
        "n": len(kept),
        "reason": None,
    }
    try:
        rho = spearman(kept["eb_star"], kept["accuracy"]).rho
    except Undefined as error:
        return out | {"reason": str(error)}
    high = kept["eb_star"] >= kept["eb_star"].quantile(0.75)
    low = kept["accuracy"] <= kept["accuracy"].quantile(0.25)
    quadrant = int((high & low).sum())
    above = rho > LEAST_RHO
    return out | {"rho": rho, "rho_above": above, "quadrant": quadrant, "go": bool(above and quadrant > 0)}
