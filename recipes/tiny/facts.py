"""The facts and prompts of the term library, for the terms of this suite."""

from __future__ import annotations

from functools import cache

from words import TERMS

from bindscope.prompts.library import library
from bindscope.records import Term


@cache
def terms() -> tuple[Term, ...]:
    """The library's terms, most frequent first."""
    found = tuple(library().terms[phrase.name] for phrase in TERMS)
    for term, phrase in zip(found, TERMS, strict=True):
        assert term.surface == phrase.written, term.surface
    return found


@cache
def facts() -> dict[tuple[str, str], str]:
    """Term and kind of question -> the right answer."""
    return {(term.name, question.kind): question.answer for term in terms() for question in term.questions}


@cache
def stems() -> dict[str, tuple[str, ...]]:
    """Per term, the texts that it is evaluated on: the stems of its questions and its openings."""
    return {t.name: (*(q.stem for q in t.questions), *(o.text for o in t.openings)) for t in terms()}
