"""The correlation of binding and behavior again, below the published one, with what it rests on taken away in turn.

The published p takes every pair of a prompt and a checkpoint as independent. They are not: the same few terms come back
at every checkpoint of one training run, and both quantities rise from step 0 on, whatever binds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from bindscope.replicate.numbers import pairs, paper, spearman
from bindscope.replicate.published import Published, step_of
from bindscope.stats.correlate import Undefined, clustered_spearman
from bindscope.stats.result import Result, table

ALL = "all sizes"
_SPEARMAN = "Spearman's rho"


def coupling(data: Published, wrong: pd.DataFrame | None = None) -> pd.DataFrame:
    """Readings of the coupling for each source (prompt set or term table) and size, as rows of `Result` fields.

    wrong: term and prompt of the spans that stand on other tokens than the term's, where a tokenizer could tell.
    """
    found = []
    for (source, size), part in _sources(data):
        for result in _readings(part, size == ALL, wrong):
            found.append((source, size, result))
    frame = table([result for *_, result in found])
    frame.insert(0, "source", [source for source, *_ in found])
    frame.insert(1, "size", [size for _, size, _ in found])
    return frame


def _sources(data: Published) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Each with columns size, checkpoint, term, prompt, eb, score."""
    joined = pairs(data).rename(columns={"set": "source", "eb_star": "eb", "prompt_template": "prompt"})
    terms = data.terms.rename(columns={"eb_star": "eb", "beh_avg": "score"}).assign(source="term table", prompt="")
    columns = ["source", "size", "checkpoint", "term", "prompt", "eb", "score"]
    parts = [frame[columns] for frame in (joined, terms) if len(frame)]
    if not parts:
        return
    for source, part in pd.concat(parts, ignore_index=True).groupby("source", sort=False):
        for size, one in part.groupby("size", sort=False):
            yield (str(source), str(size)), one
        if part["size"].nunique() > 1:
            yield (str(source), ALL), part


def _readings(part: pd.DataFrame, pooled: bool, wrong: pd.DataFrame | None) -> Iterator[Result]:
    plain = spearman(part["eb"], part["score"])
    method = f"{_SPEARMAN}; p as if the pairs were independent"
    yield Result("C1-A", "all pairs", "published", plain.rho, plain.n, "prompt x checkpoint", method, p=plain.p,
                 reason=plain.reason)  # fmt: skip
    yield _clustered("all pairs", part)
    # Where step 0 is not there, the reading without it would repeat the one above.
    start = part["checkpoint"].map(step_of) == 0
    if start.any() and not start.all():
        yield _clustered("without step 0", part[~start])
    at = part.groupby(["size", "checkpoint"])
    within = part.assign(
        eb=part["eb"] - at["eb"].transform("mean"), score=part["score"] - at["score"].transform("mean")
    )
    yield _clustered("within checkpoints", within, "each less its mean at the checkpoint")
    each = part.groupby(["size", "term", "checkpoint"], as_index=False, sort=False)[["eb", "score"]].mean()
    yield _clustered("means of term and checkpoint", each, unit="term x checkpoint")
    if pooled:
        means = part.groupby(["size", "term"], as_index=False, sort=False)[["eb", "score"]].mean()
        yield _clustered("means of term", means, "means over checkpoints and prompts", unit="term x size")
    for label, steps in paper()["windows"].items():
        window = part[part["checkpoint"].isin(steps)]
        if len(window):
            yield _clustered(f"window: {label}", window)
    if wrong is not None and len(wrong):
        bad = set(zip(wrong["term"], wrong["prompt"], strict=True))
        kept = part[[pair not in bad for pair in zip(part["term"], part["prompt"], strict=True)]]
        if 0 < len(kept) < len(part):
            yield _clustered("without mis-located spans", kept)


def _clustered(name: str, part: pd.DataFrame, how: str = "", unit: str = "prompt x checkpoint") -> Result:
    plain = spearman(part["eb"], part["score"])
    terms = part["term"].nunique()
    method = f"{_SPEARMAN}{', ' + how if how else ''}; 95% bootstrap interval that redraws whole terms"
    base = Result("C1-A", name, "controlled", plain.rho, plain.n, unit, method, clusters=terms, cluster="term")
    if plain.rho is None:
        return replace(base, reason=plain.reason)
    if terms < 2:
        return replace(base, reason="one term: there is nothing to redraw, so no interval")
    try:
        found = clustered_spearman(part["eb"], part["score"], part["term"])
    except Undefined as error:
        return replace(base, reason=str(error))
    return replace(base, low=found.low, high=found.high)


def coupling_shows(frame: pd.DataFrame) -> str:
    """What the readings show beside the published figure, in words."""
    if frame.empty:
        return "No prompt has both a binding and a behavior record."
    said = []
    for (source, size), part in frame.groupby(["source", "size"], sort=False):
        whole = part[(part["reading"] == "controlled") & (part["quantity"] == "all pairs")].iloc[0]
        if pd.isna(whole["value"]):
            said.append(f"{source}, {size}: not computable, {whole['reason']}.")
            continue
        bits = [f"rho {whole['value']:+.2f} over all {whole['n']} pairs"]
        for name in ("without step 0", "within checkpoints"):
            row = part[part["quantity"] == name]
            if len(row) and not pd.isna(row.iloc[0]["value"]):
                bits.append(f"{row.iloc[0]['value']:+.2f} {name}")
        said.append(f"{source}, {size}: {', '.join(bits)}; the interval {_zero(whole)}.")
    said.append("A rise of both over training makes a positive rho by itself; within checkpoints it cannot.")
    few = frame["clusters"].dropna()
    if len(few) and few.max() < 10:
        said.append(
            f"With {int(few.max())} term{'s' if few.max() > 1 else ''} an interval is a sketch: there is little to "
            "redraw, and what all terms do alike in one training run stays inside every redraw."
        )
    return " ".join(said)


def _zero(row: pd.Series) -> str:
    if pd.isna(row["low"]):
        return "does not exist"
    return f"{row['low']:+.2f} to {row['high']:+.2f} {'holds' if row['low'] <= 0 <= row['high'] else 'leaves out'} 0"
