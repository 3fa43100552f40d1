"""Does it matter for knowing a term that the heads which bind it are there? Recognition with sets of heads taken out.

Two tables: `ablation` has a row per set and prompt (score, margin), `ablation_sets` a row per set (which heads, loss on
neutral text under the same edit). A finished set can be kept and is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from bindscope.checkpoints.load import Loaded
from bindscope.engine.attention import during, hooked
from bindscope.engine.conditions import SIDE, Logs, Material, Shared, decoding, neutral_means, run
from bindscope.engine.edits import value_biases
from bindscope.engine.forward import Row
from bindscope.engine.generate import Draw, token_limits, written_table
from bindscope.engine.prepare import Item, neutral_rows, previous_token_scores
from bindscope.errors import MeasureError, PromptError, RequestError
from bindscope.measures.ranking import HeadSet, scores, sets
from bindscope.measures.recognition import Scores
from bindscope.records import Ablation, Measurement, Mode

Rows = list[dict[str, Any]]


class Parts(Protocol):
    """Where finished sets are kept between runs."""

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
    sizes = sum(len(spec.sizes(ranking)) for ranking in spec.rankings)
    return 1 + len(spec.modes) * sizes * (2 + spec.random)


def ablate(
    loaded: Loaded,
    items: Sequence[Item],
    spec: Ablation,
    packed: bool,
    parts: Parts | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Measurement]:
    """The tables `ablation` and `ablation_sets` of one checkpoint. progress gets sets done, in shares while they run,
    those that `parts` holds first.

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
    with hooked(model):
        pts = previous_token_scores(loaded, packed)
        found = scores(model, ranked_on(items, chosen, spec), pts, packed)
        groups = int(getattr(model.config, "num_key_value_heads", None) or loaded.heads)
        baseline, *others = sets(found, spec, groups)
        jobs: list[tuple[Mode, HeadSet]] = [("zero", baseline), *((mode, s) for mode in spec.modes for s in others)]
        asked = _asked(loaded, chosen, openings, neutral, spec)
        done = _kept(parts, len(jobs))
        if progress is not None:  # a share of the heads can be a size that was asked for already
            progress(len(done) + max(0, steps(spec) - len(jobs)))
        for block in _blocks(jobs, done):
            made = _block(loaded, asked, [jobs[n] for n in block], progress)
            for n, record in zip(block, made, strict=True):
                if parts is not None:
                    parts.put(f"{n:04d}", [record])
                done[n] = record
    ordered = [done[n] for n in range(len(jobs))]
    _changed(ordered)
    return _tables(ordered, [*chosen, *openings])


@dataclass(frozen=True)
class _Asked:
    """What every set is tried on: questions, openings (none where generation is not asked for), and all packed rows, of
    the questions first and then of the neutral text; what edits of the rows and of the openings need, and share."""

    questions: Sequence[Item]
    openings: Sequence[Item]
    rows: Sequence[Row]
    material: Material
    writing: Material
    shared: Shared


def _kept(parts: Parts | None, jobs: int) -> dict[int, dict[str, Any]]:
    """The sets that an earlier run has finished, by their place among the jobs."""
    if parts is None:
        return {}
    return {n: rows[0] for n in range(jobs) if (rows := parts.get(f"{n:04d}"))}


def _blocks(jobs: Sequence[tuple[Mode, HeadSet]], done: Collection[int]) -> list[list[int]]:
    """Jobs still to do, as many together as go side by side in one pass: of one mode, with like lowest layers, since
    what lies below the lowest edited layer is shared."""
    left = [n for n in range(len(jobs)) if n not in done]
    out: list[list[int]] = []
    for mode in dict.fromkeys(jobs[n][0] for n in left):
        mine = [n for n in left if jobs[n][0] == mode]
        mine.sort(key=lambda n: min((layer for layer, _ in jobs[n][1].heads), default=-1))
        out += [mine[i : i + SIDE] for i in range(0, len(mine), SIDE)]
    return out


def _block(
    loaded: Loaded, asked: _Asked, block: Sequence[tuple[Mode, HeadSet]], progress: Callable[[float], None] | None
) -> Rows:
    """One record per set: identity, and lists over the prompts."""
    out: Rows = []
    n, mode = len(asked.questions), block[0][0]
    logs = run(
        loaded.model,
        asked.rows,
        [s.heads for _, s in block],
        mode,
        asked.material,
        shared=asked.shared,
        progress=progress,
    )
    for (_, s), found in zip(block, logs, strict=True):
        known = [_known(item, each) for item, each in zip(asked.questions, found[:n], strict=True)]
        loss = np.concatenate([each[0] for each in found[n:]])
        out.append(
            {
                "mode": mode if s.heads else None,
                "ranking": s.ranking,
                "set": s.name,
                "k": s.k,
                "draw": s.draw,
                "heads": [f"{layer}.{head}" for layer, head in s.heads],
                "neutral_loss": float(-loss.astype(np.float64).mean()),
                "score": [float(correct) for correct, _ in known] + _written(loaded, asked, mode, s),
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


def _written(loaded: Loaded, asked: _Asked, mode: Mode, chosen: HeadSet) -> list[float]:
    """Rubric scores of the openings, continued greedily under the same edit."""
    if not asked.openings:
        return []

    def under(batch: Sequence[int]) -> AbstractContextManager[object]:
        edit, rewire = decoding(loaded.model, chosen.heads, mode, asked.writing, batch)
        return during(edit=edit, rewire=rewire)

    table = written_table("generation", loaded, asked.openings, [Draw()], under=under)
    return [float(score) for score in table.columns["score"]]


def _asked(
    loaded: Loaded, chosen: Sequence[Item], openings: Sequence[Item], neutral: Sequence[Row], spec: Ablation
) -> _Asked:
    model, texts = loaded.model, [row.ids for row in neutral]
    means, last = neutral_means(model, texts) if "mean" in spec.modes else (None, 0)
    biases = value_biases(model) if "published" in spec.modes else None
    donors = writing = None
    if "resample" in spec.modes:
        whole = [(*i.encoded.ids, *max(i.choices, key=len)) for i in chosen]
        known = [(i.prompt.term, text) for i, text in zip(chosen, whole, strict=True)]
        rng = np.random.default_rng(spec.seed)
        donors = _donors([(i, len(text) - 1) for i, text in zip(chosen, whole, strict=True)], known, texts, rng)
        donors += _neutral_donors(texts, rng)
        # The last new token is never read, so none is needed in its place.
        ends = [(i, len(i.encoded.ids) + n - 1) for i, n in zip(openings, token_limits(loaded, openings), strict=True)]
        writing = _donors(ends, known, texts, rng)
    material = Material(means, last, donors, [*_spans(chosen), *((),) * len(neutral)], biases)
    rows = [Row(i.encoded.ids, i.choices) for i in chosen] + [Row(r.ids[:1], (r.ids[1:],)) for r in neutral]
    openers = replace(material, donors=writing, spans=_spans(openings))
    return _Asked(chosen, openings, rows, material, openers, Shared())


def _spans(items: Sequence[Item]) -> list[tuple[int, ...]]:
    return [item.span.tokens if item.span else () for item in items]


def _donors(
    asked: Sequence[tuple[Item, int]],
    whole: Sequence[tuple[str, tuple[int, ...]]],
    neutral: Sequence[tuple[int, ...]],
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """For each item a text of another term that has the tokens it needs at least; neutral text where there is none.

    whole: term and tokens of each text at hand. Raises PromptError where the neutral text is too short as well.
    """
    longest = _longest(neutral)
    out: list[tuple[int, ...]] = []
    for item, need in asked:
        fits = [ids for term, ids in whole if term != item.prompt.term and len(ids) >= need]
        if not fits and len(longest) < need:
            raise PromptError(
                f"resample: no other prompt is as long as {item.prompt.id!r} ({need} tokens); use mode mean or zero"
            )
        out.append(fits[int(rng.integers(len(fits)))] if fits else longest[:need])
    return out


def _neutral_donors(neutral: Sequence[tuple[int, ...]], rng: np.random.Generator) -> list[tuple[int, ...]]:
    """For each row of neutral text another one that is as long."""
    out: list[tuple[int, ...]] = []
    for n, text in enumerate(neutral):
        others = [t for m, t in enumerate(neutral) if m != n and len(t) >= len(text)]
        out.append(others[int(rng.integers(len(others)))] if others else _longest(neutral)[-len(text) :])
    return out


def _longest(neutral: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The rows of neutral text in one, with the special token of the first alone."""
    return (*neutral[0], *(t for text in neutral[1:] for t in text[1:]))


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
