"""Generation: does the greedy completion of an opening contain the keywords of the term's rubric (Tran 2026)?"""

from __future__ import annotations

from bindscope.measures.base import Values
from bindscope.measures.completions import COLUMNS, scored
from bindscope.measures.decorators import completion_measure
from bindscope.measures.view import CompletionView


@completion_measure(columns=COLUMNS, value="score", title="Generation")
def generation(view: CompletionView) -> Values:
    """The rubric score of a greedy completion (Tran 2026)."""
    return scored(view)
