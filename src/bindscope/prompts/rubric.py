"""Scores a generated text by the phrases in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from bindscope.records import Rubric


def matches(text: str, phrases: Sequence[str]) -> tuple[str, ...]:
    """The phrases that stand in a text on word boundaries, in any case, in the order given."""
    return tuple(p for p in phrases if _phrase(p).search(text))


@lru_cache(maxsize=8192)
def _phrase(phrase: str) -> re.Pattern[str]:
    body = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)


def rubric_score(text: str, rubric: Rubric) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """Score of a generated text in [0, 1], the keywords in it, the contradictions in it.

    Distinct keywords on word boundaries / 3, at most 1, minus 0.2 per contradiction, at least 0 (Tran 2026). Both
    bounds are part of the definition; the lists show what lies beyond them.
    """
    good, bad = matches(text, rubric.keywords), matches(text, rubric.contradictions)
    return max(0.0, min(1.0, len(good) / 3) - 0.2 * len(bad)), good, bad
