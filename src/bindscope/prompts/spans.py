"""Characters -> tokens: where a term stands in a tokenized prompt.

A term is found in the *text* and carried to tokens by character offsets. It is never re-encoded on its own, because
"screen" at the start of a text and " screen" inside it are different tokens. A token belongs to the span when it
overlaps the term's characters; the space that many tokenizers put in front of a word belongs to its token.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from bindscope.errors import ModelError, PromptError, SpanError
from bindscope.records import Bos, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Endings that inflect an English noun or verb by extending it ("readers", "ordered", "masking").
INFLECTIONS = ("s", "es", "d", "ed", "ing", "ings")


@dataclass(frozen=True)
class Encoded:
    """A text as a model sees it. ids[0:prefix] are special tokens; offsets[i] is the character interval of ids[i]."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    prefix: int


def find(text: str, term: str, aliases: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Character intervals of every occurrence of the term, left to right, without overlaps.

    Any case; any white space between words; inflections that extend the last word; composed and decomposed
    accents; any of the aliases. The term must begin and end at a word boundary, and where two forms match at one
    place the longer wins.
    """
    return [match.span() for match in _pattern(term, tuple(aliases)).finditer(text)]


@lru_cache(maxsize=4096)
def _pattern(term: str, aliases: tuple[str, ...]) -> re.Pattern[str]:
    forms = {unicodedata.normalize(form, name) for name in (term, *aliases) for form in ("NFC", "NFD")}
    if not all(form.strip() for form in forms):
        raise PromptError(f"a term or alias is empty: {(term, *aliases)!r}")
    words = [r"\s+".join(re.escape(word) for word in form.split()) for form in sorted(forms, key=len, reverse=True)]
    ending = "|".join(sorted(INFLECTIONS, key=len, reverse=True))
    # A combining mark after the last letter would make it another letter, and \b does not know that.
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?:{ending})?(?![\w\u0300-\u036f])", re.IGNORECASE)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, bos: Bos = "default") -> Encoded:
    """Tokenize a prompt with offsets.

    bos: "default" keeps the special tokens that the tokenizer puts in front, "on" makes the sequence start with its
    BOS token, "off" adds none. Special tokens that a tokenizer puts *behind* a text are left out in every case: the
    prompt is continued. Raises ModelError for a tokenizer that gives no offsets or has no BOS token to force.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets, so a term cannot be located without "
            "guessing; load a fast tokenizer (a repository or folder with tokenizer.json)"
        )
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    prefix = special_prefix(tokenizer, bos)
    return Encoded(
        text,
        (*prefix, *coded["input_ids"]),
        (*[(0, 0)] * len(prefix), *[(int(a), int(b)) for a, b in coded["offset_mapping"]]),
        len(prefix),
    )


def special_prefix(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> tuple[int, ...]:
    """Ids of the special tokens in front of every text under this BOS choice."""
    if bos == "off":
        return ()
    if bos == "on":
        if tokenizer.bos_token_id is None:
            raise ModelError(f"the tokenizer {tokenizer.name_or_path!r} has no BOS token to force on; use bos: default")
        return (int(tokenizer.bos_token_id),)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(int(i) for i in full[:start])
    raise ModelError(
        f"the tokenizer {tokenizer.name_or_path!r} changes a text when it adds special tokens; use bos: off"
    )


def locate(encoded: Encoded, term: str, aliases: Sequence[str] = ()) -> Span:
    """The span of the term's first occurrence.

    Raises SpanError where the term is absent, or is covered by a single token (nothing to bind); its `reason` is
    "absent" or "one token".
    """
    found = find(encoded.text, term, aliases)
    if not found:
        raise SpanError(
            "absent",
            f"the term {term!r} does not occur in the prompt {encoded.text!r}; "
            "write it into the prompt, or declare the form used there as an alias",
        )
    tokens = tokens_of(encoded, found[0])
    if len(tokens) < 2:
        raise SpanError(
            "one token",
            f"the term {term!r} is a single token in the prompt {encoded.text!r}: there is no pair of tokens to bind",
        )
    return Span(tokens, found[0], len(found))


def tokens_of(encoded: Encoded, chars: tuple[int, int]) -> tuple[int, ...]:
    """Positions of the tokens that overlap a character interval, from the first to the last."""
    start, end = chars
    hit = [i for i, (a, b) in enumerate(encoded.offsets) if a < end and b > start and b > a]
    return tuple(range(hit[0], hit[-1] + 1)) if hit else ()


def continuation(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, choice: str) -> tuple[int, ...]:
    """Ids of a choice after a prompt, a space between them.

    The ids of prompt + choice must extend those of the prompt, otherwise P(choice | prompt) is not a product over
    the choice's tokens. Raises PromptError naming both where they do not, where a choice adds no token, and where the
    prompt ends in white space.
    """
    if encoded.text[-1:].isspace():
        raise PromptError(
            f"the prompt {encoded.text!r} ends in white space, and a space is put before each choice; remove it"
        )
    tokens = tokenizer(f"{encoded.text} {choice}", add_special_tokens=False, verbose=False)["input_ids"]
    joined = (*encoded.ids[: encoded.prefix], *tokens)
    n = len(encoded.ids)
    if joined[:n] != encoded.ids:
        raise PromptError(
            f"the tokenizer merges the prompt {encoded.text!r} with the choice {choice!r} at their join; "
            "end the prompt in punctuation"
        )
    if len(joined) == n:
        raise PromptError(f"the choice {choice!r} adds no token after the prompt {encoded.text!r}")
    return tuple(int(i) for i in joined[n:])
