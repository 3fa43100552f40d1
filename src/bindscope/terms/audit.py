"""How a tokenizer cuts each term: alone and inside a sentence, and whether it can be measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from bindscope.records import Term
from bindscope.terms.spans import Encoded, encode, tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE = "In this text, {} is a term."


def audit(tokenizer: PreTrainedTokenizerBase, name: str, terms: Iterable[Term]) -> pd.DataFrame:
    """One row per term.

    bare_*: the term as a text of its own, without special tokens; prompt_*: the term inside a sentence (most
    tokenizers then join the space to its first token). forms_differ: whether the two give different ids. valid: two
    or more tokens in a sentence; else `reason` says why not.
    """
    return pd.DataFrame([_row(tokenizer, name, term.name) for term in terms])


def _row(tokenizer: PreTrainedTokenizerBase, name: str, term: str) -> dict[str, object]:
    alone = encode(tokenizer, term, "off")
    bare = list(alone.ids)
    inside = encode(tokenizer, _SENTENCE.format(term), "off")
    at, reason = _span(inside, term)
    ids = [inside.ids[i] for i in at]
    return {
        "tokenizer": name,
        "term": term,
        "bare_n": len(bare),
        "bare_ids": bare,
        "bare_strings": [tokenizer.decode([i]) for i in bare],
        "prompt_n": len(ids),
        "prompt_ids": ids,
        "prompt_strings": [tokenizer.decode([i]) for i in ids],
        "forms_differ": bare != ids,
        "valid": reason is None,
        "reason": reason,
    }


def _span(inside: Encoded, term: str) -> tuple[tuple[int, ...], str | None]:
    """Tokens of the term where it was put, which need not be where its words occur first."""
    start = _SENTENCE.index("{}")
    tokens = tokens_of(inside, (start, start + len(term)))
    return tokens, None if len(tokens) > 1 else "one token"
