"""EB*: the largest BSI of a head in a layer minus the mean BSI of the layer's heads, at the best layer (Tran 2026).

A is the attention of head h in layer l; s_i is the position of token i of the term. BSI[l, h], the binding strength of
the head, is the mean over pairs i > j of A[s_i, s_j]; EB[l] = max_h BSI - mean_h BSI; EB* = max_l EB[l]. The mean over
all pairs falls with the number of tokens k: a head that always attends to the previous token has BSI = 2 / k.
"""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.view import SpanView
from bindscope.schema import Column

SHARE, SOURCE = "share of attention", "Tran 2026, section 3"


@span_measure(
    title="EB*",
    value="eb_star",
    by_layer="eb_per_layer",
    needs=Needs(attention=True),
    null="windows",
    null_means=["bsi"],
    group="binding",
    columns=[
        Column("eb_star", "number", "EB*: largest EB over layers", unit=SHARE, range=(0, 1), source=SOURCE),
        Column(
            "eb_per_layer",
            "list of numbers",
            "EB of each layer",
            unit=SHARE,
            range=(0, 1),
            source=SOURCE,
            shape="layers",
        ),
        Column("best_layer", "integer", "layer with the largest EB, from 0", range=(0, None)),
        Column("best_head", "integer", "head with the largest BSI in that layer, from 0", range=(0, None)),
        Column(
            "bsi",
            "list of numbers",
            "BSI of every head",
            unit=SHARE,
            range=(0, 1),
            source=SOURCE,
            shape="layers x heads",
        ),
    ],
)
def eb_star(view: SpanView) -> Values:
    """EB* (n,), EB of each layer (n, L), the best layer and head (n,), and BSI (n, L, H) (Tran 2026, section 3)."""
    bsi = view.bsi  # (n, L, H)
    eb = bsi.max(2) - bsi.mean(2)
    layer = eb.argmax(1)
    head = bsi[np.arange(view.n), layer].argmax(1)
    return {"eb_star": eb.max(1), "eb_per_layer": eb, "best_layer": layer, "best_head": head, "bsi": bsi}


def at_best_head(view: SpanView, values: np.ndarray) -> np.ndarray:
    """The values (n,) at the head with the largest BSI in the layer with the largest EB.

    view: the spans
    values: (n, L, H) a value of every head
    """
    best = eb_star(view)
    return np.asarray(values[np.arange(view.n), best["best_layer"], best["best_head"]])
