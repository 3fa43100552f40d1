"""The attention of the head that gives EB*: to adjacent tokens, to the term's first token, and within its layer."""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.eb_star import SHARE, SOURCE, at_best_head
from bindscope.measures.view import SpanView
from bindscope.schema import Column


@span_measure(
    title="Adjacent BSI",
    value="adjacent_bsi",
    needs=Needs(attention=True),
    null=None,
    group="binding",
    columns=[
        Column("adjacent_bsi", "number", "mean over i > 1 of A[s_i, s_{i-1}], best head", unit=SHARE, range=(0, 1)),
        Column("first_bsi", "number", "A[s_k, s_1], best head", unit=SHARE, range=(0, 1)),
        Column(
            "entropy",
            "number",
            "entropy of BSI over the heads of the best layer",
            unit="nats",
            range=(0, None),
            source=SOURCE,
        ),
        Column(
            "uniform_baseline",
            "number",
            "BSI of a head that attends to all earlier tokens alike",
            unit=SHARE,
            range=(0, 1),
        ),
    ],
)
def best_head(view: SpanView) -> Values:
    """Attention weights and entropy at the head that gives EB*, each (n,).

    entropy = -sum_h p_h ln p_h with p_h = BSI_h / sum BSI over the heads of the best layer (Tran 2026).
    """
    pairs = [(i, d) for i in range(1, view.k) for d in range(1, i + 1)]
    adjacent = view.pairs[..., [n for n, (_, d) in enumerate(pairs) if d == 1]].mean(-1)
    eb = view.bsi.max(2) - view.bsi.mean(2)
    p = np.maximum(view.bsi[np.arange(view.n), eb.argmax(1)], 1e-10)  # (n, H) of the best layer
    p = p / p.sum(1, keepdims=True)
    return {
        "adjacent_bsi": at_best_head(view, adjacent),
        "first_bsi": at_best_head(view, view.pairs[..., -1]),
        "entropy": -(p * np.log(p)).sum(1),
        "uniform_baseline": np.mean([1 / (view.starts + i + 1) for i, _ in pairs], 0),
    }
