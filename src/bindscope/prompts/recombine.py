"""Grids of recombined pairings: every head of a set of terms with every tail, in the same carrier sentences.

A term is cut into head and tail: all words but the last and the last word, or, where it is one word, all tokens but the
last and the last token. Cell (i, j) of a grid is head i followed by tail j, read up to its last token, so nothing of a
sentence behind the term is needed. The terms are cells themselves, in general those on the diagonal; the other cells
hold the same words in pairings that mean nothing. Terms of different length or cut are in different grids.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from bindscope.prompts.build import frames
from bindscope.prompts.library import library
from bindscope.prompts.spans import encode, special_prefix, tokens_of
from bindscope.records import Bos, Term

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Terms that a grid must have.
LEAST = 8
#: Tokens that a term may have.
MOST_TOKENS = 5
#: Units of a reference grid.
REFERENCE = 32
#: Control groups of the library whose members are no expressions of English.
MADE_UP = ("nonsense", "rare-pairs", "reversed-order", "cross-term-swap", "semantic-field", "random-pairs")
MADE_UP_TINY = ("tiny-nonsense",)

#: Row and column of a cell.
Cell = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A piece of a text.

    text: its characters; a space between head and tail is the tail's, one before the term is the carrier's
    ids: its token ids; of a carrier, special tokens in front included
    """

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """Terms of one length and cut, recombined.

    k: tokens of every cell
    cut: tokens of every head
    in_word: whether the terms are single words, cut between tokens
    carriers: what stands in front of a cell, each different
    heads: of the rows, each once
    tails: of the columns, each once
    places: name of a term -> its cell
    left_out: cell -> why it is not measured: the expression that it is, or that its tokens change
    """

    k: int
    cut: int
    in_word: bool
    carriers: tuple[Part, ...]
    heads: tuple[Part, ...]
    tails: tuple[Part, ...]
    places: dict[str, Cell]
    left_out: dict[Cell, str]

    @property
    def shape(self) -> Cell:
        """Rows and columns."""
        return len(self.heads), len(self.tails)

    @property
    def cells(self) -> list[Cell]:
        """The cells that are measured, row by row."""
        rows, cols = self.shape
        return [(i, j) for i in range(rows) for j in range(cols) if (i, j) not in self.left_out]

    def ids(self, cell: Cell) -> tuple[int, ...]:
        """Token ids of a cell."""
        return self.heads[cell[0]].ids + self.tails[cell[1]].ids

    def text(self, cell: Cell) -> str:
        """What a cell says."""
        return self.heads[cell[0]].text + self.tails[cell[1]].text


@dataclass(frozen=True)
class Grids:
    """The grids of some terms, the largest first, and the terms that are in none.

    grids: one for each length and cut
    left_out: name of a term -> why it is in no grid
    """

    grids: tuple[Grid, ...]
    left_out: dict[str, str]


@dataclass(frozen=True)
class _Placed:
    """A term behind a carrier: the carrier's token ids, head and tail, and whether it is a single word."""

    prefix: tuple[int, ...]
    head: Part
    tail: Part
    in_word: bool

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.head.ids, self.tail.ids

    @property
    def group(self) -> tuple[int, int, bool]:
        """Terms of one group share a grid: k, cut, and whether they are single words."""
        return len(self.head.ids) + len(self.tail.ids), len(self.head.ids), self.in_word


def grids(
    terms: Iterable[Term],
    tokenizer: PreTrainedTokenizerBase,
    carriers: Iterable[str],
    bos: Bos = "default",
    *,
    declared: Iterable[str] = (),
    least: int = LEAST,
    most: int | None = None,
) -> Grids:
    """The grids that the terms make with this tokenizer.

    carriers: sentences with `{term}` in the place of the term; one that says the same as another up to there, or that
        begins with the term, is not used
    bos: special tokens in front, see `spans.encode`
    declared: expressions that are real although no list here holds them; such a cell is left out
    least: terms that a grid must have
    most: terms that a grid takes, the first ones; None for all
    Raises ModelError as `spans.encode` does.
    """
    known = tuple({term.name: term for term in terms}.values())
    fronts = tuple(dict.fromkeys(carrier[: carrier.index("{term}")] for carrier in carriers))
    places = {term.name: _forms(tokenizer, term, fronts, bos) for term in known}
    left_out = {name: forms for name, forms in places.items() if isinstance(forms, str)}
    placed = {name: forms for name, forms in places.items() if not isinstance(forms, str)}
    groups: dict[tuple[int, int, bool], dict[str, dict[str, _Placed]]] = {}
    for name, forms in placed.items():
        groups.setdefault(next(iter(forms.values())).group, {})[name] = forms
    real = _singulars([*declared, *(n for term in known for n in (term.name, term.surface, *term.aliases))])
    special = special_prefix(tokenizer, bos)
    made = []
    for group in sorted(groups, key=lambda group: (-len(groups[group]), group)):
        members, fitting = _members(groups[group], most, left_out)
        if reason := _too_few(members, group, least):
            left_out |= dict.fromkeys(members, reason)
            continue
        grid = _grid(tokenizer=tokenizer, members=members, carriers=fitting, group=group, real=real, special=special)
        if len(grid.cells) > len(members):
            made.append(grid)
        else:
            left_out |= dict.fromkeys(members, "no recombined cell can be read: all are expressions or change tokens")
    return Grids(tuple(made), {term.name: left_out[term.name] for term in known if term.name in left_out})


def reference_grids(
    tokenizer: PreTrainedTokenizerBase,
    bos: Bos = "default",
    carriers: Sequence[str] = (),
    size: int = REFERENCE,
    least: int = LEAST,
) -> dict[str, Grids]:
    """What terms are compared with: "random pairs", "familiar units" and "one-word units" with this tokenizer.

    carriers: those of the terms; without any, the sentences that ship
    size: units that a grid takes
    Where a tokenizer gives too few, the grids that there are, and the reason of every unit that is in none.
    """
    sentences = carriers or frames()["carriers"]
    units = {
        "random pairs": [Term(pair) for pair in data_list("random-pairs.txt")],
        "familiar units": [Term(unit) for unit in data_list("familiar.txt")],
        "one-word units": _two_token_words(tokenizer, sentences, bos, size),
    }
    return {name: grids(terms, tokenizer, sentences, bos, least=least, most=size) for name, terms in units.items()}


@cache
def data_list(name: str) -> tuple[str, ...]:
    """The lines of a list that ships; lines that begin with # explain it."""
    text = resources.files("bindscope").joinpath("data", name).read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def _forms(tokenizer: PreTrainedTokenizerBase, term: Term, fronts: Sequence[str], bos: Bos) -> dict[str, _Placed] | str:
    """Front -> the term behind it, where it has the tokens that it has most often; or why there is no such front."""
    forms = {front: _place(tokenizer, front, term.surface, bos) for front in fronts}
    placed = {front: form for front, form in forms.items() if not isinstance(form, str)}
    if not placed:
        return next((reason for reason in forms.values() if isinstance(reason, str)), "there is no carrier sentence")
    usual = Counter(form.ids for form in placed.values()).most_common(1)[0][0]
    return {front: form for front, form in placed.items() if form.ids == usual}


def _place(tokenizer: PreTrainedTokenizerBase, front: str, surface: str, bos: Bos) -> _Placed | str:
    """A term behind the beginning of a carrier; or why it cannot be measured there."""
    encoded = encode(tokenizer, front + surface, bos)
    start, end = len(front), len(front) + len(surface)
    span = tokens_of(encoded, (start, end))
    if not span or span[-1] != len(encoded.ids) - 1:
        return "the tokenizer adds tokens behind it"
    if not span[0]:
        return "the carrier sentences begin with the term, so nothing is in front of it"
    ids = encoded.ids[span[0] :]
    if len(ids) < 2:
        return "one token"
    if len(ids) > MOST_TOKENS:
        return f"{len(ids)} tokens; a grid takes up to {MOST_TOKENS}"
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        return "the tokenizer does not know one of its letters"
    if front[encoded.offsets[span[0]][0] :].strip():
        return "a token holds letters of the carrier sentence and of the term"
    last = re.search(r"\s+\S+$", surface)
    stop = start + last.start() if last else encoded.offsets[span[-1]][0]
    head = [i for i in span if encoded.offsets[i][0] < stop]
    cut = head[-1] + 1 - span[0] if head else 0
    if not 0 < cut < len(ids) or encoded.text[stop : encoded.offsets[head[-1]][1]].strip():
        return "a token crosses the cut between head and tail"
    return _Placed(
        prefix=encoded.ids[: span[0]],
        head=Part(encoded.text[start:stop], ids[:cut]),
        tail=Part(encoded.text[stop:], ids[cut:]),
        in_word=last is None,
    )


def _members(
    group: dict[str, dict[str, _Placed]], most: int | None, left_out: dict[str, str]
) -> tuple[dict[str, _Placed], tuple[Part, ...]]:
    """The terms of one grid and the carriers behind which all of them have their tokens; why others are not among them
    is added to `left_out`."""
    fronts = dict.fromkeys(front for forms in group.values() for front in forms)
    prefixes = {
        front: Counter(forms[front].prefix for forms in group.values() if front in forms).most_common(1)[0][0]
        for front in fronts
    }
    fits = {
        front: {name for name, forms in group.items() if front in forms and forms[front].prefix == prefixes[front]}
        for front in fronts
    }
    best = max(fits, key=lambda front: len(fits[front]))
    members: dict[str, _Placed] = {}
    by_ids: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}
    for name, forms in group.items():
        if name not in fits[best]:
            left_out[name] = "no carrier sentence gives it and the other terms their usual tokens"
        elif (other := by_ids.setdefault(forms[best].ids, name)) != name:
            left_out[name] = f"it has the tokens of {other!r}"
        elif most is not None and len(members) == most:
            left_out[name] = f"the grid has its {most} terms"
        else:
            members[name] = forms[best]
    used = [Part(front, prefixes[front]) for front in fronts if members.keys() <= fits[front]]
    return members, tuple({carrier.ids: carrier for carrier in used}.values())


def _too_few(members: dict[str, _Placed], group: tuple[int, int, bool], least: int) -> str:
    if len(members) >= least:
        return ""
    k, cut, in_word = group
    n = len(members)
    what = ("word" if in_word else "term") + (" has" if n == 1 else "s have")
    return f"only {n} {what} {k} tokens with {cut} of them in the head; a grid needs {least}"


def _grid(
    tokenizer: PreTrainedTokenizerBase,
    members: dict[str, _Placed],
    carriers: tuple[Part, ...],
    group: tuple[int, int, bool],
    real: frozenset[str],
    special: tuple[int, ...],
) -> Grid:
    """Rows, columns and cells; real: expressions beside those that ship; special: tokens in front of every text."""
    heads = tuple({form.head.ids: form.head for form in members.values()}.values())
    tails = tuple({form.tail.ids: form.tail for form in members.values()}.values())
    row, column = {head.ids: i for i, head in enumerate(heads)}, {tail.ids: j for j, tail in enumerate(tails)}
    places = {name: (row[form.head.ids], column[form.tail.ids]) for name, form in members.items()}
    k, cut, in_word = group
    grid = Grid(k=k, cut=cut, in_word=in_word, carriers=carriers, heads=heads, tails=tails, places=places, left_out={})
    terms, real = set(places.values()), real | _known()
    for cell in grid.cells:
        if cell not in terms and not _singular_forms(grid.text(cell)).isdisjoint(real):
            grid.left_out[cell] = f"an expression: {grid.text(cell)}"
    for cell in _changed(tokenizer, grid, special):
        grid.left_out.setdefault(cell, f"tokens change: {grid.text(cell)}")
    return grid


def _changed(tokenizer: PreTrainedTokenizerBase, grid: Grid, special: tuple[int, ...]) -> set[Cell]:
    """The cells whose text has other tokens than those of carrier, head and tail, behind any carrier.

    special: tokens in front of every text
    """
    changed: set[Cell] = set()
    cells = grid.cells
    for carrier in grid.carriers:
        texts = [carrier.text + grid.text(cell) for cell in cells]
        coded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for cell, ids in zip(cells, coded, strict=True):
            if special + tuple(ids) != carrier.ids + grid.ids(cell):
                changed.add(cell)
    return changed


def _two_token_words(tokenizer: PreTrainedTokenizerBase, carriers: Sequence[str], bos: Bos, size: int) -> list[Term]:
    """The most frequent words of two tokens, no two with the same head or tail."""
    front = next((c[: c.index("{term}")] for c in carriers if c.index("{term}")), "")
    words: list[Term] = []
    seen: set[tuple[int, ...]] = set()
    for word in data_list("words.txt"):
        form = _place(tokenizer, front, word, bos)
        if isinstance(form, str) or form.group[0] != 2 or seen & set(form.ids):
            continue
        seen |= set(form.ids)
        words.append(Term(word))
        if len(words) == size:
            break
    return words


@cache
def _known() -> frozenset[str]:
    """Expressions and words of English: those of the library, without control groups that were made up, and lists."""
    shipped = library()
    made_up = {name for group in (*MADE_UP, *MADE_UP_TINY) for name in shipped.sets[group]}
    terms = [term for name, term in shipped.terms.items() if name not in made_up]
    names = [name for term in terms for name in (term.name, term.surface, *term.aliases)]
    return _singulars([*names, *data_list("familiar.txt"), *data_list("expressions.txt"), *data_list("words.txt")])


def _singulars(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(form for text in texts for form in _singular_forms(text))


def _singular_forms(text: str) -> set[str]:
    """A text in lower case without hyphens, and what is left of it where a plural ending is taken off."""
    plain = " ".join(text.casefold().replace("-", " ").split())
    return {plain, *(plain.removesuffix(ending) for ending in ("s", "es"))}
