"""Measures the trained seeds with bindscope itself and writes the model card.

    python card.py DIR

Reads DIR/seed-N and DIR/training-N.json as train.py left them; writes DIR/README.md and DIR/tiny-controls.yaml.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cardtext import render
from facts import terms
from transformers.utils import logging
from words import COLLOCATIONS, NONSENSE, TERMS

from bindscope.checkpoints.load import Loaded, load
from bindscope.checkpoints.suites import from_folder
from bindscope.engine.engine import Engine
from bindscope.errors import MeasureError
from bindscope.execute.measuring import measure
from bindscope.measures import registry
from bindscope.prompts.build import build, carriers
from bindscope.records import Prompt, Protocol, Term
from bindscope.stats.compare import Stratified, stratified_difference
from bindscope.stats.resample import Interval, cluster_mean

PROTOCOL = Protocol(bos="on")
GROUPS = {
    "concept": tuple(term.written for term in TERMS),
    "collocation": tuple(phrase.written for phrase in COLLOCATIONS),
    "nonsense": NONSENSE,
}
BINDING = ("eb_star", "eb_star_mass", "excess")


def carried() -> list[Prompt]:
    """Every phrase of the three groups in the same six sentences."""
    return [
        prompt
        for group, phrases in GROUPS.items()
        for prompt in carriers([Term(phrase) for phrase in phrases], "carriers", group)
    ]


def tables(loaded: Loaded, prompts: list[Prompt] | tuple[Prompt, ...]) -> dict[str, pd.DataFrame]:
    measures, _ = registry.chosen(["binding", "recognition"])
    with Engine(loaded) as engine:
        outcome = measure(engine, prompts, PROTOCOL, list(measures.values()))
    for reason in outcome.failures.values():
        raise MeasureError(reason)
    return {name: outcome.frame(name) for name in ("binding", "recognition")}


def in_carriers(loaded: Loaded) -> pd.DataFrame:
    """Binding of the three groups: a row per phrase and carrier. One run, so one null per token count for all."""
    rows = tables(loaded, carried())["binding"]
    group = {phrase: name for name, phrases in GROUPS.items() for phrase in phrases}
    assert rows["reason"].isna().all(), rows["reason"].dropna().unique()
    return rows.assign(group=rows["term"].map(group), frame=rows["kind"])


def recognised(loaded: Loaded) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Correct answers on the library's own prompts, listed and cloze, and binding in its listed prompts."""
    listed = tables(loaded, build(terms(), "listed"))
    cloze = tables(loaded, [p for p in build(terms(), "cloze") if p.task == "recognition"])
    return {"listed": listed["recognition"], "cloze": cloze["recognition"]}, listed["binding"]


def contrast(rows: pd.DataFrame, a: str, b: str, column: str) -> Stratified:
    """Group a minus group b in the same carriers at equal token counts; jackknife over phrases."""
    both = rows[rows["group"].isin([a, b])]
    strata = both["k"].astype(str) + "/" + both["frame"]
    return stratified_difference(both[column], both["group"] == a, strata, both["term"])


def mean(rows: pd.DataFrame, column: str) -> Interval | None:
    """Mean with its bootstrap interval over phrases; None where values are missing."""
    if rows.empty or rows[column].isna().any():
        return None
    return cluster_mean(rows[column].astype(float), rows["term"])


def checkpoint(loaded: Loaded, step: int) -> dict[str, Any]:
    """All numbers of one checkpoint."""
    answers, library_rows = recognised(loaded)
    rows = in_carriers(loaded)
    right = {form: table.groupby("term")["correct_per_token"].mean() for form, table in answers.items()}
    tokens = rows.groupby("term")["k"].first()
    groups: dict[tuple[str, int | None], dict[str, Any]] = {}
    for name, phrases in GROUPS.items():
        for k in (None, *sorted(rows["k"].unique())):
            part = rows[(rows["group"] == name) & ((rows["k"] == k) | (k is None))]
            chosen = [t.name for t, p in zip(TERMS, phrases, strict=False) if k is None or tokens[p] == k]
            groups[name, k] = {column: mean(part, column) for column in BINDING} | {
                "n": part["term"].nunique(),
                **{form: float(right[form][chosen].mean()) if name == "concept" else None for form in right},
            }
    return {
        "step": step,
        **{form: float(table["correct_per_token"].mean()) for form, table in answers.items()},
        "eb_star": float(library_rows["eb_star"].astype(float).mean()),
        "by_term": right["listed"],
        "groups": groups,
        "contrasts": {
            (other, column): contrast(rows, "concept", other, column)
            for other in ("collocation", "nonsense")
            for column in BINDING
            if rows[column].notna().all()
        },
    }


def measured(out: Path, seed: int) -> dict[str, Any]:
    """The record of training, and a row of numbers for each checkpoint of a seed."""
    record: dict[str, Any] = json.loads((out / f"training-{seed}.json").read_text())
    rows = []
    for ref in from_folder(out / f"seed-{seed}").checkpoints:
        loaded = load(replace(ref, tokenizer=str(out)), bos="on", dtype="float32", device="cpu")
        row = checkpoint(loaded, int(ref.step or 0))
        rows.append(row)
        means = "  ".join(f"{g} {row['groups'][g, None]['eb_star'].mean:.3f}" for g in GROUPS)
        print(
            f"{seed} step {row['step']}  listed {row['listed']:.3f}  cloze {row['cloze']:.3f}  EB* {means}", flush=True
        )
    return record | {"seed": seed, "rows": rows}


def controls() -> str:
    """The collocations and nonsense pairs as a term file of bindscope."""
    sets = {"tiny-collocation": GROUPS["collocation"], "tiny-nonsense": GROUPS["nonsense"]}
    everything = ", ".join(phrase for phrases in sets.values() for phrase in phrases)
    lines = [f"  {name}: [{', '.join(phrases)}]" for name, phrases in sets.items()]
    return "\n".join(
        [
            "# Controls for the suite `tiny`, whose training text is known. Written by recipes/tiny/card.py.",
            "#   tiny-collocation: phrases as frequent in the text as the terms, rank by rank, without facts",
            "#   tiny-nonsense: pairs of words of the text that are never next to each other in it",
            "name: tiny-controls",
            f"terms: [{everything}]",
            "sets:",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that train.py wrote")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    np.seterr(all="raise", under="ignore")
    seeds = [measured(out, int(path.stem.split("-")[1])) for path in sorted(out.glob("training-*.json"))]
    (out / "tiny-controls.yaml").write_text(controls(), encoding="utf-8")
    (out / "README.md").write_text(render(seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
