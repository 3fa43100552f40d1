"""The mean attention of every head to the previous token on neutral text (Olsson et al. 2022, arXiv:2209.11895)."""

from __future__ import annotations

import numpy as np

from bindscope.measures.base import Values
from bindscope.measures.decorators import head_measure
from bindscope.measures.view import NeutralView
from bindscope.schema import Column


@head_measure(
    title="Previous-token score",
    value="previous_token_score",
    group="binding",
    columns=[
        Column(
            "previous_token_score",
            "number",
            "mean attention to the previous token on neutral text",
            unit="share of attention",
            range=(0, 1),
            source="Olsson et al. 2022",
        )
    ],
)
def previous_token(view: NeutralView) -> Values:
    """The previous-token score of every head, (L, H) (Olsson et al. 2022)."""
    rows = [band[:, :, view.first + 1 :, 1].astype(np.float64) for band in view.bands]
    return {"previous_token_score": np.concatenate(rows, 2).mean(2)}
