"""What is drawn, in the order of the page. A figure that the run does not carry is not in the list."""

from __future__ import annotations

from bindscope.report.contrasts import against_k, exemplars, leads, spread, validity
from bindscope.report.curves import emergence, onsets, runs, small_multiples
from bindscope.report.edits import among_random, doses
from bindscope.report.figure import Figure
from bindscope.report.maps import heads, layers, sentences
from bindscope.report.material import Material
from bindscope.report.relations import decoupling, early_late

_DRAWN = (
    emergence,
    runs,
    heads,
    small_multiples,
    validity,
    against_k,
    leads,
    onsets,
    layers,
    exemplars,
    early_late,
    decoupling,
    among_random,
    doses,
    sentences,
    spread,
)


def figures(found: Material) -> list[Figure]:
    """Every figure that the run carries."""
    return [figure for draw in _DRAWN for figure in draw(found)]
