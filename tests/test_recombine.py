"""Grids of recombined pairings: every cell is what the tokenizer makes of its text, over made and real tokenizers."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

import tokenizers_made
from bindscope.prompts.build import frames
from bindscope.prompts.library import library
from bindscope.prompts.recombine import MADE_UP, Grid, Grids, data_list, grids, reference_grids
from bindscope.prompts.spans import encode, tokens_of
from bindscope.records import Bos, Term

CARRIERS = frames()["carriers"]
SENTENCES = [*CARRIERS, *frames()["robustness"], "{term} is what they said.", "They said that {term} is it."]
TERMS = [*library().terms.values(), *map(Term, [*data_list("familiar.txt")[:30], *data_list("words.txt")[:1500:50]])]
_SETTINGS = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _solid(text: str) -> str:
    """Without spaces: some decoders put or leave out one around punctuation."""
    return "".join(text.split())


def _check(made: Grids, terms: list[Term], tokenizer: PreTrainedTokenizerBase, bos: Bos, declared: list[str]) -> None:
    placed = list(chain.from_iterable(grid.places for grid in made.grids))
    assert sorted([*placed, *made.left_out]) == sorted(term.name for term in terms)
    assert all(made.left_out.values())
    for grid in made.grids:
        assert len({carrier.ids for carrier in grid.carriers}) == len(grid.carriers) > 0
        assert len({head.ids for head in grid.heads}) == len(grid.heads)
        assert len({tail.ids for tail in grid.tails}) == len(grid.tails)
        assert {len(head.ids) for head in grid.heads} == {grid.cut}
        assert {len(tail.ids) for tail in grid.tails} == {grid.k - grid.cut}
        assert set(grid.places.values()) <= set(grid.cells)
        assert len(grid.cells) + len(grid.left_out) == grid.shape[0] * grid.shape[1]
        _check_cells(grid, tokenizer, bos)
        _check_terms(grid, {term.name: term for term in terms}, tokenizer, bos)
        _check_expressions(grid, declared)


def _check_cells(grid: Grid, tokenizer: PreTrainedTokenizerBase, bos: Bos) -> None:
    for cell in grid.cells:
        assert _solid(tokenizer.decode(grid.ids(cell))) == _solid(grid.text(cell))
        for carrier in grid.carriers:
            assert encode(tokenizer, carrier.text + grid.text(cell), bos).ids == carrier.ids + grid.ids(cell)


def _check_terms(grid: Grid, terms: dict[str, Term], tokenizer: PreTrainedTokenizerBase, bos: Bos) -> None:
    assert len(set(grid.places.values())) == len(grid.places)
    for name, cell in grid.places.items():
        surface = terms[name].surface
        assert grid.text(cell) == surface
        assert grid.in_word == (len(surface.split()) == 1)
        if not grid.in_word:
            assert grid.tails[cell[1]].text.split() == surface.split()[-1:]
        for carrier in grid.carriers:
            encoded = encode(tokenizer, carrier.text + surface, bos)
            span = tokens_of(encoded, (len(carrier.text), len(encoded.text)))
            assert tuple(encoded.ids[i] for i in span) == grid.ids(cell)


def _check_expressions(grid: Grid, declared: list[str]) -> None:
    shipped = library()
    made_up = {name for group in (*MADE_UP, "tiny-nonsense") for name in shipped.sets[group]}
    real = {name for name in shipped.terms if name not in made_up}
    real |= {*data_list("familiar.txt"), *data_list("expressions.txt"), *declared}
    real = {" ".join(text.casefold().replace("-", " ").split()) for text in real}
    others = set(grid.cells) - set(grid.places.values())
    assert not real & {" ".join(grid.text(cell).casefold().replace("-", " ").split()) for cell in others}


@_SETTINGS
@given(
    terms=st.lists(st.sampled_from(TERMS), min_size=6, max_size=24, unique_by=lambda term: term.name),
    carriers=st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=4),
    bos=st.sampled_from(["default", "off", "on"]),
    data=st.data(),
)
def test_every_cell_is_its_text(
    made_tokenizer: PreTrainedTokenizerBase, terms: list[Term], carriers: list[str], bos: Bos, data: st.DataObject
) -> None:
    free = grids(terms, made_tokenizer, carriers, bos, least=2)
    _check(free, terms, made_tokenizer, bos, [])
    cells = [grid.text(cell) for grid in free.grids for cell in grid.cells if cell not in grid.places.values()]
    if cells:
        declared = data.draw(st.lists(st.sampled_from(cells), min_size=1, max_size=3))
        _check(
            grids(terms, made_tokenizer, carriers, bos, declared=declared, least=2),
            terms,
            made_tokenizer,
            bos,
            declared,
        )


def test_of_the_accessibility_terms_with_real_tokenizers(real_tokenizer: PreTrainedTokenizerBase) -> None:
    terms = list(library().select("a11y-41"))
    made = grids(terms, real_tokenizer, CARRIERS, "off")
    _check(made, terms, real_tokenizer, "off", [])
    (grid,) = made.grids
    assert (grid.k, grid.cut, len(grid.carriers)) == (2, 1, 6)
    assert len(grid.places) >= 33
    assert len({row for row, _ in map(grid.places.get, ["skip link", "skip navigation"])}) == 1
    assert "an expression: plain text" in grid.left_out.values()


def test_reference_grids_of_real_tokenizers(real_tokenizer: PreTrainedTokenizerBase) -> None:
    made = reference_grids(real_tokenizer, "off")
    for name, in_word in (("random pairs", False), ("familiar units", False), ("one-word units", True)):
        grid = made[name].grids[0]
        assert (grid.k, grid.cut, grid.in_word, grid.shape, len(grid.places)) == (2, 1, in_word, (32, 32), 32)
        assert len(grid.cells) > 850
    merged = [reason for reason in made["one-word units"].grids[0].left_out.values() if "tokens change" in reason]
    assert merged


def test_reference_grids_of_small_vocabularies(made_tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever a tokenizer gives: each unit is in a grid or has a reason, and the grids hold."""
    units = {"random pairs": data_list("random-pairs.txt"), "familiar units": data_list("familiar.txt")}
    for name, made in reference_grids(made_tokenizer, size=12).items():
        placed = list(chain.from_iterable(grid.places for grid in made.grids))
        _check(made, [Term(unit) for unit in units.get(name, [*placed, *made.left_out])], made_tokenizer, "default", [])
        assert all(len(grid.places) <= 12 for grid in made.grids)


@pytest.fixture(scope="module")
def gpt2_like() -> PreTrainedTokenizerBase:
    return tokenizers_made.made("gpt2-like")


def test_carriers_count_once_and_one_that_begins_with_the_term_not_at_all(gpt2_like: PreTrainedTokenizerBase) -> None:
    terms = library().select("a11y-41")
    sentences = ["They wrote {term} down.", "They wrote {term} up.", "{term} was written.", "He wrote {term}."]
    made = grids(terms, gpt2_like, sentences, "off", least=2)
    assert made.grids
    assert [carrier.text for carrier in made.grids[0].carriers] == ["They wrote ", "He wrote "]
    none = grids(terms, gpt2_like, ["{term} was written."], "off", least=2)
    assert not none.grids
    assert {*none.left_out.values()} == {"the carrier sentences begin with the term, so nothing is in front of it"}


def test_reasons(gpt2_like: PreTrainedTokenizerBase) -> None:
    names = ["reader", "incomprehensibilities of the screen", "screen reader", "screen  reader", "keyboard navigation"]
    made = grids([Term(name) for name in names], gpt2_like, CARRIERS, least=4)
    assert not made.grids
    assert made.left_out["reader"] == "one token"
    assert "tokens; a grid takes up to 5" in made.left_out["incomprehensibilities of the screen"]
    assert "a grid needs 4" in made.left_out["screen reader"]
    twice = grids([Term("screen reader"), Term("the reader of screens", written="screen reader")], gpt2_like, CARRIERS)
    assert twice.left_out["the reader of screens"] == "it has the tokens of 'screen reader'"
    shared = grids([Term(f"screen {tail}") for tail in ("reader", "text", "content")], gpt2_like, CARRIERS, least=2)
    assert {*shared.left_out.values()} == {"no recombined cell can be read: all are expressions or change tokens"}


def test_the_first_terms_where_a_grid_takes_only_so_many(gpt2_like: PreTrainedTokenizerBase) -> None:
    terms = library().select("a11y-41")
    whole = grids(terms, gpt2_like, CARRIERS, least=2).grids[0]
    made = grids(terms, gpt2_like, CARRIERS, least=2, most=3)
    first = next(grid for grid in made.grids if (grid.k, grid.cut) == (whole.k, whole.cut))
    assert list(first.places) == list(whole.places)[:3]
    assert made.left_out[list(whole.places)[3]] == "the grid has its 3 terms"


def test_lists_that_ship() -> None:
    familiar, pairs = ([unit.split() for unit in data_list(name)] for name in ("familiar.txt", "random-pairs.txt"))
    assert len(familiar) >= 60
    assert len(pairs) >= 40
    for units in (familiar, pairs):
        assert all(len(unit) == 2 for unit in units)
        assert len({unit[0] for unit in units}) == len({unit[1] for unit in units}) == len(units)
    assert len({*chain.from_iterable(pairs)}) == 2 * len(pairs)
    expressions, words = data_list("expressions.txt"), data_list("words.txt")
    assert len({*expressions}) == len(expressions) >= 300
    assert len({*words}) == len(words) >= 3000
    assert all(len(expression.split()) in (2, 3) for expression in expressions)
    a11y = {name for term in library().select("accessibility") for name in (term.name, term.surface, *term.aliases)}
    known = {*expressions, *map(" ".join, familiar)}
    assert not {name.casefold() for name in a11y} & {*map(" ".join, familiar), *map(" ".join, pairs)}
    assert not known & {*map(" ".join, pairs)}
