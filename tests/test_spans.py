"""Where a term stands: by characters, over real tokenizers, whatever surrounds it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import tokenizers_made
from bindscope.errors import ModelError, PromptError, SpanError
from bindscope.prompts.audit import audit
from bindscope.prompts.library import library
from bindscope.prompts.spans import INFLECTIONS, encode, find, locate, special_prefix, tokens_of

TERMS = [*library().terms, "écran reader", "touch target size", "Größe ändern", "画面 読み上げ"]

_filler = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Mn", "Mc", "Me"]), max_size=25)
_join = st.sampled_from([" ", "  ", "\n", " (", ' "', ", ", ": ", ". ", "—", "/", " “"])
_end = st.sampled_from(["", " ", ".", ",", ")", '"', "?", "!", "'s", "’s", " is", "\n", "—", "/x", " 🎉"])
_case = st.sampled_from([str, str.lower, str.upper, str.title, str.capitalize])
_form = st.sampled_from(["NFC", "NFD"])


@st.composite
def placed(draw: st.DrawFn) -> tuple[str, str, tuple[int, int]]:
    """A text, a term, and the characters where an inflected, recased form of the term was put."""
    term = draw(st.sampled_from(TERMS))
    shown = draw(_case)(term)
    assume(shown.lower() == term.lower())  # "ß".upper() is "SS": another spelling
    shown = unicodedata.normalize(draw(_form), shown + draw(st.sampled_from(["", *INFLECTIONS])))
    before = draw(st.one_of(st.just(""), st.tuples(_filler, _join).map("".join)))
    after = draw(st.one_of(st.just(""), st.tuples(_end, _filler).map("".join)))
    return before + shown + after, term, (len(before), len(before) + len(shown))


def _word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char).startswith("M")


Case = tuple[str, str, tuple[int, int]]
_SETTINGS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_FEWER = settings(_SETTINGS, max_examples=150)


def _check_span(tokenizer: PreTrainedTokenizerBase, case: Case, bos: bool) -> None:
    """What holds of a span under every tokenizer, whatever is around the term."""
    text, term, chars = case
    start, end = chars
    assume(start == 0 or not _word(text[start - 1]))
    assume(end == len(text) or not _word(text[end]))
    found = find(text, term)
    assert chars in found
    if bos:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(0)
    encoded = encode(tokenizer, text, "on" if bos else "off")
    tokens = tokens_of(encoded, chars)
    assert encoded.prefix == int(bos)
    assert list(tokens) == list(range(tokens[0], tokens[-1] + 1))
    assert all(i >= encoded.prefix for i in tokens)
    covered = {c for i in tokens for c in range(*encoded.offsets[i])}
    # Some tokenizers trim the space off a token; those that compose accents give the pair the base letter's offset.
    letters = {c for c in range(start, end) if not text[c].isspace() and not unicodedata.combining(text[c])}
    assert letters <= covered  # every character of the term
    for i in (tokens[0], tokens[-1]):  # and no token without one of them
        assert set(range(*encoded.offsets[i])) & set(range(start, end))
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in [encoded.ids[i] for i in tokens]:
        # What else these tokens hold is at most what a tokenizer glues to a word: a space or punctuation, no letters.
        assert not any(_word(text[c]) for c in covered - set(range(start, end)))
        decoded = tokenizer.decode([encoded.ids[i] for i in tokens], clean_up_tokenization_spaces=False)
        if "\ufffd" not in decoded:
            assert _bare(text[start:end]) in _bare(decoded)
    if len(tokens) > 1 and found[0] == chars:
        span = locate(encoded, term)
        assert span.tokens == tokens
        assert span.chars == chars
        assert span.occurrences == len(found)


def _bare(text: str) -> str:
    """Composed and without white space, which some tokenizers do not give back."""
    return "".join(unicodedata.normalize("NFC", text).split())


@_SETTINGS
@given(case=placed(), bos=st.booleans())
def test_span_covers_exactly_the_terms_characters(
    real_tokenizer: PreTrainedTokenizerBase, case: Case, bos: bool
) -> None:
    _check_span(real_tokenizer, case, bos)


@_FEWER
@given(case=placed(), bos=st.booleans())
def test_span_covers_the_term_under_every_kind_of_tokenizer(
    made_tokenizer: PreTrainedTokenizerBase, case: Case, bos: bool
) -> None:
    _check_span(made_tokenizer, case, bos)


def _span_by_decoding(tokenizer: PreTrainedTokenizerBase, text: str, chars: tuple[int, int]) -> list[int] | None:
    """The term's tokens from growing decoded prefixes, without offsets; None where decoding changes the text.

    A token belongs to the term if it completes, or is a part of, one of the term's characters; white space counts
    nothing, so that a token of only white space never begins or ends the span.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    prefixes = ["".join(tokenizer.decode(ids[:n]).split()) for n in range(len(ids) + 1)]
    if prefixes[-1] != "".join(text.split()) or "\ufffd" in text:
        return None
    whole = [len(prefix.rstrip("\ufffd")) for prefix in prefixes]  # complete characters before each token
    start, end = len("".join(text[: chars[0]].split())), len("".join(text[: chars[1]].split()))
    inside = []
    for i in range(len(ids)):
        first, last = whole[i], max(whole[i + 1], whole[i] + prefixes[i + 1].endswith("\ufffd"))
        if last > first and first < end and last > start:
            inside.append(i)
    return list(range(inside[0], inside[-1] + 1))


#: Texts that most tokenizers give back exactly, so that the comparison below is made.
_plain = st.lists(
    st.sampled_from(["a", "user", "is", "on the", "page,", "2024", "\u2014", "\u00e9t\u00e9"]), max_size=4
)


@_FEWER
@given(
    term=st.sampled_from(TERMS),
    shape=st.tuples(_plain, _plain, st.sampled_from(["", *INFLECTIONS]), st.sampled_from(["", ".", ",", " is"])),
)
def test_span_is_that_of_decoding(
    made_tokenizer: PreTrainedTokenizerBase, term: str, shape: tuple[list[str], list[str], str, str]
) -> None:
    before, after, ending, stop = shape
    head = " ".join([*before, ""])
    text = f"{head}{term}{ending}{stop}{' ' if after else ''}{' '.join(after)}"
    chars = (len(head), len(head) + len(term) + len(ending))
    expected = _span_by_decoding(made_tokenizer, text, chars)
    if expected is not None:
        assert list(tokens_of(encode(made_tokenizer, text, "off"), chars)) == expected


@pytest.mark.parametrize("kind", tokenizers_made.KINDS)
def test_most_plain_texts_are_given_back(kind: str) -> None:
    """So that the comparison with decoding is not an empty one."""
    texts = [f"A {term} is on the page" for term in library().terms]
    compared = sum(_span_by_decoding(tokenizers_made.made(kind), text, (2, 8)) is not None for text in texts)
    assert compared > 0.9 * len(texts)


@pytest.mark.parametrize(
    ("text", "k"), [("screen reader", 3), ("a screen reader", 3), ("a screen  readers", 4), ("(screen reader)", 3)]
)
def test_a_marker_before_the_term_is_no_token_of_it(text: str, k: int) -> None:
    """A lone Metaspace marker has the offsets of the letter after it; the one between two words belongs to the term."""
    tokenizer = tokenizers_made.made("lone-marker")
    encoded = encode(tokenizer, text, "off")
    span = locate(encoded, "screen reader")
    tokens = tokenizer.convert_ids_to_tokens([encoded.ids[i] for i in span.tokens])
    assert tokens[:3] == ["screen", "\u2581", "reader"]
    assert span.k == k


def test_a_word_of_one_token_after_a_marker_has_no_pair() -> None:
    tokenizer = tokenizers_made.made("lone-marker")
    for text in ("screen", "a screen on"):
        with pytest.raises(SpanError, match="single token"):
            locate(encode(tokenizer, text, "off"), "screen")
    table = audit(tokenizer, "t", library().select("screen reader"))
    assert table["prompt_n"].tolist() == [3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Screen readers and the SCREEN READER.", ["Screen readers", "SCREEN READER"]),
        ("screen\nreader", ["screen\nreader"]),
        ("a screen readership", []),  # another word, not an inflection
        ("touchscreen reader", []),  # the term begins inside a word
        ("screen-reader", []),  # declare it as an alias if it is meant
        ("the screen reader's voice", ["screen reader"]),
        ("screen_reader screen reader2", []),
        ("screen reader\u0301", []),  # the last letter carries an accent: another letter
    ],
)
def test_find(text: str, expected: list[str]) -> None:
    assert [text[slice(*chars)] for chars in find(text, "screen reader")] == expected


def test_alias_and_longest_form() -> None:
    text = "Alternative text is alt text."
    assert [text[slice(*c)] for c in find(text, "alt text", ("alternative text",))] == ["Alternative text", "alt text"]
    assert find("skip navigation link", "skip navigation", ("skip navigation link",)) == [(0, 20)]


def test_published_locator_fault_is_not_repeated(words: PreTrainedTokenizerFast) -> None:
    """The published locator was one token late on inflected forms and cut the span at the end of a prompt."""
    encoded = encode(words, "Which of these is one of the ARIA attributes", "on")
    span = locate(encoded, "aria attribute")
    assert "".join(words.decode([encoded.ids[i]]) for i in span.tokens).strip() == "ARIA attributes"
    assert span.tokens[-1] == len(encoded.ids) - 1


def test_absent_and_one_token_are_named(words: PreTrainedTokenizerFast) -> None:
    encoded = encode(words, "nothing about it", "off")
    with pytest.raises(SpanError, match="does not occur") as absent:
        locate(encoded, "screen reader")
    assert absent.value.reason == "absent"
    with pytest.raises(SpanError, match="single token") as single:
        locate(encode(words, "it is a thing", "off"), "a")
    assert single.value.reason == "one token"


def test_first_occurrence_is_used(words: PreTrainedTokenizerFast) -> None:
    text = "alt text, alt texts, ALT TEXT"
    span = locate(encode(words, text, "off"), "alt text")
    assert (span.chars, span.occurrences) == ((0, 8), 3)


def test_empty_term_is_an_error() -> None:
    with pytest.raises(PromptError, match="empty"):
        find("some text", "  ")


def test_tokenizer_without_offsets_is_refused() -> None:
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        vocab_size = 1

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

        def _tokenize(self, text: str, **_: object) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return 0

    with pytest.raises(ModelError, match="offsets"):
        encode(Slow(), "a screen reader", "off")


def test_bos_choices(words: PreTrainedTokenizerFast) -> None:
    plain = encode(words, "alt text", "off")
    forced = encode(words, "alt text", "on")
    assert special_prefix(words, "default") == ()  # this tokenizer adds nothing by itself
    assert forced.ids == (words.bos_token_id, *plain.ids)
    assert forced.prefix == 1
    assert locate(forced, "alt text").tokens == tuple(i + 1 for i in locate(plain, "alt text").tokens)


def test_special_tokens_behind_the_text_are_left_out(words: PreTrainedTokenizerFast, tmp_path: object) -> None:
    import copy

    from tokenizers.processors import TemplateProcessing

    both = copy.deepcopy(words)
    end = words.bos_token_id
    both.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    assert both("alt text")["input_ids"][-1] == end
    encoded = encode(both, "alt text", "default")
    assert encoded.ids == (end, *encode(words, "alt text", "off").ids)


def test_no_bos_token_to_force(words: PreTrainedTokenizerFast) -> None:
    import copy

    bare = copy.deepcopy(words)
    bare.bos_token = None
    with pytest.raises(ModelError, match="no BOS token"):
        encode(bare, "alt text", "on")


def test_auto_tokenizer_gives_the_same_spans(words: PreTrainedTokenizerFast, tmp_path) -> None:  # type: ignore[no-untyped-def]
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for term in library().terms:
        text = f"About a {term} and more"
        assert encode(again, text, "on") == encode(words, text, "on")
