"""The attention of the term's tokens to the first token of the text, and BSI without that share.

Attention to the first token (the attention sink) grows late in training and lowers all other weights of a row.
"""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.eb_star import SHARE, at_best_head
from bindscope.measures.view import SpanView
from bindscope.schema import Column

#: Below this value 1 - A[s_i, 0] has fewer than three exact digits, since float32 rounds A near 1 to steps of 6e-8.
_LEAST_REST = 1e-4


@span_measure(
    title="Sink mass",
    value="sink_mass",
    needs=Needs(attention=True),
    null=None,
    group="binding",
    columns=[
        Column(
            "sink_mass",
            "number",
            "mean over the term's tokens of A[s_i, 0], best head of EB*",
            unit=SHARE,
            range=(0, 1),
        ),
        Column(
            "bsi_sinkless",
            "number",
            "mean over pairs of A[s_i, s_j] / (1 - A[s_i, 0]), best head of EB*",
            range=(0, 1),
            missing="sinkless_reason",
        ),
        Column("sinkless_reason", "text", "why bsi_sinkless is missing", missing="bsi_sinkless has a value"),
        Column(
            "sink",
            "list of numbers",
            "mean of A[s_i, 0] of every head",
            unit=SHARE,
            range=(0, 1),
            shape="layers x heads",
        ),
    ],
)
def sink(view: SpanView) -> Values:
    """The sink mass and BSI without it at the head that gives EB*, each (n,), and the sink mass of every head."""
    each = view.sink.mean(-1)
    rest = np.stack([1 - view.sink[..., i] for i in range(1, view.k) for _ in range(i)], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sinkless = np.where(rest >= _LEAST_REST, view.pairs / rest, np.nan).mean(-1)
    sinkless = at_best_head(view, sinkless)
    sinkless[view.starts == 0] = np.nan
    reasons = [
        None
        if not np.isnan(value)
        else "the span starts at position 0"
        if start == 0
        else "position 0 takes nearly all attention of a row"
        for value, start in zip(sinkless, view.starts, strict=True)
    ]
    return {"sink_mass": at_best_head(view, each), "bsi_sinkless": sinkless, "sinkless_reason": reasons, "sink": each}
