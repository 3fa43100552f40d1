"""Writes the tables on ablation of docs/smollm2.md from a results folder.

bindscope run smollm2-causal --out runs/smollm2-causal && python docs/causal.py runs/smollm2-causal
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from sections import replace
from smollm2 import interval, number, table, versions

from bindscope.claims.analysis import analyse
from bindscope.store import Store
from bindscope.tables.run import RunTables

_WORDS = {"bsi": "BSI", "excess": "BSI over its null", "previous_token": "previous-token score", "named": "name"}


def effects(ablation: pd.DataFrame) -> str:
    rows = [
        [
            f"{_WORDS[r['ranking']]}, {r['mode']}",
            r["outcome"],
            number(r["baseline"]),
            number(r["top"]),
            number(r["bottom"]),
            f"{number(r['random'])} ({number(r['random_sd'])})",
            number(r["specificity"]) + interval(r["low"], r["high"]),
            number(r["p"]),
            r["verdict"],
        ]
        for r in ablation.sort_values("outcome", kind="stable").to_dict("records")
    ]
    head = ["heads by, edit", "outcome", "whole", "top", "bottom", "random (sd)", "specificity", "p", "verdict"]
    return table(head, rows)


def damage(ablation: pd.DataFrame) -> str:
    rows = [
        [f"{_WORDS[r['ranking']]}, {r['mode']}", *(number(r[f"loss_{s}"]) for s in ("top", "bottom", "random"))]
        for r in ablation.drop_duplicates(["ranking", "mode"]).to_dict("records")
    ]
    return table(["heads by, edit", "top", "bottom", "random, mean"], rows)


def chosen(sets: pd.DataFrame, heads: pd.DataFrame) -> str:
    names = heads["layer"].astype(str) + "." + heads["head"].astype(str)
    scores = pd.Series(heads["previous_token_score"].to_numpy(), names)
    ranks = (-scores).rank(method="min").astype(int)
    rows = []
    for row in sets[sets["set"].isin(["top", "bottom"])].drop_duplicates(["ranking", "set"]).to_dict("records"):
        shown = ", ".join(f"{h} (PTS {number(scores[h], 2)}, {ranks[h]})" for h in row["heads"])
        rows.append([f"{_WORDS[row['ranking']]}, {row['set']}", shown])
    return table(["set", "heads (layer.head)"], rows)


def setup(store: Store, ablation: pd.DataFrame, heads: pd.DataFrame) -> str:
    """How many layers, heads, questions and sets, and the versions."""
    first = ablation.iloc[0]
    chance = number(float((1 / store.read("recognition")["choices"].map(len)).mean()), 2)
    return (
        f"{heads['layer'].nunique()} layers of {heads['head'].nunique()} heads, {first['prompts']} questions "
        f"(chance {chance}), {first['k']} heads in a set, {first['random_sets']} random sets. "
        f"{versions(store, 'ablation')}"
    )


def main(folder: Path) -> None:
    store = Store(folder, create=False)
    ablation = analyse(RunTables(store)).more["ablation"]
    sets, heads = store.read("ablation_sets"), store.read("previous_token")
    loss = number(sets.loc[sets["set"] == "baseline", "neutral_loss"].iloc[0])
    replace("smollm2", "ablation-setup", setup(store, ablation, heads))
    replace("smollm2", "ablation-effects", effects(ablation))
    replace("smollm2", "ablation-damage", f"Loss of the whole model: {loss}.\n\n{damage(ablation)}")
    replace("smollm2", "ablation-heads", chosen(sets, heads))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
