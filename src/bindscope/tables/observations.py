"""Stored tables -> one row per prompt and checkpoint, with what is bound beside what is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bindscope.errors import StoreError

#: Measured columns of a prompt that go into claims.
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
    """The rows of the terms' own prompts: questions and openings, or the terms in carrier sentences where a run has
    nothing else."""
    if binding.empty:
        return binding
    own = binding[binding["task"] != "carrier"]
    return binding[binding["group"] == "real"] if own.empty else own


def observations(
    binding: pd.DataFrame, recognition: pd.DataFrame, generation: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Join binding with what is known of the same prompt at the same checkpoint.

    One row per suite, checkpoint and question, and per opening where generated answers are given: `t` (place of the
    checkpoint in training), term, question, task, kind, the binding columns, accuracy and margin (nats per token; means
    over rotations; questions only), and behavior: the accuracy of a question, the rubric score of an opening. Prompts
    whose term has no span keep NaN binding. Raises StoreError where a table holds a row twice.
    """
    if binding.empty or recognition.empty:
        raise StoreError("no recognition questions are stored, so binding cannot be set beside what the model knows")
    for name, table in (("binding", binding), ("recognition", recognition)):
        if doubled := int(table.duplicated(["suite", "revision", "prompt"]).sum()):
            raise StoreError(f"the stored {name} table holds {doubled} rows twice; nothing is averaged over them")
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
        raise StoreError(f"{lost} bound prompts have no score of their own; run `bindscope run` with this folder again")
    order = binding[["suite", "revision"]].drop_duplicates()
    order["t"] = order.groupby("suite").cumcount()
    table = table.merge(order, on=["suite", "revision"])
    return table[_COLUMNS].astype(dict.fromkeys(_BINDING[:4], float))


def by_term(table: pd.DataFrame, column: str) -> tuple[list[str], np.ndarray]:
    """Means per term and checkpoint of one suite: term names and an array (terms, checkpoints).

    A term that lacks a value at some checkpoint is left out; the caller compares the counts.
    """
    wide = table.pivot_table(index="term", columns="t", values=column, aggfunc="mean", sort=True).dropna()
    return [str(name) for name in wide.index], wide.to_numpy(dtype=np.float64)


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """EB[l], mean over prompts, by suite, step and layer: where binding sits and how it moves."""
    kept = table[table["eb_star"].notna()]
    rows = [
        {"suite": suite, "revision": revision, "step": step, "layer": layer, "eb": float(value), "n": len(part)}
        for (suite, revision, step), part in kept.groupby(["suite", "revision", "step"], sort=False, dropna=False)
        for layer, value in enumerate(np.mean(np.stack(part["eb_per_layer"].to_list()), 0))
    ]
    return pd.DataFrame(rows, columns=["suite", "revision", "step", "layer", "eb", "n"])
