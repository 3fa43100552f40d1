"""The figures of a report, in the order of the page: those of the run, then each claim's own."""

from __future__ import annotations

import re
from dataclasses import replace

from bindscope.charts.figure import Figure
from bindscope.claims.analysis import Analysis
from bindscope.claims.inputs import Findings
from bindscope.claims.registry import built_in, in_a_line
from bindscope.report import between_runs, curves, maps, measures

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_OF_THE_RUN = (curves.emergence, curves.runs, maps.heads, curves.small_multiples, maps.layers, measures.figures)


def figures(found: Findings, analysis: Analysis | None) -> tuple[list[Figure], list[str]]:
    """Every figure that the run carries, and a line for each that a claim failed to draw.

    analysis: None for a run without questions; what claims draw from binding alone is drawn then too.
    """
    drawn = [figure for draw in _OF_THE_RUN for figure in draw(found)]
    spread = [] if analysis is None else list(between_runs.spread(found, analysis.claims))
    problems = list[str]()
    for claim in built_in() if analysis is None else analysis.claims:
        for draw in claim.figures:
            try:
                own = [_checked(figure, claim.id) for figure in draw(found)]
                names = {figure.name for figure in (*drawn, *spread)}
                if taken := next((figure.name for figure in own if figure.name in names), None):
                    raise ValueError(f"there is another figure called {taken!r}")
                drawn += own
            except Exception as error:  # a claim may be somebody else's code: the other figures are kept
                problems.append(f"claim {claim.id}: a figure is left out: {in_a_line(error)}")
    return [*drawn, *spread], problems


def _checked(figure: Figure, claim: str) -> Figure:
    """The figure as one of the claim's. Raises TypeError or ValueError for one that cannot be shown."""
    if not isinstance(figure, Figure):
        raise TypeError(f"{type(figure).__name__} is no bindscope.charts.figure.Figure")
    if not _NAME.fullmatch(figure.name):
        raise ValueError(f"a figure's name is of letters, digits, hyphens and underscores, got {figure.name!r}")
    return replace(figure, claim=claim)
