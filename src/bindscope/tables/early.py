"""Early warnings during training: does binding change while accuracy and margin do not follow?"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from bindscope.stats.resample import cluster_mean

#: Number of measurements back that the last one is compared with, and the fewest terms that give an interval.
WINDOW, LEAST_TERMS = 4, 3


class Warned(NamedTuple):
    """An early warning.

    flag: its name
    text: the changes that caused it, with 95% intervals over terms
    """

    flag: str
    text: str


def early_warnings(series: pd.DataFrame, window: int = WINDOW) -> tuple[tuple[Warned, ...], str | None]:
    """The flags at the last step of a series, and the reason where none can be computed.

    The last step is compared with an earlier one. Changes are means over terms, with 95% bootstrap intervals over
    terms. "binding ahead" means that the excess has risen and the interval of the margin contains zero; "decoupling"
    means that the excess has fallen and the margin has risen. Each measurement alone has a false alarm rate of 5%, so a
    flag is a reason to examine the run, not a result.

    series: a row per step and term with the columns step, term, excess (EB* less its null), margin (nats per token)
    window: number of measurements between the steps that are compared
    """
    steps = sorted(series["step"].unique())
    if len(steps) <= window:
        return (), f"{len(steps)} measurements so far, {window + 1} are needed"
    before, now = (series[series["step"] == s].set_index("term") for s in (steps[-1 - window], steps[-1]))
    change = (now[["excess", "margin"]] - before[["excess", "margin"]]).dropna()
    if len(change) < LEAST_TERMS:
        return (), f"{len(change)} terms have an excess and a margin at both steps, {LEAST_TERMS} are needed"
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
