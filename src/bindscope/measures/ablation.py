"""Ablation: does the model need the heads that bind a term to answer questions about it?

Recognition, and completions where the experiment asks for them, are measured while sets of heads are ablated: the heads
with the highest scores, those with the lowest, and random sets for comparison. The table `ablation` has a row for each
set and prompt. The table `ablation_sets` has a row for each set, with the loss on neutral text under the same edit. A
finished set can be stored, so that an interrupted run does not measure it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from bindscope.errors import MeasureError, PromptError, RequestError
from bindscope.measures.base import Procedure
from bindscope.measures.completions import scored
from bindscope.measures.head_sets import HeadSet, scores, sets
from bindscope.measures.procedure import Context, Rows
from bindscope.measures.recognition import Scores
from bindscope.records import Ablation, Mode, Prompt, Protocol, Sampling
from bindscope.schema import PROMPT, QUESTION, TERM, Column, Table

if TYPE_CHECKING:
    from bindscope.engine.capture import TextInput
    from bindscope.engine.conditions import EditValues, LayerCache, Logs
    from bindscope.engine.prepare import TokenizedPrompt

_SET = (
    Column(
        "mode", "text", "how heads are ablated: zero, mean, resample, published, knockout", missing="nothing is ablated"
    ),
    Column(
        "ranking",
        "text",
        "what the heads were chosen by: bsi, excess, previous_token, named",
        missing="nothing is ablated",
    ),
    Column("set", "text", "baseline, top, bottom or random"),
    Column("k", "integer", "heads, or groups of heads, in the set", range=(0, None)),
    Column("draw", "integer", "number of a random set, from 0", range=(0, None)),
)
_TABLE = Table(
    name="ablation",
    row="a set of heads and a prompt",
    columns=(
        *_SET,
        PROMPT,
        QUESTION,
        TERM,
        Column("task", "text", "recognition or generation"),
        Column(
            "score", "number", "1 if the right choice is preferred, else 0; rubric score of a completion", range=(0, 1)
        ),
        Column(
            "margin",
            "number",
            "score per token of the right choice less the best other",
            unit="nats per token",
            missing="a completion has no margin",
        ),
    ),
    measure="ablation",
    title="Score while heads are ablated",
    value="score",
)
_SETS = Table(
    name="ablation_sets",
    row="a set of heads",
    columns=(
        *_SET,
        Column("heads", "list of text", "the heads, each as layer.head from 0"),
        Column("neutral_loss", "number", "loss on neutral text", unit="nats per token", range=(0, None)),
    ),
    measure="ablation",
)


def evaluated(prompts: Iterable[TokenizedPrompt], spec: Ablation) -> list[TokenizedPrompt]:
    """The questions that are answered while heads are ablated: `spec.questions` of each term, in their first rotation.

    Each term starts with another kind of question, so that all kinds occur.

    prompts: all prompts of the experiment
    spec: the ablation settings
    Raises RequestError where no prompt is a question.
    """
    asked: dict[str, list[TokenizedPrompt]] = {}
    for prompt in prompts:
        if prompt.prompt.task == "recognition" and prompt.prompt.rotation == 0:
            asked.setdefault(prompt.prompt.term, []).append(prompt)
    out = []
    for n, questions in enumerate(asked.values()):
        count = len(questions) if spec.questions is None else min(spec.questions, len(questions))
        out += [questions[(n + i) % len(questions)] for i in range(count)]
    if not out:
        raise RequestError("ablation needs recognition questions, and the terms have none; name terms that have some")
    return out


def ranked_on(
    prompts: Iterable[TokenizedPrompt], questions: Sequence[TokenizedPrompt], spec: Ablation
) -> list[TokenizedPrompt]:
    """The prompts on which heads are ranked: with `spec.held_out` those that are not evaluated, else all with spans.

    prompts: all prompts of the experiment
    questions: the questions that are evaluated
    spec: the ablation settings
    Raises RequestError where no prompt is left.
    """
    taken = {question.prompt.shared for question in questions} if spec.held_out else set()
    out = [p for p in prompts if p.prompt.binds and p.prompt.task != "carrier" and p.prompt.shared not in taken]
    if not out:
        raise RequestError(
            "every prompt is evaluated, so none is left to rank heads on; add openings, or ask fewer questions of each "
            "term (ablation.questions), or rank on all prompts (ablation.held_out: false)"
        )
    return out


def steps(spec: Ablation) -> int:
    """The number of head sets that the settings ask for, including the baseline."""
    sizes = sum(len(spec.sizes(ranking)) for ranking in spec.rankings)
    return 1 + len(spec.modes) * sizes * (2 + spec.random)


def ablate(context: Context) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    """The tables `ablation` and `ablation_sets` of one checkpoint, as table -> column -> values.

    `context.progress` is called with the number of finished sets, or the fraction of a set; sets that `context.parts`
    holds count at once.

    Raises RequestError where the model or the prompts do not allow the settings, MeasureError where ablating the heads
    with the highest scores changes no score.
    """
    spec, loaded = context.choices.ablation, context.engine.loaded
    assert spec is not None
    questions = evaluated(context.prompts, spec)
    openings = [p for p in context.prompts if p.prompt.task == "generation" and p.prompt.shot == "zero"]
    ranked, lacking = scores(context, ranked_on(context.prompts, questions, spec))
    groups = int(getattr(context.engine.model.config, "num_key_value_heads", None) or loaded.heads)
    baseline, *others = sets(ranked, spec, groups, lacking)
    jobs: list[tuple[Mode, HeadSet]] = [("zero", baseline), *((mode, s) for mode in spec.modes for s in others)]
    texts = _texts(context, questions, openings if spec.generation else [], spec)
    done = _kept(context, len(jobs))
    if context.progress is not None:  # two sizes in percent can be the same number of heads, which is run once
        context.progress(len(done) + max(0, steps(spec) - len(jobs)))
    for block in _blocks(jobs, done):
        records = _block(context, texts, [jobs[n] for n in block])
        for n, record in zip(block, records, strict=True):
            if context.parts is not None:
                context.parts.put(f"{n:04d}", [record])
            done[n] = record
    ordered = [done[n] for n in range(len(jobs))]
    _check_changed(ordered)
    return _tables(ordered, [*questions, *texts.openings])


@dataclass(frozen=True)
class _Texts:
    """The texts on which every set of heads is evaluated.

    questions: prompts with choices
    openings: prompts to continue, none where the experiment does not ask for generation
    inputs: all texts of the forward pass: the questions, then the parts of the neutral text
    values: what replaces head outputs in `inputs`
    opening_values: what replaces head outputs in the openings
    cache: layer outputs that all sets share
    """

    questions: Sequence[TokenizedPrompt]
    openings: Sequence[TokenizedPrompt]
    inputs: Sequence[TextInput]
    values: EditValues
    opening_values: EditValues
    cache: LayerCache


def _kept(context: Context, jobs: int) -> dict[int, dict[str, Any]]:
    """The records of the sets that an earlier run has finished, by their index among the jobs."""
    if context.parts is None:
        return {}
    return {n: rows[0] for n in range(jobs) if (rows := context.parts.get(f"{n:04d}"))}


def _blocks(jobs: Sequence[tuple[Mode, HeadSet]], done: Collection[int]) -> list[list[int]]:
    """Indices of the unfinished jobs, in blocks that run side by side in one pass.

    The jobs of a block have one mode and similar lowest layers, since a pass skips the layers below the lowest edit.
    """
    from bindscope.engine.conditions import CONDITIONS_PER_PASS

    left = [n for n in range(len(jobs)) if n not in done]
    out: list[list[int]] = []
    for mode in dict.fromkeys(jobs[n][0] for n in left):
        of_mode = [n for n in left if jobs[n][0] == mode]
        of_mode.sort(key=lambda n: min((layer for layer, _ in jobs[n][1].heads), default=-1))
        out += [of_mode[i : i + CONDITIONS_PER_PASS] for i in range(0, len(of_mode), CONDITIONS_PER_PASS)]
    return out


def _block(context: Context, texts: _Texts, block: Sequence[tuple[Mode, HeadSet]]) -> Rows:
    """A record of each set: the columns of `_SETS`, and lists of scores and margins over the prompts."""
    out: Rows = []
    n, mode = len(texts.questions), block[0][0]
    logs = context.engine.edited(
        texts.inputs, [s.heads for _, s in block], mode, texts.values, cache=texts.cache, progress=context.progress
    )
    for (_, s), each in zip(block, logs, strict=True):
        answers = [_answer(question, choices) for question, choices in zip(texts.questions, each[:n], strict=True)]
        loss = np.concatenate([neutral[0] for neutral in each[n:]])
        out.append(
            {
                "mode": mode if s.heads else None,
                "ranking": s.ranking,
                "set": s.name,
                "k": s.k,
                "draw": s.draw,
                "heads": [f"{layer}.{head}" for layer, head in s.heads],
                "neutral_loss": float(-loss.astype(np.float64).mean()),
                "score": [float(correct) for correct, _ in answers] + _completion_scores(context, texts, mode, s),
                "margin": [margin for _, margin in answers],
            }
        )
    return out


def _answer(question: TokenizedPrompt, logs: Logs) -> tuple[bool, float]:
    """Whether the right choice has the highest mean log P per token, and its margin over the best other choice."""
    values = np.array([float(choice.astype(np.float64).mean()) for choice in logs])
    assert question.prompt.answer is not None
    each = Scores(values, question.prompt.answer)
    return each.predicted == each.gold, each.margin


def _completion_scores(context: Context, texts: _Texts, mode: Mode, chosen: HeadSet) -> list[float]:
    """Rubric scores of the openings, continued greedily while the heads are ablated."""
    if not texts.openings:
        return []
    from bindscope.engine.completions import completions

    def ablated(batch: Sequence[int]) -> AbstractContextManager[object]:
        return context.engine.decoding(chosen.heads, mode, texts.opening_values, batch)

    views = completions(context.engine, texts.openings, [Sampling()], batch_context=ablated)
    return [float(scored(view)["score"]) for view in views]


def _texts(
    context: Context, questions: Sequence[TokenizedPrompt], openings: Sequence[TokenizedPrompt], spec: Ablation
) -> _Texts:
    from bindscope.engine.capture import TextInput
    from bindscope.engine.conditions import EditValues, LayerCache
    from bindscope.engine.generate import token_limits
    from bindscope.engine.prepare import neutral_inputs

    loaded, engine = context.engine.loaded, context.engine
    neutral, _ = neutral_inputs(loaded)
    neutral_ids = [text.ids for text in neutral]
    means, last = engine.neutral_means(neutral_ids) if "mean" in spec.modes else (None, 0)
    biases = engine.value_biases() if "published" in spec.modes else None
    donors = opening_donors = None
    if "resample" in spec.modes:
        whole = [(*q.encoded.ids, *max(q.choices, key=len)) for q in questions]
        known = [(q.prompt.term, text) for q, text in zip(questions, whole, strict=True)]
        rng = np.random.default_rng(spec.seed)
        needs = [(q, len(text) - 1) for q, text in zip(questions, whole, strict=True)]
        donors = _donors(needs, known, neutral_ids, rng) + _neutral_donors(neutral_ids, rng)
        # The model never reads its last new token, so a donor needs no token in that position.
        limits = token_limits(loaded, openings)
        ends = [(o, len(o.encoded.ids) + n - 1) for o, n in zip(openings, limits, strict=True)]
        opening_donors = _donors(ends, known, neutral_ids, rng)
    values = EditValues(
        means=means, last=last, donors=donors, spans=[*_spans(questions), *((),) * len(neutral)], biases=biases
    )
    inputs = [TextInput(q.encoded.ids, q.choices) for q in questions]
    inputs += [TextInput(text.ids[:1], (text.ids[1:],)) for text in neutral]
    opening_values = replace(values, donors=opening_donors, spans=_spans(openings))
    return _Texts(
        questions=questions,
        openings=openings,
        inputs=inputs,
        values=values,
        opening_values=opening_values,
        cache=LayerCache(),
    )


def _spans(prompts: Sequence[TokenizedPrompt]) -> list[tuple[int, ...]]:
    return [prompt.span.tokens if prompt.span else () for prompt in prompts]


def _donors(
    asked: Sequence[tuple[TokenizedPrompt, int]],
    texts: Sequence[tuple[str, tuple[int, ...]]],
    neutral: Sequence[tuple[int, ...]],
    rng: np.random.Generator,
) -> list[tuple[int, ...]]:
    """For each prompt the tokens of a random text about another term that is long enough, else neutral text.

    asked: prompts and the number of tokens that each needs
    texts: term and token ids of each text to choose from
    neutral: token ids of the parts of the neutral text
    Raises PromptError where the neutral text is too short as well.
    """
    longest = _joined(neutral)
    out: list[tuple[int, ...]] = []
    for prompt, need in asked:
        fits = [ids for term, ids in texts if term != prompt.prompt.term and len(ids) >= need]
        if not fits and len(longest) < need:
            raise PromptError(
                f"resample: no text about another term is as long as the prompt {prompt.prompt.id!r} ({need} tokens); "
                "use mode mean or zero"
            )
        out.append(fits[int(rng.integers(len(fits)))] if fits else longest[:need])
    return out


def _neutral_donors(neutral: Sequence[tuple[int, ...]], rng: np.random.Generator) -> list[tuple[int, ...]]:
    """For each part of the neutral text another part that is at least as long."""
    out: list[tuple[int, ...]] = []
    for n, text in enumerate(neutral):
        others = [t for m, t in enumerate(neutral) if m != n and len(t) >= len(text)]
        out.append(others[int(rng.integers(len(others)))] if others else _joined(neutral)[-len(text) :])
    return out


def _joined(neutral: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The parts of the neutral text as one text; only the first part keeps its special token."""
    return (*neutral[0], *(t for text in neutral[1:] for t in text[1:]))


def _check_changed(done: Rows) -> None:
    """Raises MeasureError where ablating the heads with the highest scores changes no margin."""
    base = done[0]["margin"]
    for record in done[1:]:
        if record["set"] == "top" and record["mode"] != "published" and record["margin"] == base:
            raise MeasureError(
                f"ablating heads {', '.join(record['heads'])} ({record['mode']}) changes no margin of any question, so "
                "the edit has no effect on this model; leave the measure ablation out"
            )


def _tables(done: Rows, asked: Sequence[TokenizedPrompt]) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    keys = [column.name for column in _SET]
    rows = [
        {key: record[key] for key in keys}
        | {
            "prompt": prompt.prompt.id,
            "question": prompt.prompt.shared,
            "term": prompt.prompt.term,
            "task": prompt.prompt.task,
            "score": score,
            "margin": margin,
        }
        for record in done
        for prompt, score, margin in zip_longest(asked, record["score"], record["margin"])
    ]
    return {
        table.name: {column.name: [row[column.name] for row in source] for column in table.columns}
        for table, source in ((_TABLE, rows), (_SETS, done))
    }


def _count(_: Sequence[Prompt], protocol: Protocol) -> int:
    return 0 if protocol.ablation is None else steps(protocol.ablation)


ablation = Procedure(
    name="ablation",
    function=ablate,
    columns=_TABLE.columns,
    value="score",
    title=_TABLE.title,
    implies=("recognition",),
    stored=(_TABLE, _SETS),
    count=_count,
)
