"""EB* from norm-weighted attention: attention to a value vector of norm zero has no effect and does not count.

The weight of key j for head h at position i is ||A[i, j] v_j W_O^h||, divided by the sum of these norms over all keys
of i (Kobayashi et al. 2020, arXiv:2004.10102). W_O^h is the head's rows of the output projection.
"""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.eb_star import SHARE
from bindscope.measures.view import SpanView
from bindscope.schema import Column

_SOURCE = "Kobayashi et al. 2020"
_UNKNOWN = "the output projection of this architecture is not known"


@span_measure(
    title="EB* by norms",
    value="eb_star_value",
    needs=Needs(norm_weighted=True),
    null=None,
    group="binding",
    columns=[
        Column(
            "eb_star_value",
            "number",
            "EB* from weights counted by the norm of what they carry",
            unit=SHARE,
            range=(0, 1),
            source=_SOURCE,
            missing=_UNKNOWN,
        ),
        Column(
            "value_bsi",
            "list of numbers",
            "BSI of every head from such weights",
            unit=SHARE,
            range=(0, 1),
            source=_SOURCE,
            missing=_UNKNOWN,
            shape="layers x heads",
        ),
    ],
)
def norm_weighted(view: SpanView) -> Values:
    """EB* (n,) and BSI (n, L, H) from norm-weighted attention (Kobayashi et al. 2020)."""
    below = np.tril_indices(view.k, -1)
    bsi = view.norm_weighted[..., below[0], below[1]].mean(-1)  # (1, L, H)
    return {"eb_star_value": (bsi.max(2) - bsi.mean(2)).max(1), "value_bsi": bsi}
