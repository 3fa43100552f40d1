"""Characters -> tokens: where a term is in a tokenized prompt.

A term is searched in the *text*, and its characters are mapped to tokens by the tokenizer's offsets. It is never
encoded on its own, because "screen" at the start of a text and " screen" inside it are different tokens. A token
belongs to the span when it overlaps the term's characters. Many tokenizers join a space to the word after it: that
token belongs to the span. A token that is only the space before the term does not.
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

#: Endings that are added to an English noun or verb ("readers", "ordered", "masking").
INFLECTIONS = ("s", "es", "d", "ed", "ing", "ings")
#: What a space looks like in the vocabularies of SentencePiece and of byte-level BPE, and white space itself.
_SPACES = "\u2581\u0120 \t\r\n"


@dataclass(frozen=True)
class Encoded:
    """A text as a model reads it.

    text: the text.
    ids: token ids, special tokens in front included.
    offsets: for each token its interval of characters; empty for special tokens and for a token that is
        only a space although the tokenizer assigns it the letter after it.
    prefix: how many special tokens are in front.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    prefix: int


def find(text: str, term: str, aliases: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Character intervals of every occurrence of a term, left to right, without overlaps.

    term: the term; case and the kind of white space between its words do not matter.
    aliases: other names of it.

    An occurrence begins and ends at a word boundary. The last word may be inflected, accents may be composed or
    decomposed, and where several forms match at one place the longest is taken. Raises PromptError for an empty term.
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
    """Tokenize a prompt, with the characters of each token.

    bos: "default" keeps the special tokens that the tokenizer puts in front, "on" makes the sequence start with its
        BOS token, "off" adds none. Special tokens that a tokenizer puts *after* a text are always left out, because
        the prompt is continued.

    Raises ModelError for a tokenizer without offsets, and for "on" where it has no BOS token.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets, so a term cannot be located without "
            "guessing; load a fast tokenizer (a repository or folder with tokenizer.json)"
        )
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    prefix = special_prefix(tokenizer, bos)
    offsets = [_offset(text, *pair) for pair in zip(coded.tokens(), coded["offset_mapping"], strict=True)]
    return Encoded(
        text=text, ids=(*prefix, *coded["input_ids"]), offsets=(*[(0, 0)] * len(prefix), *offsets), prefix=len(prefix)
    )


def _offset(text: str, token: str, offset: tuple[int, int]) -> tuple[int, int]:
    """The characters of a token. Metaspace tokenizers give a marker that is a token of its own the letter after it."""
    start, end = int(offset[0]), int(offset[1])
    characters = text[start:end]
    lone_space = not token.strip(_SPACES) and characters.strip() and token != characters
    return (start, start) if lone_space else (start, end)


def special_prefix(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> tuple[int, ...]:
    """Ids of the special tokens in front of every text; `bos` as in `encode`. Raises ModelError as `encode` does."""
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

    Raises SpanError where the term does not occur (`reason` "absent") or is a single token, so that there is no pair of
    tokens to bind (`reason` "one token").
    """
    occurrences = find(encoded.text, term, aliases)
    if not occurrences:
        raise SpanError(
            "absent",
            f"the term {term!r} does not occur in the prompt {encoded.text!r}; "
            "write it into the prompt, or declare the form used there as an alias",
        )
    tokens = tokens_of(encoded, occurrences[0])
    if len(tokens) < 2:
        raise SpanError(
            "one token",
            f"the term {term!r} is a single token in the prompt {encoded.text!r}: there is no pair of tokens to bind",
        )
    return Span(tokens, occurrences[0], len(occurrences))


def tokens_of(encoded: Encoded, chars: tuple[int, int]) -> tuple[int, ...]:
    """Positions of the tokens that overlap a character interval, and of those between them."""
    start, end = chars
    overlapping = [i for i, (a, b) in enumerate(encoded.offsets) if a < end and b > start and b > a]
    return tuple(range(overlapping[0], overlapping[-1] + 1)) if overlapping else ()


def continuation(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, choice: str) -> tuple[int, ...]:
    """Token ids of a choice after a prompt, with a space between them.

    Raises PromptError where the ids of prompt and choice together do not begin with those of the prompt (the
    probability of the choice would not be a product over its own tokens), where the choice adds no token, and where
    the prompt ends in white space.
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
