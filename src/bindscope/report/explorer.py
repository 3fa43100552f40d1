"""What the prompt explorer of the page shows, in compact form: each prompt at each checkpoint of each suite.

Everything is of the store. EB* and BSI are in thousandths, attention in hundredths, log-probabilities in hundredths
of a nat per token.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np
import pandas as pd

from bindscope.charts.text import at, plain
from bindscope.tables.run import RunTables


def packed(data: dict[str, Any]) -> str:
    """JSON, compressed, as base64: no character of it means anything to HTML."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode()


def explorer(run: RunTables, budget: int) -> dict[str, Any]:
    """suites: name, prompts (what never changes) and checkpoints (values by prompt); shown and measured: how many
    checkpoints are in it and how many there are: where all would take more than `budget` bytes, some are left out, the
    ends never. Empty where the store holds no tokens (an older version wrote it)."""
    binding = run.own
    if binding.empty or "tokens" not in binding:
        return {}
    binding = binding[binding["tokens"].notna()]
    suites = [_suite(run, str(name), part) for name, part in binding.groupby("suite", sort=False)]
    measured = sum(len(suite["checkpoints"]) for suite in suites)
    while True:
        shown = sum(len(suite["checkpoints"]) for suite in suites)
        data = {"suites": suites, "shown": shown, "measured": measured}
        if len(packed(data)) <= budget or all(len(suite["checkpoints"]) <= 2 for suite in suites):
            return data
        for suite in suites:
            every = suite["checkpoints"]
            suite["checkpoints"] = [*every[:-1:2], every[-1]] if len(every) > 2 else every


def _suite(run: RunTables, name: str, binding: pd.DataFrame) -> dict[str, Any]:
    first = binding.drop_duplicates("prompt")
    heads = _of(run.stored("previous_token"), name)
    recognition, texts = (_of(frame, name) for frame in (run.stored("recognition"), run.stored("generation")))
    shots = _of(run.stored("few_shot"), name)
    questions = (
        {str(q): part for q, part in recognition.drop_duplicates("prompt").groupby("question", sort=False)}
        if len(recognition)
        else {}
    )
    prompts = [_prompt(row, questions.get(row["question"])) for row in first.to_dict("records")]
    points = []
    for revision, part in binding.groupby("revision", sort=False):
        here = [_by(frame, "question", str(revision)) for frame in (recognition, texts, shots)]
        rows = {row["prompt"]: row for row in part.to_dict("records")}
        scores = heads.loc[heads["revision"] == revision, "previous_token_score"].to_list()
        values = [
            _values(p, rows.get(p["id"]), scores, *(group.get(p["question"], []) for group in here)) for p in prompts
        ]
        points.append({"label": at(part.iloc[0].to_dict()), "values": values})
    wide = int(heads["head"].max()) + 1 if len(heads) else 1
    return {"name": plain(name), "heads": wide, "prompts": prompts, "checkpoints": points}


def _of(frame: pd.DataFrame, suite: str) -> pd.DataFrame:
    return frame if frame.empty else frame[frame["suite"] == suite]


def _by(frame: pd.DataFrame, key: str, revision: str) -> dict[str, list[dict[Any, Any]]]:
    out: dict[str, list[dict[Any, Any]]] = {}
    if not frame.empty:
        for row in frame[frame["revision"] == revision].to_dict("records"):
            out.setdefault(str(row[key]), []).append(row)
    return out


def _prompt(row: dict[Any, Any], questions: pd.DataFrame | None) -> dict[str, Any]:
    out = {
        "id": row["prompt"],
        "question": row["question"],
        "term": plain(row["term"]),
        "kind": plain(f"{row['task']}: {row['kind']}"),
        "tokens": [plain(t) for t in row["tokens"]],
        "span": [] if row["span"] is None else [int(s) for s in row["span"]],
        "k": None if pd.isna(row["k"]) else int(row["k"]),
        "reason": plain(row["reason"]) if isinstance(row["reason"], str) else "",
    }
    if questions is not None:
        plainly = questions.iloc[0]
        out |= {"choices": [plain(c) for c in plainly["choices"]], "gold": int(plainly["gold"])}
    return out


def _values(
    prompt: dict[str, Any],
    row: dict[Any, Any] | None,
    previous: list[float],
    asked: list[dict[Any, Any]],
    texts: list[dict[Any, Any]],
    shots: list[dict[Any, Any]],
) -> dict[str, Any] | None:
    """What one checkpoint gave for one prompt; None where it was not measured on it."""
    if row is None:
        return None
    if [plain(token) for token in row["tokens"]] != prompt["tokens"]:
        return {"cut": True}  # another tokenizer than at the first checkpoint: its rows do not fit the tokens shown
    out: dict[str, Any] = {}
    if pd.notna(row["eb_star"]):
        out = {"eb": _milli(row["eb_star"]), "null": _milli(row["null_mean"]), "excess": _milli(row["excess"])}
        if isinstance(row.get("top_heads"), np.ndarray):  # an older version did not store them
            out["top"] = [
                [
                    int(head),
                    _milli(row["bsi"][head]),
                    _milli(previous[head]) if previous else None,
                    [round(100 * float(v)) for v in values],
                ]
                for head, values in zip(row["top_heads"], row["top_rows"], strict=True)
            ]
    if asked:
        order = {c: i for i, c in reversed(list(enumerate(asked[0]["choices"])))}
        out["asked"] = [_asked(r, order) for r in sorted(asked, key=lambda r: int(r["rotation"]))]
    if texts or shots:
        out["texts"] = [_text(r) for r in (*texts, *shots)]
    return out


def _milli(value: float | None) -> int | None:
    return None if value is None or pd.isna(value) else round(1000 * value)


def _asked(row: dict[Any, Any], order: dict[str, int]) -> list[Any]:
    """[place of each choice's text in rotation 0, log-probability per token in hundredths, place of the chosen one]."""
    each = [round(100 * float(v) / int(n)) for v, n in zip(row["logprob"], row["choice_tokens"], strict=True)]
    return [[order[c] for c in row["choices"]], each, int(row["predicted_per_token"])]


def _text(row: dict[Any, Any]) -> list[Any]:
    return [
        str(row["shot"]),
        plain(row["text"]),
        _milli(row["score"]),
        [plain(m) for m in row["matched"]],
        [plain(m) for m in row["contradicted"]],
        [plain(m) for m in row["copied"]],
    ]
