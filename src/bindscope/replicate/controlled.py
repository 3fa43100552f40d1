"""The published correlation of binding and behavior, and the same correlation with controls.

The published p treats every pair of a prompt and a checkpoint as independent. They are not: the same few terms occur at
every checkpoint of one training run, and both quantities rise over training whether or not one depends on the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from bindscope.claims.base import Statistic, as_table
from bindscope.replicate.numbers import pairs, paper, spearman
from bindscope.replicate.published import Published, step_of
from bindscope.stats.correlate import Undefined, clustered_spearman

ALL = "all sizes"
#: Ids of the statistics that `coupling_shows` describes.
WHOLE, LATER, WITHIN = "c1a.all", "c1a.later", "c1a.within"
_SPEARMAN = "Spearman's rho"


def coupling(data: Published, wrong: pd.DataFrame | None = None) -> pd.DataFrame:
    """The coupling for each source (prompt set or term table) and size: rows with the fields of `Statistic`.

    data: the published tables
    wrong: columns term and prompt of the spans that are on other tokens than the term's; None where it is not known
    """
    rows = [
        (source, size, statistic)
        for (source, size), part in _sources(data)
        for statistic in _statistics(part, size == ALL, wrong)
    ]
    frame = as_table(statistic for *_, statistic in rows)
    frame.insert(0, "source", [source for source, *_ in rows])
    frame.insert(1, "size", [size for _, size, _ in rows])
    return frame


def _sources(data: Published) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Source and size -> its pairs, with the columns source, size, checkpoint, term, prompt, eb, score."""
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


def _statistics(part: pd.DataFrame, pooled: bool, wrong: pd.DataFrame | None) -> Iterator[Statistic]:
    plain = spearman(part["eb"], part["score"])
    method = f"{_SPEARMAN}; p as if the pairs were independent"
    yield Statistic(
        id=WHOLE,
        reading="published",
        quantity="all pairs",
        value=plain.rho,
        n=plain.n,
        unit="prompt x checkpoint",
        method=method,
        p=plain.p,
        reason=plain.reason,
    )
    yield _clustered(WHOLE, "all pairs", part)
    # Without step 0 in the data, this statistic would repeat the one above.
    start = part["checkpoint"].map(step_of) == 0
    if start.any() and not start.all():
        yield _clustered(LATER, "without step 0", part[~start])
    at = part.groupby(["size", "checkpoint"])
    within = part.assign(
        eb=part["eb"] - at["eb"].transform("mean"), score=part["score"] - at["score"].transform("mean")
    )
    yield _clustered(WITHIN, "within checkpoints", within, "each less its mean at the checkpoint")
    each = part.groupby(["size", "term", "checkpoint"], as_index=False, sort=False)[["eb", "score"]].mean()
    yield _clustered("c1a.checkpoint_means", "means of term and checkpoint", each, unit="term x checkpoint")
    if pooled:
        means = part.groupby(["size", "term"], as_index=False, sort=False)[["eb", "score"]].mean()
        yield _clustered("c1a.means", "means of term", means, "means over checkpoints and prompts", unit="term x size")
    for label, steps in paper()["windows"].items():
        window = part[part["checkpoint"].isin(steps)]
        if len(window):
            yield _clustered("c1a.window", f"window: {label}", window, subject=label)
    if wrong is not None and len(wrong):
        bad = set(zip(wrong["term"], wrong["prompt"], strict=True))
        kept = part[[pair not in bad for pair in zip(part["term"], part["prompt"], strict=True)]]
        if 0 < len(kept) < len(part):
            yield _clustered("c1a.located", "without mis-located spans", kept)


def _clustered(
    id: str, name: str, part: pd.DataFrame, how: str = "", unit: str = "prompt x checkpoint", subject: str | None = None
) -> Statistic:
    plain = spearman(part["eb"], part["score"])
    terms = part["term"].nunique()
    method = f"{_SPEARMAN}{', ' + how if how else ''}; 95% bootstrap interval that redraws whole terms"
    base = Statistic(
        id=id,
        subject=subject,
        reading="controlled",
        quantity=name,
        value=plain.rho,
        n=plain.n,
        unit=unit,
        method=method,
        clusters=terms,
        cluster="term",
    )
    if plain.rho is None:
        return replace(base, reason=plain.reason)
    if terms < 2:
        return replace(base, reason="one term: an interval needs at least two")
    try:
        interval = clustered_spearman(part["eb"], part["score"], part["term"])
    except Undefined as error:
        return replace(base, reason=str(error))
    return replace(base, low=interval.low, high=interval.high)


def coupling_shows(frame: pd.DataFrame) -> str:
    """Sentences on what the controlled statistics show.

    frame: the result of `coupling`
    """
    if frame.empty:
        return "No prompt has both a binding and a behavior record."
    sentences = []
    for (source, size), part in frame.groupby(["source", "size"], sort=False):
        whole = part[(part["reading"] == "controlled") & (part["id"] == WHOLE)].iloc[0]
        if pd.isna(whole["value"]):
            sentences.append(f"{source}, {size}: not computable, {whole['reason']}.")
            continue
        bits = [f"rho {whole['value']:+.2f} over all {whole['n']} pairs"]
        for id in (LATER, WITHIN):
            row = part[part["id"] == id]
            if len(row) and not pd.isna(row.iloc[0]["value"]):
                bits.append(f"{row.iloc[0]['value']:+.2f} {row.iloc[0]['quantity']}")
        sentences.append(f"{source}, {size}: {', '.join(bits)}; the interval {_zero(whole)}.")
    sentences.append("A rise of both over training makes a positive rho by itself; within checkpoints it cannot.")
    few = frame["clusters"].dropna()
    if len(few) and few.max() < 10:
        sentences.append(
            f"With {int(few.max())} term{'s' if few.max() > 1 else ''} an interval is a sketch: there is little to "
            "redraw, and what all terms do alike in one training run stays inside every redraw."
        )
    return " ".join(sentences)


def _zero(row: pd.Series) -> str:
    if pd.isna(row["low"]):
        return "does not exist"
    return f"{row['low']:+.2f} to {row['high']:+.2f} {'holds' if row['low'] <= 0 <= row['high'] else 'leaves out'} 0"
