"""One checkpoint in, records out: `measure` is the pure function that every way of running a study calls.

Binding and recognition of a prompt come from the same forward pass. Tables:

binding      a row per prompt: where the term stands, EB* and its companions, their nulls, values of every head
windows      a row per null window: k, start, EB*, EB*_mass
heads        a row per head: layer, head, previous-token score on neutral text
recognition  a row per recognition prompt (all rotations): raw sums of each choice, and the scores derived from them
generation   a row per generation prompt: the greedy continuation and its rubric score
few_shot     the same behind the term's exemplar, behind its paraphrase, and behind another term's exemplar
variability  a row per generation prompt, temperature and seed
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from bindscope.checkpoints.load import Loaded
from bindscope.engine.attention import hooked
from bindscope.engine.forward import read, stream
from bindscope.engine.generate import MAX_TOKENS, SEEDS, TEMPERATURES, Draw, distinct, token_limits, written_table
from bindscope.engine.prepare import Item, premise_rows, prepare, previous_token_scores
from bindscope.engine.projections import grams
from bindscope.engine.selfcheck import SelfCheck, self_check
from bindscope.measures import binding as b
from bindscope.measures.ablation import Parts, ablate
from bindscope.measures.ablation import steps as ablation_steps
from bindscope.measures.bindings import Bindings
from bindscope.measures.recognition import recognition_row
from bindscope.records import Measurement, Prompt, Protocol

#: Tables of one forward pass over all prompts.
READ = ("binding", "windows", "heads", "recognition")
#: Tables of decoding, a pass each.
WRITTEN = ("generation", "few_shot", "variability")
#: Tables of head edits, one pass.
EDITED = ("ablation", "ablation_sets")

_GREEDY = (Draw(),)
_GRID = tuple(Draw(temperature, seed) for temperature in TEMPERATURES for seed in SEEDS)


def tables(measures: Collection[str]) -> tuple[str, ...]:
    """The tables that a study's measures fill."""
    return (*READ, *(name for name in WRITTEN if name in measures), *(EDITED if "ablation" in measures else ()))


def used(table: str, prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts that decide what is in a table; no other prompt changes it."""
    if table == "recognition":
        return [p for p in prompts if p.task == "recognition"]
    if table in WRITTEN:
        return [p for p in prompts if p.task == "generation" and (p.shot == "zero") == (table != "few_shot")]
    return [p for p in prompts if p.binds]


def key_parts(table: str, prompts: Iterable[Prompt], protocol: Protocol) -> tuple[str, list[Prompt], Protocol]:
    """What of the request changes a table, for its key: name and constants, prompts, protocol."""
    chosen = used(table, prompts)
    if table in EDITED:
        return table, chosen, protocol
    protocol = replace(protocol, ablation=None)
    if table not in WRITTEN:
        return table, [replace(p, rubric=None, max_tokens=None) for p in chosen], protocol
    grid = [(draw.temperature, draw.seed) for draw in draws(table)]
    return f"{table} {grid} {MAX_TOKENS}", chosen, replace(protocol, format=None, order=None)


def steps(names: Collection[str], prompts: Sequence[Prompt], protocol: Protocol) -> int:
    """How often `measure` reports progress for these tables."""
    total = sum(p.shot == "zero" for p in prompts) if set(names) & set(READ) else 0
    if protocol.ablation is not None and set(names) & set(EDITED):
        total += ablation_steps(protocol.ablation)
    return total + sum(len(used(n, prompts)) * len(distinct(draws(n))) for n in WRITTEN if n in names)


def draws(table: str) -> tuple[Draw, ...]:
    return _GRID if table == "variability" else _GREEDY


def measure(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    protocol: Protocol,
    names: Collection[str] = READ,
    progress: Callable[[float], None] | None = None,
    parts: Parts | None = None,
    check: SelfCheck | None = None,
) -> tuple[list[Measurement], SelfCheck]:
    """Measure one loaded checkpoint on all prompts.

    names: the tables wanted. progress gets counts of steps done. parts keeps finished sets of an ablation, so that
    an interrupted one goes on. check: what an earlier look at the same model found, to save the time. Raises
    PromptError for a prompt that cannot be measured as written (too long, merged with a choice),
    UnsupportedArchitecture and MeasureError for a model that cannot be read.
    """
    check = check or self_check(loaded.model)
    items = [prepare(loaded, prompt) for prompt in prompts]
    by_id = {item.prompt.id: item for item in items}
    token_limits(loaded, [i for name in WRITTEN if name in names for i in (by_id[p.id] for p in used(name, prompts))])
    found: list[Measurement] = []
    if set(names) & set(READ):
        found += _read(loaded, [i for i in items if i.prompt.shot == "zero"], protocol, check.packed, progress)
    for name in WRITTEN:
        if name in names:
            chosen = [by_id[p.id] for p in used(name, prompts)]
            found.append(written_table(name, loaded, chosen, draws(name), progress))
    if set(names) & set(EDITED):
        assert protocol.ablation is not None
        found += ablate(loaded, items, protocol.ablation, check.packed, parts, progress)
    return [f for f in found if f.measure in names], check


def _read(
    loaded: Loaded, items: Sequence[Item], protocol: Protocol, packed: bool, progress: Callable[[float], None] | None
) -> list[Measurement]:
    """The tables of `READ`."""
    model = loaded.model
    ks = sorted({i.span.k for i in items if i.span and i.prompt.binds})
    width = max([k - 1 for k in ks], default=1)
    bindings = Bindings(loaded, ks)
    scored = {}
    with hooked(model):
        unconditional = _unconditional(loaded, items, protocol, packed)
        pts = previous_token_scores(loaded, packed)
        weights = grams(model) if ks else None
        for place, reading in stream(model, [item.row(width) for item in items], packed=packed, grams=weights):
            item = items[place]
            if item.prompt.binds:
                bindings.add(place, item, reading)
            if item.prompt.task == "recognition":
                lengths = [len(choice) for choice in item.choices]
                scored[place] = recognition_row(item.prompt, lengths, reading.logprobs, unconditional)
            if progress is not None:
                progress(1)
    rows = [scored[place] for place in sorted(scored)]
    recognition = Measurement("recognition", {key: [row[key] for row in rows] for key in (rows[0] if rows else ())})
    return [*bindings.tables(pts, protocol.min_null), _heads(loaded, pts), recognition]


def _unconditional(loaded: Loaded, items: Sequence[Item], protocol: Protocol, packed: bool) -> dict[str, float]:
    """log P of every choice after the neutral premise."""
    texts, rows = premise_rows(loaded.tokenizer, protocol.premise, loaded.bos, items)
    alone = [logs for reading in read(loaded.model, rows, packed=packed) for logs in reading.logprobs]
    return {text: float(logs.sum()) for text, logs in zip(texts, alone, strict=True)}


def _heads(loaded: Loaded, pts: b.Array) -> Measurement:
    return Measurement(
        "heads",
        {
            "layer": [layer for layer in range(loaded.layers) for _ in range(loaded.heads)],
            "head": [head for _ in range(loaded.layers) for head in range(loaded.heads)],
            "previous_token_score": [float(v) for v in pts.ravel()],
        },
    )
