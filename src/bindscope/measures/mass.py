"""EB*_mass: as EB*, but from mass instead of BSI.

Mass sums a token's attention to the term's earlier tokens, so it is 1 at every k for a head that attends only to them.
BSI, a mean over pairs, is then at most 2 / k.

mass[l, h] is the mean over i > 1 of sum_{j < i} A[s_i, s_j], where A is the attention of head h in layer l and s_i the
position of the i-th of the term's k tokens. It equals BSI at k = 2.
EB*_mass = max_l (max_h mass - mean_h mass).
"""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.eb_star import SHARE
from bindscope.measures.view import SpanView
from bindscope.schema import Column


@span_measure(
    title="EB*_mass",
    value="eb_star_mass",
    needs=Needs(attention=True),
    null="windows",
    group="binding",
    columns=[
        Column("eb_star_mass", "number", "EB* built from mass instead of BSI", unit=SHARE, range=(0, 1)),
        Column(
            "mass",
            "list of numbers",
            "attention of a token of the term to the term's earlier tokens, mean over tokens",
            unit=SHARE,
            range=(0, 1),
            shape="layers x heads",
        ),
    ],
)
def mass(view: SpanView) -> Values:
    """EB*_mass (n,) and the mass of every head (n, L, H)."""
    # Pairs are ordered by their later token; those of token i, counted from 0, end at row_ends[i].
    row_ends = np.cumsum(np.arange(view.k))
    sums = [view.pairs[..., row_ends[i - 1] : row_ends[i]].sum(-1) for i in range(1, view.k)]
    each = np.stack(sums, -1).mean(-1)  # (n, L, H)
    return {"eb_star_mass": (each.max(2) - each.mean(2)).max(1), "mass": each}
