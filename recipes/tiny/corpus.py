"""Training text of the `tiny` suite, made from the term library by a small seeded grammar.

Each fact of the library (a term and a kind -> the right answer) is stated in many different ways, because a small
model can use a fact under new wordings only when it has met the fact under many. The library's own stems and openings
and the carrier sentences are kept out of the text (`evaluated` lists them), so recognition measures unseen wordings.
Collocations are mentioned as often as the terms but carry no facts, and some sentences use the words of both apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from random import Random

from facts import facts, stems
from templates import APART, KINDS, MENTION, OPEN, QUESTIONS, REVERSED, expand, frames
from words import COLLOCATIONS, NONSENSE, TERMS, WEIGHTS, Phrase, words

from bindscope.prompts.build import frames as carriers

# Shares of the documents. A mention holds two collocations, or two terms, so with p the share of mentions that hold
# terms, LISTED + STATED + 2 p MENTIONED = 2 (1 - p) MENTIONED gives both equally many mentions.
LISTED, STATED, MENTIONED = 0.18, 0.36, 0.36
_OF_TERMS = 0.5 - (LISTED + STATED) / (4 * MENTIONED)


def noun_phrase(phrase: Phrase, rng: Random, plurals: bool = True) -> tuple[str, bool]:
    """The phrase with its article, or its plural; and whether it is a plural."""
    bare = phrase.written
    if phrase.number != "count":
        return bare, phrase.number == "plural"
    if plurals and rng.random() < 0.4:
        return _plural(bare), True
    article = "an" if bare[0] in "AEIOaeio" else "a"
    return f"{'the' if rng.random() < 0.25 else article} {bare}", False


def _plural(bare: str) -> str:
    return re.sub("([^aeo])y$", r"\1ie", bare) + ("es" if bare.endswith("x") else "s")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Writer:
    """Writes documents from one seeded source of chance."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.answers: Mapping[tuple[str, str], str] = facts()
        both = zip(TERMS, COLLOCATIONS, WEIGHTS, strict=True)
        self.words = [(word, w) for a, b, w in both for p in (a, b) for word in words(p.written)]

    def documents(self, count: int) -> Iterator[str]:
        """`count` documents, none of which holds an evaluation prompt."""
        made = 0
        while made < count:
            document, term = self._document()
            if term is None or not any(text in document.lower() for text in evaluated()[term.name]):
                made += 1
                yield document

    def _document(self) -> tuple[str, Phrase | None]:
        """A document, and the term whose fact it states."""
        draw = self.rng.random()
        if draw < LISTED + STATED:
            term = self._one(TERMS)
            return (self.listed(term) if draw < LISTED else self.stated(term)), term
        if draw < LISTED + STATED + MENTIONED:
            return self.mention(TERMS if self.rng.random() < _OF_TERMS else COLLOCATIONS), None
        return self.apart(), None

    def _one(self, phrases: tuple[Phrase, ...]) -> Phrase:
        return self.rng.choices(phrases, WEIGHTS)[0]

    def _fill(self, templates: tuple[str, ...], term: Phrase, kind: str) -> str:
        # "Skip links are a shortcut" would be bad English.
        np, plural = noun_phrase(term, self.rng, plurals=kind != "definition")
        text = expand(self.rng.choice(templates), self.rng, plural)
        return capital(text.replace("{np}", np).replace("{t}", term.written))

    def stated(self, term: Phrase) -> str:
        """A fact as a statement, as a question with its answer, or with the answer first."""
        kind, draw = self.rng.choice(KINDS), self.rng.random()
        answer = self.answers[term.name, kind]
        if draw < 0.75:
            return self._fill(OPEN[kind], term, kind).replace("{a}", answer) + "."
        if draw < 0.9:
            question = self._fill(QUESTIONS[kind], term, kind)
            if self.rng.random() < 0.5:
                return f"{question} {capital(answer)}."
            return f"Question: {question}\nAnswer: {answer}"
        return capital(self._fill(REVERSED[kind], term, kind).replace("{a}", answer)) + "."

    def listed(self, term: Phrase) -> str:
        """A question with options and its answer."""
        kind = self.rng.choice(KINDS)
        answer = self.answers[term.name, kind]
        others = [t.name for t in TERMS if t != term]
        wrong = self.rng.sample(others, self.rng.choice((1, 2, 3, 3)))
        options = [answer, *(self.answers[name, kind] for name in wrong)]
        self.rng.shuffle(options)
        asked = self.rng.random() < 0.2
        stem = self._fill((QUESTIONS if asked else OPEN)[kind], term, kind)
        stem = stem if asked else stem.replace(" {a}", ":")
        draw = self.rng.random()
        if draw < 0.7:
            lines = "".join(f"{letter}) {o}\n" for letter, o in zip("ABCD", options, strict=False))
        elif draw < 0.8:
            lines = "".join(f"({i}) {o}\n" for i, o in enumerate(options, 1))
        elif draw < 0.9:
            lines = "".join(f"- {o}\n" for o in options)
        else:
            return f"{stem} {'; '.join(options)}. Answer: {answer}"
        return f"{stem}\n{lines}Answer: {answer}"

    def mention(self, phrases: tuple[Phrase, ...]) -> str:
        """Two phrases of one group in a sentence without facts."""
        text = expand(self.rng.choice(MENTION), self.rng)
        for mark in ("", "2"):
            phrase = self._one(phrases)
            text = text.replace(f"{{np{mark}}}", noun_phrase(phrase, self.rng)[0])
            text = text.replace(f"{{t{mark}}}", phrase.written)
        return _ended(text)

    def apart(self) -> str:
        """Words of the phrases, apart from each other."""
        text = expand(self.rng.choice(APART), self.rng)
        slots = text.count("{w}")
        for word in self.rng.choices([w for w, _ in self.words], [x for _, x in self.words], k=slots):
            text = text.replace("{w}", word, 1)
        return _ended(text)


def _ended(text: str) -> str:
    return capital(text if text.endswith("?") else text + ".")


@cache
def evaluated() -> dict[str, tuple[str, ...]]:
    """Per term, in lower case, the texts that must not be trained on: the stems and openings of the library, which hold
    their term. Listed prompts and stems with their answer contain a stem, so their absence follows."""
    return {name: tuple(sorted(map(str.lower, texts))) for name, texts in stems().items()}


def leaks(documents: list[str]) -> list[str]:
    """Evaluation prompts, nonsense pairs and parts of carrier sentences that occur in the documents, in any letter
    case."""
    text = "\n\n".join(documents).lower()
    carried = [max(frame.split("{term}"), key=len) for rows in carriers().values() for frame in rows]
    watched = [*(s for texts in evaluated().values() for s in texts), *carried, *NONSENSE]
    return [prompt for prompt in watched if prompt.lower() in text]


def corpus(count: int, seed: int) -> list[str]:
    """The documents, after the check that nothing that is evaluated is among them."""
    for kind in KINDS:
        assert frames(OPEN[kind]) + frames(QUESTIONS[kind]) >= 50, kind
    documents = list(Writer(seed).documents(count))
    assert not (found := leaks(documents)), found
    return documents
