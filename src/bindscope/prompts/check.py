"""Checks of a term file that a schema cannot make: prompts without their term, ambiguous aliases, deceptive letters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from bindscope.prompts.rubric import matches
from bindscope.prompts.spans import find
from bindscope.records import Rubric, Term
from bindscope.yamlfile import Place, YamlFile

_WORD = re.compile(r"\w+")
#: Alphabets with letters that look like Latin ones.
_ALIKE = {"CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "FULLWIDTH", "MATHEMATICAL"}


def check_terms(file: YamlFile, terms: Sequence[Term]) -> None:
    """Raise RequestError, naming the line, for the first fault in the terms of a file."""
    for i, term in enumerate(terms):
        for place, text in _texts(term):
            if fault := look_alike(text):
                raise file.error(f"term {term.name!r}: {fault}", ("terms", i, *place))
        for place, text in _texts_with_the_term(term):
            if text and not find(text, term.name, term.aliases):
                raise file.error(
                    f"term {term.name!r} does not occur in {text!r}; write it there, or list the form used as an alias",
                    ("terms", i, *place),
                )
        if term.rubric is not None:
            _check_rubric(file, i, term, term.rubric)
    _check_aliases(file, terms)


def _check_rubric(file: YamlFile, i: int, term: Term, rubric: Rubric) -> None:
    for field, phrases in (("keywords", rubric.keywords), ("contradictions", rubric.contradictions)):
        for fault in filter(None, map(look_alike, phrases)):
            raise file.error(f"term {term.name!r}: {fault}", ("terms", i, "rubric", field))
        if len({p.casefold() for p in phrases}) < len(phrases):
            raise file.error(f"term {term.name!r}: {field} holds a phrase twice", ("terms", i, "rubric", field))
    if both := [p for p in rubric.contradictions if matches(p, rubric.keywords)]:
        raise file.error(
            f"term {term.name!r}: the contradiction {both[0]!r} holds a keyword, so it would score points; reword it",
            ("terms", i, "rubric", "contradictions"),
        )
    if hits := matches(term.paraphrase, rubric.keywords):
        raise file.error(
            f"term {term.name!r}: the paraphrase holds the keyword {hits[0]!r}; it is to have none",
            ("terms", i, "paraphrase"),
        )


def _texts(term: Term) -> Iterator[tuple[Place, str]]:
    yield ("name",), term.name
    yield from ((("aliases", j), alias) for j, alias in enumerate(term.aliases))
    yield from _texts_with_the_term(term)


def _texts_with_the_term(term: Term) -> Iterator[tuple[Place, str]]:
    """Texts in which the term must occur."""
    yield ("written",), term.written
    yield from ((("recognition", j, "stem"), q.stem) for j, q in enumerate(term.questions))
    yield from ((("generation", j, "prompt"), o.text) for j, o in enumerate(term.openings))
    yield ("exemplar",), term.exemplar
    yield ("paraphrase",), term.paraphrase


def look_alike(text: str) -> str | None:
    """What is wrong with the letters of a text (two alphabets in one word, an invisible character); None if nothing."""
    for char in text:
        if unicodedata.category(char) in ("Cf", "Cc", "Co", "Cs") and char not in "\n\t":
            return f"{text!r} holds the invisible character U+{ord(char):04X}; remove it"
    for word in _WORD.findall(text):
        scripts: dict[str, str] = {}
        for char in word:
            if char.isalpha():
                scripts.setdefault(unicodedata.name(char, "?").split()[0], char)
        if "LATIN" in scripts and (others := [c for s, c in scripts.items() if s in _ALIKE]):
            other = others[0]
            name = unicodedata.name(other, "?")
            return f"the word {word!r} mixes alphabets: {other!r} is U+{ord(other):04X} {name}, not a Latin letter"
    return None


def _check_aliases(file: YamlFile, terms: Sequence[Term]) -> None:
    """Raise RequestError for an alias that contains a name of another term, or is contained in one."""
    for i, term in enumerate(terms):
        for j, alias in enumerate(term.aliases):
            for other in terms:
                if other.name == term.name:
                    continue
                for form in (other.name, *other.aliases):
                    if find(form, alias) or find(alias, form):
                        raise file.error(
                            f"the alias {alias!r} of {term.name!r} and {form!r}, a name of {other.name!r}, overlap: "
                            "a text with one would be taken for the other; take the alias out",
                            ("terms", i, "aliases", j),
                        )
