"""Measures of how a model treats several tokens as one unit. A measure is one file; see docs/your-measure.md.

To write one: `from bindscope.measures import Column, Needs, span_measure`.
"""

from bindscope.engine.data import Needs
from bindscope.measures.decorators import choice_measure, completion_measure, head_measure, span_measure
from bindscope.schema import Column

__all__ = ["Column", "Needs", "choice_measure", "completion_measure", "head_measure", "span_measure"]
