"""While a model trains: does binding move and knowledge not follow?"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from bindscope.stats.resample import cluster_mean

#: Looks that lie between the two that are compared, and the fewest terms that make an interval.
WINDOW, LEAST_TERMS = 4, 3


class Warned(NamedTuple):
    """An early warning: its name, and the changes (with 95% intervals over terms) that gave it."""

    flag: str
    text: str


def early_warnings(series: pd.DataFrame, window: int = WINDOW) -> tuple[tuple[Warned, ...], str | None]:
    """Flags at the last step of a series, and why none can be given where that is so.

    series: a row per step and term: step, term, excess (EB* less its null), margin (nats per token). The last step is
    compared with the one `window` looks before; changes are means over terms, their intervals redraw terms. "binding
    ahead": the excess has risen, the margin's interval holds zero. "decoupling": the excess has fallen while the
    margin has risen. Each look has its own 5% of false alarms: a flag is a reason to look, not a finding.
    """
    steps = sorted(series["step"].unique())
    if len(steps) <= window:
        return (), f"{len(steps)} looks so far, {window + 1} are needed"
    before, now = (series[series["step"] == s].set_index("term") for s in (steps[-1 - window], steps[-1]))
    change = (now[["excess", "margin"]] - before[["excess", "margin"]]).dropna()
    if len(change) < LEAST_TERMS:
        return (), f"{len(change)} terms have an excess and a margin at both looks, {LEAST_TERMS} are needed"
    bound, known = (cluster_mean(change[column], change.index) for column in ("excess", "margin"))
    text = (
        f"since step {steps[-1 - window]:,} excess {bound.mean:+.3f} [{bound.low:+.3f}, {bound.high:+.3f}], "
        f"margin {known.mean:+.3f} [{known.low:+.3f}, {known.high:+.3f}]"
    )
    flags = []
    if bound.low > 0 and known.low <= 0 <= known.high:
        flags.append(Warned("binding ahead", text))
    if bound.high < 0 and known.low > 0:
        flags.append(Warned("decoupling", text))
    return tuple(flags), None
