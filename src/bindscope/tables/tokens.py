"""How the tokenizer of each suite splits the terms, and how EB* depends on the kind of prompt."""

from __future__ import annotations

import pandas as pd

from bindscope.tables.observations import own_prompts


def cuts(binding: pd.DataFrame) -> pd.DataFrame:
    """How the tokenizer splits each term: a row per suite and term, without control groups, at the last checkpoint.

    binding: the joined table of a run

    Columns
    k, tokens: number of tokens and the tokens, in the most frequent form
    forms: number of different ways in which the term is split
    prompts: number of prompts
    left_out: number of prompts without a span
    reasons: why they have none
    """
    rows = []
    for suite, part in own_prompts(binding).groupby("suite", sort=False) if not binding.empty else ():
        last = part[(part["revision"] == part["revision"].iloc[-1]) & (part["group"] == "real")]
        for term, cell in last.groupby("term", sort=False):
            spans = cell["span_strings"].dropna().map(tuple)
            counts = spans.value_counts()
            reasons = cell["reason"].dropna()
            rows.append(
                {
                    "suite": suite,
                    "term": term,
                    "k": len(counts.index[0]) if len(counts) else None,
                    "tokens": list(counts.index[0]) if len(counts) else [],
                    "forms": len(counts),
                    "prompts": len(cell),
                    "left_out": len(reasons),
                    "reasons": "; ".join(sorted(set(reasons))),
                }
            )
    return pd.DataFrame(rows, columns=["suite", "term", "k", "tokens", "forms", "prompts", "left_out", "reasons"])


def by_kind(binding: pd.DataFrame) -> pd.DataFrame:
    """Mean EB* by suite, term, task and kind of prompt at the last checkpoint, over prompts with a span."""
    rows = []
    for suite, part in own_prompts(binding).groupby("suite", sort=False) if not binding.empty else ():
        last = part[(part["revision"] == part["revision"].iloc[-1]) & part["eb_star"].notna()]
        means = last.groupby(["term", "task", "kind"], sort=False).agg(
            eb_star=("eb_star", "mean"), n=("prompt", "size")
        )
        rows.append(means.reset_index().assign(suite=suite, eb_star=lambda t: t["eb_star"].astype(float)))
    columns = ["suite", "term", "task", "kind", "eb_star", "n"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)
