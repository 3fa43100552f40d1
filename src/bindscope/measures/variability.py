"""Variability: completions of openings sampled at three temperatures with five seeds each (Tran 2026)."""

from __future__ import annotations

from bindscope.measures.base import Values
from bindscope.measures.completions import COLUMNS, scored
from bindscope.measures.decorators import completion_measure
from bindscope.measures.view import CompletionView
from bindscope.records import Sampling

TEMPERATURES = (0.0, 0.3, 0.7)
SEEDS = (42, 123, 456, 789, 1024)


@completion_measure(
    columns=COLUMNS,
    value="score",
    title="Score when sampled",
    sampling=tuple(Sampling(temperature, seed) for temperature in TEMPERATURES for seed in SEEDS),
    implies=("generation",),
)
def variability(view: CompletionView) -> Values:
    """The rubric score of a sampled completion (Tran 2026)."""
    return scored(view)
