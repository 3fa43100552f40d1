"""Joins binding and behavior: a row per prompt and checkpoint."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bindscope.errors import StoreError

#: Columns of the table binding that claims use.
_BINDING = ["eb_star", "eb_star_mass", "excess", "position_excess", "k", "n_tokens", "eb_per_layer"]
_COLUMNS = [
    "suite",
    "revision",
    "step",
    "t",
    "term",
    "question",
    "task",
    "kind",
    *_BINDING,
    "accuracy",
    "margin",
    "behavior",
    "chance",
]


def own_prompts(binding: pd.DataFrame) -> pd.DataFrame:
    """The rows of questions and openings; the rows of real terms in carrier sentences where a run has only those."""
    if binding.empty:
        return binding
    own = binding[binding["task"] != "carrier"]
    return binding[binding["group"] == "real"] if own.empty else own


def observations(
    binding: pd.DataFrame, recognition: pd.DataFrame, generation: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Join binding and behavior of the same prompt at the same checkpoint: a row per suite, checkpoint and prompt.

    binding: the joined table of a run
    recognition: the stored table
    generation: the stored table, None to leave openings out
    Raises StoreError where there are no questions, where a table holds a row twice, and where a prompt has no score.

    Columns
    t: number of the checkpoint in its suite, from 0
    term, question, task, kind: of the prompt
    eb_star, ...: the columns of `_BINDING`, NaN where the term has no span
    accuracy: mean over the rotations of a question
    margin: mean over the rotations of a question (nats per token)
    behavior: accuracy of a question, rubric score of an opening
    chance: accuracy of guessing
    """
    if binding.empty or recognition.empty:
        raise StoreError("no recognition questions are stored, so binding cannot be compared with behavior")
    for name, table in (("binding", binding), ("recognition", recognition)):
        if doubled := int(table.duplicated(["suite", "revision", "prompt"]).sum()):
            raise StoreError(f"the stored table {name} holds {doubled} rows twice; run `bindscope run` in a new folder")
    keys = ["suite", "revision", "question"]
    scores = recognition.groupby(keys, sort=False).agg(
        accuracy=("correct_per_token", "mean"), margin=("margin_per_token", "mean"), choices=("choices", "first")
    )
    scores = scores.assign(behavior=scores["accuracy"], chance=1 / scores["choices"].map(len)).reset_index()
    tasks = ["recognition"]
    if generation is not None and not generation.empty:
        tasks.append("generation")
        texts = generation.rename(columns={"score": "behavior"})[[*keys, "behavior"]]
        scores = pd.concat([scores, texts], ignore_index=True)
    bound = binding[binding["task"].isin(tasks)]
    table = bound.merge(scores, on=keys, how="left", validate="one_to_one", indicator=True)
    if lost := int((table["_merge"] != "both").sum()):
        raise StoreError(f"{lost} prompts with binding have no score; run `bindscope run` with this folder again")
    order = binding[["suite", "revision"]].drop_duplicates()
    order["t"] = order.groupby("suite").cumcount()
    table = table.merge(order, on=["suite", "revision"])
    return table[_COLUMNS].astype(dict.fromkeys(_BINDING[:4], float))


def by_term(table: pd.DataFrame, column: str) -> tuple[list[str], np.ndarray]:
    """Means of a column by term and checkpoint: term names and an array (terms, checkpoints).

    Terms that have no value at some checkpoint are left out.

    table: observations of one suite
    column: the column
    """
    wide = table.pivot_table(index="term", columns="t", values=column, aggfunc="mean", sort=True).dropna()
    return [str(name) for name in wide.index], wide.to_numpy(dtype=np.float64)


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """EB of each layer, mean over prompts: a row per suite, checkpoint and layer."""
    kept = table[table["eb_star"].notna()]
    rows = [
        {"suite": suite, "revision": revision, "step": step, "layer": layer, "eb": float(value), "n": len(part)}
        for (suite, revision, step), part in kept.groupby(["suite", "revision", "step"], sort=False, dropna=False)
        for layer, value in enumerate(np.mean(np.stack(part["eb_per_layer"].to_list()), 0))
    ]
    return pd.DataFrame(rows, columns=["suite", "revision", "step", "layer", "eb", "n"])
