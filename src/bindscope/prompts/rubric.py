"""The score of a generated text by the phrases in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from bindscope.records import Rubric


def matches(text: str, phrases: Sequence[str]) -> tuple[str, ...]:
    """The phrases that occur in a text between word boundaries, in any case, in the order given."""
    return tuple(p for p in phrases if _phrase(p).search(text))


@lru_cache(maxsize=8192)
def _phrase(phrase: str) -> re.Pattern[str]:
    body = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){body}(?!\w)", re.IGNORECASE)


def rubric_score(text: str, rubric: Rubric) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """The score of a generated text (0 to 1), the keywords in it, and the contradictions in it.

    max(0, min(1, distinct keywords / 3) - 0.2 x distinct contradictions), as in Tran (2026).
    """
    keywords, contradictions = matches(text, rubric.keywords), matches(text, rubric.contradictions)
    return max(0.0, min(1.0, len(keywords) / 3) - 0.2 * len(contradictions)), keywords, contradictions
