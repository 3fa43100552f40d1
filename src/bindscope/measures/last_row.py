"""The whole attention rows of the term's last token, in the heads with the largest BSI."""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.view import SpanView
from bindscope.schema import Column

#: Number of heads whose rows are stored.
_HEADS = 5


@span_measure(
    title="Largest BSI",
    value="top_bsi",
    needs=Needs(attention=True, last_row=True),
    null=None,
    group="binding",
    columns=[
        Column("top_bsi", "number", "the largest BSI of all heads", unit="share of attention", range=(0, 1)),
        Column(
            "top_heads", "list of integers", "the five heads with the largest BSI, as places in bsi", range=(0, None)
        ),
        Column(
            "top_rows",
            "list of lists of numbers",
            "for each of them, attention of the term's last token to every position up to its own",
            unit="share of attention",
            range=(0, 1),
        ),
    ],
)
def last_row(view: SpanView) -> Values:
    """The largest BSI (n,), the heads with the largest BSI (n, 5), and their rows (n, 5, S)."""
    bsi = view.bsi.reshape(view.n, -1)
    top = np.argsort(-bsi, axis=1, kind="stable")[:, :_HEADS]
    rows = view.last_row.reshape(view.n, bsi.shape[1], -1)
    return {"top_bsi": bsi.max(1), "top_heads": top, "top_rows": rows[np.arange(view.n)[:, None], top]}
