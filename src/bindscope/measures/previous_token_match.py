"""Are the heads that bind the term previous-token heads?"""

from __future__ import annotations

import numpy as np

from bindscope.engine.data import Needs
from bindscope.measures.base import Values
from bindscope.measures.decorators import span_measure
from bindscope.measures.view import SpanView
from bindscope.schema import Column


@span_measure(
    title="r(BSI, previous-token score)",
    value="bsi_pts_r",
    needs=Needs(attention=True, previous_token=True),
    null=None,
    group="binding",
    columns=[
        Column(
            "bsi_pts_r",
            "number",
            "Pearson r over heads of BSI and previous-token score",
            range=(-1, 1),
            missing="one of the two is constant",
        ),
        Column(
            "best_head_is_pts", "yes/no", "whether the head with the largest BSI has the largest previous-token score"
        ),
    ],
)
def previous_token_match(view: SpanView) -> Values:
    """The correlation of BSI and previous-token score over heads, and whether both have the same best head, (n,)."""
    score = view.previous_token.ravel()
    bsi = view.bsi.reshape(view.n, -1)
    r = [np.corrcoef(x, score)[0, 1] if x.std() and score.std() else np.nan for x in bsi]
    return {"bsi_pts_r": np.array(r), "best_head_is_pts": bsi.argmax(1) == score.argmax()}
