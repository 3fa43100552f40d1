"""EB* with attention counted by what it carries: a head that attends to a null value binds nothing.

The weight of key j for head h at position i is ||A[i, j] v_j W_O^h|| as a share of the same over all keys of i
(Kobayashi et al. 2020, arXiv:2004.10102), W_O^h the head's rows of the output projection.
"""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values, span_measure
from bindscope.measures.eb_star import SHARE
from bindscope.measures.view import SpanView
from bindscope.schema import Column

_SOURCE = "Kobayashi et al. 2020"
_UNKNOWN = "the output projection of this architecture is not known"


@span_measure(
    title="EB* by norms",
    value="eb_star_value",
    needs=Needs(carried=True),
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
    below = np.tril_indices(view.k, -1)
    bsi = view.carried[..., below[0], below[1]].mean(-1)  # (1, L, H)
    return {"eb_star_value": (bsi.max(2) - bsi.mean(2)).max(1), "value_bsi": bsi}
