"""Writes the tables of docs/smollm2.md from three results folders (docs/causal.py writes those on ablation).

for name in smollm2 smollm2-cloze smollm2-published; do bindscope run $name --out runs/$name; done
python docs/smollm2.py runs
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from sections import replace

from bindscope.claims.analysis import Analysis, analyse
from bindscope.stats.resample import cluster_mean
from bindscope.store import Store
from bindscope.tables.run import RunTables

#: Experiment -> how its questions are asked.
EXPERIMENTS = {"smollm2": "listed, rotated", "smollm2-cloze": "cloze", "smollm2-published": "listed, gold always A"}
#: Column of the table of few-shot gains -> which exemplar stands in front.
EXEMPLARS = {
    "zero": "none",
    "exemplar": "the term's own",
    "paraphrased": "paraphrased, without keywords",
    "mismatched": "another term's",
}
SCORES = {"per_token": "per token", "raw": "raw", "per_byte": "per byte", "pmi": "PMI"}


def number(value: object, digits: int = 3) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def interval(low: object, high: object, digits: int = 3) -> str:
    return "" if pd.isna(low) else f" [{number(low, digits)}, {number(high, digits)}]"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [f"| {' | '.join(names)} |", f"|{'|'.join(['---'] + ['---:'] * (len(names) - 1))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def recognition(analyses: dict[str, Analysis]) -> str:
    rows = []
    for name, label in EXPERIMENTS.items():
        scores = analyses[name].more["scores"].set_index("score")
        cells = [
            number(scores.loc[s, "accuracy"]) + interval(scores.loc[s, "low"], scores.loc[s, "high"]) for s in SCORES
        ]
        rows.append([label, str(int(scores["n"].iloc[0])), *cells])
    return table(["format", "questions", *SCORES.values()], rows)


def positions(analyses: dict[str, Analysis]) -> str:
    rows = [
        [r["position"], str(r["n"]), number(r["accuracy"]), number(r["chosen"])]
        for r in analyses["smollm2"].more["positions"].to_dict("records")
    ]
    return table(["place", "questions with gold there", "accuracy", "how often the place is chosen"], rows)


def controls(analyses: dict[str, Analysis], k: int) -> str:
    frame = analyses["smollm2"].more["controls"]
    rows = [
        [
            str(r["group"]),
            str(r["terms"]),
            number(r["eb_star"]) + interval(r["eb_star_low"], r["eb_star_high"]),
            number(r["eb_star_mass"]),
            number(r["excess"]),
            number(r["difference"]) + interval(r["difference_low"], r["difference_high"]) or str(r["reason"] or ""),
        ]
        for r in frame[frame["k"] == k].to_dict("records")
    ]
    return table(["group", "expressions", "EB\\*", "EB\\*_mass", "excess", "EB\\* of terms minus group"], rows)


def validity(analyses: dict[str, Analysis]) -> str:
    frame = analyses["smollm2"].results
    rows = []
    for group in frame.loc[frame["id"] == "v.difference", "subject"].unique():
        part = frame[(frame["id"] == "v.difference") & (frame["subject"] == group)].set_index("reading")
        d = frame[(frame["id"] == "v.cohen_d") & (frame["subject"] == group)]["value"]
        cells = [number(d.iloc[0], 2)]
        for reading in ("published", "controlled"):
            row = part.loc[reading]
            cells.append(
                number(row["value"]) + interval(row["low"], row["high"]) if pd.notna(row["value"]) else row["reason"]
            )
        rows.append([group, *cells])
    return table(["group", "d (published)", "difference (published)", "at equal k and frame (controlled)"], rows)


def few_shot(analyses: dict[str, Analysis]) -> str:
    gained = analyses["smollm2"].more["few_shot"]
    rows = []
    for column, label in EXEMPLARS.items():
        mean = cluster_mean(gained[column], gained["term"])
        gain = cluster_mean(100 * (gained[column] - gained["zero"]), gained["term"])
        relative = 100 * (gained[column].mean() / gained["zero"].mean() - 1)
        cells = [number(gain.mean, 1) + interval(gain.low, gain.high, 1), number(relative, 0) + "%"]
        if column == "zero":
            cells = ["", ""]
        rows.append([label, number(mean.mean) + interval(mean.low, mean.high), *cells])
    text = table(["exemplar in front", "rubric score", "gain, pp", "relative gain"], rows)
    matched, copied = int(gained["matched"].sum()), int(gained["copied"].sum())
    return (
        text + f"\nOf {matched} keywords in the answers with the term's own exemplar, {copied} stand in the exemplar.\n"
    )


def sampling(analyses: dict[str, Analysis]) -> str:
    frame = analyses["smollm2"].more["variability"]
    rows = [
        [str(t), number(part["mean"].mean()), number(part["sd"].mean()), number(part["texts"].mean())]
        for t, part in frame.groupby("temperature")
    ]
    head = ["temperature", "mean rubric score", "spread over seeds (sd of a prompt)", "different texts among 5 seeds"]
    return table(head, rows)


def overview(analyses: dict[str, Analysis], store: Store) -> str:
    beh = analyses["smollm2"].more["behavior"]
    binding = store.read("binding")
    own = binding[binding["task"] != "carrier"]
    parts = []
    quantities = (
        ("EB\\*", own, "eb_star"),
        ("excess", own, "excess"),
        ("excess at like positions", own, "position_excess"),
        ("recognition", beh, "recognition"),
        ("generation", beh, "generation"),
        ("Beh", beh, "beh"),
    )
    for label, frame, column in quantities:
        values, terms = frame[column], frame["term"]
        kept = values.notna()
        mean = cluster_mean(values[kept].astype(float), terms[kept])
        parts.append([label, str(int(kept.sum())), number(mean.mean) + interval(mean.low, mean.high)])
    return table(["quantity", "n", "mean"], parts)


def main(runs: Path) -> None:
    stores = {name: Store(runs / name, create=False) for name in EXPERIMENTS}
    analyses = {name: analyse(RunTables(store)) for name, store in stores.items()}
    listed = stores["smollm2"]
    sections = {
        "versions": versions(listed, "binding"),
        "overview": overview(analyses, listed),
        "recognition": recognition(analyses),
        "positions": positions(analyses),
        "controls-2": controls(analyses, 2),
        "controls-3": controls(analyses, 3),
        "validity": validity(analyses),
        "few-shot": few_shot(analyses),
        "sampling": sampling(analyses),
    }
    for name, text in sections.items():
        replace("smollm2", name, text)


def versions(store: Store, measure: str) -> str:
    """What the first checkpoint was measured with, in a sentence."""
    unit = store.read_run().units[0]
    provenance = store.provenance(unit.checkpoint, measure, unit.keys[measure])
    packages = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return f"Measured with {packages}, {provenance['dtype']} on {provenance['device']}."


if __name__ == "__main__":
    main(Path(sys.argv[1]))
