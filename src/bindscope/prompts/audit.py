"""How a tokenizer cuts each term, alone and inside a sentence, and whether binding can be measured on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bindscope.errors import RequestError
from bindscope.prompts.spans import Encoded, encode, tokens_of
from bindscope.records import Term

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE = "In this text, {} is a term."


def audit(tokenizer: PreTrainedTokenizerBase, name: str, terms: Iterable[Term]) -> pd.DataFrame:
    """A table with one row per term.

    name: what the column `tokenizer` holds.

    Columns:
    bare_n, bare_ids, bare_strings: the tokens of the term as a text of its own, without special tokens.
    prompt_n, prompt_ids, prompt_strings: its tokens inside a sentence; most tokenizers join the space to the first.
    forms_differ: whether the two give different ids.
    valid, reason: whether it has two or more tokens in a sentence, and why not.
    """
    return pd.DataFrame([_row(tokenizer, name, term) for term in terms])


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write the table of `audit` as CSV, with lists as JSON. Raises RequestError where it cannot be written."""
    lists = [str(name) for name in table if str(name).endswith(("_ids", "_strings"))]
    plain = table.assign(**{name: [json.dumps(ids, ensure_ascii=False) for ids in table[name]] for name in lists})
    try:
        plain.to_csv(path, index=False)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error


def by_k(tokenizer: PreTrainedTokenizerBase, groups: Mapping[str, Iterable[Term]]) -> pd.DataFrame:
    """How many expressions of each group have k tokens inside a sentence: one row per group, one column per k."""
    counts = {
        group: Counter(len(_row(tokenizer, "", term)["prompt_ids"]) for term in terms)
        for group, terms in groups.items()
    }
    ks = sorted({k for group in counts.values() for k in group})
    return pd.DataFrame({k: [counts[group][k] for group in counts] for k in ks}, index=list(counts))


def unmatched(table: pd.DataFrame) -> list[str]:
    """Warnings about comparisons without a control of the same k.

    table: as `by_k` gives it, the terms in the first row.
    """
    terms, warnings = table.iloc[0], []
    for group in table.index[1:]:
        for k in table.columns:
            if int(str(k)) > 1 and terms[k] and not table.loc[group, k]:
                left = f"{terms[k]} of {table.index[0]} cannot be compared"
                warnings.append(f"{group} has no expression of {k} tokens: {left}")
    return warnings


def _row(tokenizer: PreTrainedTokenizerBase, name: str, term: Term) -> dict[str, Any]:
    alone = encode(tokenizer, term.surface, "off")
    bare = list(alone.ids)
    inside = encode(tokenizer, _SENTENCE.format(term.surface), "off")
    at, reason = _span(inside, term.surface)
    ids = [inside.ids[i] for i in at]
    return {
        "tokenizer": name,
        "term": term.name,
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
    """Tokens of the term at its place in the sentence, whose own words may contain the term."""
    start = _SENTENCE.index("{}")
    tokens = tokens_of(inside, (start, start + len(term)))
    return tokens, None if len(tokens) > 1 else "one token"
