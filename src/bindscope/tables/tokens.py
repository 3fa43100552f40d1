"""How each suite's tokenizer cuts the terms, and how much binding the sentence makes."""

from __future__ import annotations

import pandas as pd

from bindscope.tables.observations import own_prompts


def cuts(binding: pd.DataFrame) -> pd.DataFrame:
    """A row per suite and term of the study: k and tokens of the form most often met, forms (different cuts), prompts,
    and left_out (prompts without a span) with their reasons. From the last checkpoint; terms only, no controls."""
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
    """Mean EB* by suite, term, task and kind of prompt, at the last checkpoint; prompts without a span are left out."""
    rows = []
    for suite, part in own_prompts(binding).groupby("suite", sort=False) if not binding.empty else ():
        last = part[(part["revision"] == part["revision"].iloc[-1]) & part["eb_star"].notna()]
        means = last.groupby(["term", "task", "kind"], sort=False).agg(
            eb_star=("eb_star", "mean"), n=("prompt", "size")
        )
        rows.append(means.reset_index().assign(suite=suite, eb_star=lambda t: t["eb_star"].astype(float)))
    columns = ["suite", "term", "task", "kind", "eb_star", "n"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)
