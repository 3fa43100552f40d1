"""Does it matter for knowing a term that the heads which bind it are there? Recognition with sets of heads taken out.

Two tables: `ablation` has a row per set and prompt (score, margin), `ablation_sets` a row per set (which heads, loss on
neutral text under the same edit). Sets are run in blocks; a finished block can be kept and is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from bindscope.errors import MeasureError, PromptError, RequestError
from bindscope.measure.attention import hooked, recording
from bindscope.measure.conditions import Logs, Material, neutral_means, run
from bindscope.measure.edits import mask, replacing, value_biases
from bindscope.measure.forward import Row
from bindscope.measure.generation import Draw, written_table
from bindscope.measure.prepare import Item, neutral_rows, previous_token_scores
from bindscope.measure.ranking import HeadSet, scores, sets
from bindscope.measure.recognition import Scores
from bindscope.models.load import Loaded
from bindscope.records import Ablation, Measurement, Mode

#: Sets in a block: what an interruption can lose.
BLOCK = 16

Rows = list[dict[str, Any]]


class Parts(Protocol):
    """Where finished blocks are kept between runs."""

    def get(self, name: str) -> Rows | None: ...
    def put(self, name: str, rows: Rows) -> None: ...


def evaluated(items: Sequence[Item], spec: Ablation) -> list[Item]:
    """The questions that are asked under edits: rotation 0 of those that bind, `spec.questions` of each term (a later
    term begins with a later kind, so that all kinds occur)."""
    asked: dict[str, list[Item]] = {}
    for item in items:
        if item.prompt.task == "recognition" and item.prompt.rotation == 0:
            asked.setdefault(item.prompt.term, []).append(item)
    out = []
    for n, questions in enumerate(asked.values()):
        count = len(questions) if spec.questions is None else min(spec.questions, len(questions))
        out += [questions[(n + i) % len(questions)] for i in range(count)]
    if not out:
        raise RequestError("ablation needs recognition questions; name terms that have some")
    return out


def ranked_on(items: Sequence[Item], chosen: Sequence[Item], spec: Ablation) -> list[Item]:
    """The prompts that heads are ranked on: other frames than those evaluated, or all that bind."""
    taken = {item.prompt.shared for item in chosen} if spec.held_out else set()
    out = [i for i in items if i.prompt.binds and i.prompt.task != "carrier" and i.prompt.shared not in taken]
    if not out:
        raise RequestError(
            "every prompt is evaluated, so none is left to rank heads on; add openings, or ask fewer questions of each "
            "term (ablation.questions), or rank on all prompts (ablation.held_out: false)"
        )
    return out


def steps(spec: Ablation) -> int:
    """Conditions that `ablate` runs."""
    sizes = len(dict.fromkeys((spec.k, *spec.sweep)))
    return 1 + len(spec.modes) * len(spec.rankings) * sizes * (2 + spec.random)


def ablate(
    loaded: Loaded,
    items: Sequence[Item],
    spec: Ablation,
    packed: bool,
    parts: Parts | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Measurement]:
    """The tables `ablation` and `ablation_sets` of one checkpoint.

    Raises RequestError for what the model or the prompts do not allow, MeasureError where an edit of the heads that
    bind most leaves every score unchanged.
    """
    model = loaded.model
    if not packed:
        raise MeasureError(f"{loaded.ref.suite}: packed rows do not hold for this model, and edits are run in them")
    chosen = evaluated(items, spec)
    openings = (
        [i for i in items if i.prompt.task == "generation" and i.prompt.shot == "zero"] if spec.generation else []
    )
    neutral, _ = neutral_rows(loaded)
    rows = [Row(i.encoded.ids, i.choices) for i in chosen]
    rows += [Row(row.ids[:1], (row.ids[1:],)) for row in neutral]
    with hooked(model):
        pts = previous_token_scores(loaded, packed)
        found = scores(model, ranked_on(items, chosen, spec), pts, packed)
        groups = int(getattr(model.config, "num_key_value_heads", None) or loaded.heads)
        baseline, *others = sets(found, spec, groups)
        material = _material(loaded, chosen, neutral, spec)
        jobs: list[tuple[Mode, HeadSet]] = [(mode, s) for mode in spec.modes for s in others]
        blocks = [jobs[i : i + BLOCK] for i in range(0, len(jobs), BLOCK)]
        blocks.insert(0, [("zero", baseline)])
        asked = _Asked(chosen, openings, rows)
        done: Rows = []
        for n, block in enumerate(blocks):
            name = f"{n:04d}"
            kept = parts.get(name) if parts is not None else None
            if kept is None:
                kept = _block(loaded, asked, block, material)
                if parts is not None:
                    parts.put(name, kept)
            done += kept
            if progress is not None:
                progress(len(block))
    if progress is not None:  # a share of the heads can be a size that was asked for already
        progress(max(0, steps(spec) - len(done)))
    _changed(done)
    return _tables(done, [*chosen, *openings])


@dataclass(frozen=True)
class _Asked:
    """What every set is tried on: questions, openings (none where generation is not asked for), and all packed rows, of
    the questions first and then of the neutral text."""

    questions: Sequence[Item]
    openings: Sequence[Item]
    rows: Sequence[Row]


def _block(loaded: Loaded, asked: _Asked, block: Sequence[tuple[Mode, HeadSet]], material: Material) -> Rows:
    """One record per set: identity, and lists over the prompts."""
    out: Rows = []
    n = len(asked.questions)
    for mode in dict.fromkeys(mode for mode, _ in block):
        part = [s for m, s in block if m == mode]
        for s, logs in zip(part, run(loaded.model, asked.rows, [s.heads for s in part], mode, material), strict=True):
            known = [_known(item, found) for item, found in zip(asked.questions, logs[:n], strict=True)]
            loss = np.concatenate([found[0] for found in logs[n:]])
            out.append(
                {
                    "mode": mode if s.heads else None,
                    "ranking": s.ranking,
                    "set": s.name,
                    "k": s.k,
                    "draw": s.draw,
                    "heads": [f"{layer}.{head}" for layer, head in s.heads],
                    "neutral_loss": float(-loss.astype(np.float64).mean()),
                    "score": [float(correct) for correct, _ in known] + _written(loaded, asked, mode, s, material),
                    "margin": [margin for _, margin in known],
                }
            )
    return out


def _known(item: Item, logs: Logs) -> tuple[bool, float]:
    """Whether gold has the highest mean log P per token, and its margin over the best other choice."""
    values = np.array([float(found.astype(np.float64).mean()) for found in logs])
    assert item.prompt.answer is not None
    found = Scores(values, item.prompt.answer)
    return found.predicted == found.gold, found.margin


def _written(loaded: Loaded, asked: _Asked, mode: Mode, chosen: HeadSet, material: Material) -> list[float]:
    """Rubric scores of the openings, continued greedily under the same edit."""
    if not asked.openings:
        return []
    gone = mask([chosen.heads], 1, loaded.heads, loaded.device)
    edit = replacing(gone, material.biases if mode == "published" else None)
    with recording(edit=edit):
        table = written_table("generation", loaded, asked.openings, [Draw()])
    return [float(score) for score in table.columns["score"]]


def _material(loaded: Loaded, chosen: Sequence[Item], neutral: Sequence[Row], spec: Ablation) -> Material:
    model, texts = loaded.model, [row.ids for row in neutral]
    means, last = neutral_means(model, texts) if "mean" in spec.modes else (None, 0)
    spans = [i.span.tokens if i.span else () for i in chosen] + [()] * len(neutral)
    donors = _donors(chosen, texts, spec.seed) if "resample" in spec.modes else None
    biases = value_biases(model) if "published" in spec.modes else None
    return Material(means, last, donors, spans, biases)


def _donors(chosen: Sequence[Item], neutral: Sequence[tuple[int, ...]], seed: int) -> list[tuple[int, ...]]:
    """For each row another prompt, of another term, that is at least as long with a choice; neutral text where there is
    none. Raises PromptError where that is too short as well."""
    rng = np.random.default_rng(seed)
    whole = [(i.prompt.term, (*i.encoded.ids, *max(i.choices, key=len))) for i in chosen]
    longest = (*neutral[0], *(t for text in neutral[1:] for t in text[1:]))
    out: list[tuple[int, ...]] = []
    for item in chosen:
        need = len(item.encoded.ids) + max(map(len, item.choices)) - 1
        fits = [ids for term, ids in whole if term != item.prompt.term and len(ids) >= need]
        if not fits and len(longest) < need:
            raise PromptError(
                f"resample: no other prompt is as long as {item.prompt.id!r} ({need} tokens); use mode mean or zero"
            )
        out.append(fits[int(rng.integers(len(fits)))] if fits else longest[:need])
    for n, text in enumerate(neutral):
        others = [t for m, t in enumerate(neutral) if m != n and len(t) >= len(text)]
        out.append(others[int(rng.integers(len(others)))] if others else longest[-len(text) :])
    return out


def _changed(done: Rows) -> None:
    """Taking out the heads that bind most must change some score; else the edit does not reach the model."""
    base = done[0]["margin"]
    for record in done[1:]:
        if record["set"] == "top" and record["mode"] != "published" and record["margin"] == base:
            raise MeasureError(
                f"taking out heads {', '.join(record['heads'])} ({record['mode']}) changes no score at all; "
                "the edit does not reach the model"
            )


def _tables(done: Rows, asked: Sequence[Item]) -> list[Measurement]:
    keys = ("mode", "ranking", "set", "k", "draw")
    rows = [
        {**{key: record[key] for key in keys}, "prompt": item.prompt.id, "question": item.prompt.shared,
         "term": item.prompt.term, "task": item.prompt.task, "score": score, "margin": margin}
        for record in done
        for item, score, margin in zip_longest(asked, record["score"], record["margin"])
    ]  # fmt: skip
    wide = [{key: record[key] for key in (*keys, "heads", "neutral_loss")} for record in done]
    return [
        Measurement("ablation", {key: [row[key] for row in rows] for key in rows[0]}),
        Measurement("ablation_sets", {key: [row[key] for row in wide] for key in wide[0]}),
    ]
