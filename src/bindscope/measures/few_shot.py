"""Few-shot: completions of openings that follow a sentence.

The sentence is the term's exemplar, a paraphrase of it without keywords, or the exemplar of another term.
"""

from __future__ import annotations

from bindscope.measures.base import Values
from bindscope.measures.completions import COLUMNS, scored
from bindscope.measures.decorators import completion_measure
from bindscope.measures.view import CompletionView


@completion_measure(
    columns=COLUMNS,
    value="score",
    title="Score with an exemplar",
    shots=("exemplar", "paraphrase", "mismatched"),
    implies=("generation",),
)
def few_shot(view: CompletionView) -> Values:
    """The rubric score of a completion that follows an exemplar."""
    return scored(view)
